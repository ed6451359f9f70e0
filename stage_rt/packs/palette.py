"""Labels as masks of class numbers, and the colours that show them."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stage_rt.packs.picture import Picture

BACKGROUND = "background"


def classes_png(picture: Picture, classes: Sequence[str], *, coloured: bool) -> bytes:
    """A picture's label as 8-bit PNG: 0 is the background, n the n-th of ``classes``; ``coloured`` adds a palette."""
    value = 0 if picture.kind is None else classes.index(picture.kind) + 1
    image = Image.fromarray(picture.label.astype(np.uint8) * np.uint8(value))
    if coloured:
        # A palette is put on grey levels as they are.
        image.putpalette([level for n in range(256) for level in colour(n)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class in PASCAL VOC: its bits are dealt to red, green and blue, the low ones weigh most."""
    red, green, blue = (
        sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
    )
    return red, green, blue
