"""How defects begin: how strong they are just inside their labels, in real photographs and in painted ones.

A latent cell spans several pixels, and the networks are told of cells alone. Where in the outermost one a defect
begins is theirs to guess, so that in the mean they paint the last pixels fainter than real defects are there. Told of
a label that is a little wider, they do not.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stage_rt.images.inputs import cover, widened

from .rim import surface

TRIED = (0.5, 1.5)
"""Outsets that are tried beside none, in pixels of the network."""
DEPTH = 3
"""How far inside a label its defect is looked at, in pixels of the network."""


def strengths(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]]) -> NDArray[np.float64]:
    """How much defects differ from the surface around at their outlines, in grey levels, ``[DEPTH]``.

    Means over the pixels of all labels bool ``[S, S]`` that are the first, the second, ... from the outline inside,
    of images ``[c, S, S]`` that show some surface; 0 where no label is that deep.
    """
    sums, counts = np.zeros(DEPTH), np.zeros(DEPTH)
    for image, label in pairs:
        grey = image.mean(axis=0, dtype=np.float64)
        around = surface(grey, label)
        depth = np.ceil(ndimage.distance_transform_edt(label)).astype(int)
        inside = (depth > 0) & (depth <= DEPTH)
        if np.isnan(around):
            continue
        band = depth[inside] - 1
        sums += np.bincount(band, grey[inside] - around, DEPTH)
        counts += np.bincount(band, minlength=DEPTH)
    return sums / np.maximum(counts, 1)


def apart(painted: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    """Mean difference of two `strengths`, in grey levels."""
    return float(np.abs(painted - real).mean())


def told(label: NDArray[np.bool_], outset: float, cells: int) -> NDArray[np.bool_]:
    """The cells bool ``[cells, cells]`` that networks are told of for a label bool ``[S, S]``."""
    return cover(widened(label, outset), cells)
