"""How defects begin: how strong they are just inside their labels, in real photographs and in painted ones.

A latent cell spans several pixels, and the networks are told of cells alone. Where in the outermost one a defect
begins is theirs to guess, so that in the mean they paint the last pixels fainter than real defects are there. Told of
a label that is a little wider, they do not.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stage_rt.images.inputs import cover, widened

TRIED = (0.0, 0.5)
"""Outsets that are tried, in pixels of the network."""


def outermost(label: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a label bool ``[H, W]`` that lie at its outline; all of one that fills the picture."""
    pixels = label & ~ndimage.binary_erosion(label, border_value=1)
    return np.asarray(pixels if pixels.any() else label)


def told(label: NDArray[np.bool_], outset: float, cells: int) -> NDArray[np.bool_]:
    """The cells bool ``[cells, cells]`` that networks are told of for a label bool ``[S, S]``."""
    return cover(widened(label, outset), cells)
