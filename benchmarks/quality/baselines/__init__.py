"""Other ways to put a defect under a label, by name; all get the same photographs and labels."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from . import cutpaste, draem, glass, nsa

Photo = NDArray[np.uint8]
Label = NDArray[np.bool_]


class Baseline(Protocol):
    """``paint(photo, label, other, rng)``: the photograph uint8 ``[H, W, 3]`` with something under its label bool
    ``[H, W]``; ``other`` is another good photograph."""

    def __call__(self, photo: Photo, label: Label, other: Photo, rng: np.random.Generator) -> Photo:
        """The same size and dtype as ``photo``."""


BASELINES: dict[str, Baseline] = {
    "cutpaste": cutpaste.paint,
    "draem": draem.paint,
    "nsa": nsa.paint,
    "glass": glass.paint,
}
