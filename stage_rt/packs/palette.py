"""Labels as masks of class numbers, and the colours that show them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.packs.picture import File
from stage_rt.run.writer import png

BACKGROUND = "background"


def classes_png(label: NDArray[np.bool_], number: int, *, coloured: bool) -> File:
    """A label bool ``[H, W]`` as 8-bit PNG: its class ``number``, and 0 elsewhere; ``coloured`` adds a palette."""
    image = Image.fromarray(label.astype(np.uint8) * np.uint8(number))
    if coloured:
        # A palette is put on grey levels as they are.
        image.putpalette([level for n in range(256) for level in colour(n)])
    return File(png(image))


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class in PASCAL VOC: its bits are dealt to red, green and blue, the low ones weigh most."""
    red, green, blue = (
        sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
    )
    return red, green, blue
