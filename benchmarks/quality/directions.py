"""In how many directions defects lie on a part."""

import numpy as np
from numpy.typing import NDArray

from stage_rt.images.shapes import spread

from .pictures import Pictures

ALONE = 0.5
"""Coherence of a lesson's defects from which on they lie one way. Cracks of commutators come to 0.98: turned crops
cost segmenters of them 4 points of IoU. Blowholes, breaks and cracks of magnetic tiles come to 0.29 together: without
turned crops segmenters of two cracks, one of them flat, miss upright ones."""


def turnable(pictures: Pictures) -> bool:
    """Whether crops may be turned by quarters: defects lie in so many directions that none tells what they are."""
    return coherence(pictures) < ALONE


def coherence(pictures: Pictures) -> float:
    """How far the labels of all ``pictures`` lie in one direction, from 0, in all alike, to 1; 1 of round ones alone.

    The length of the sum of doubled angles, which are the same for both ends of an axis, over the sum of their
    lengths (Mardia and Jupp, Directional Statistics, 2000): a label counts by how much longer than broad it is.
    """
    axes = np.array([_axis(label > 0) for label in pictures.classes if label.any()])
    lengths = np.linalg.norm(axes, axis=1).sum() if len(axes) else 0.0
    return float(np.linalg.norm(axes.sum(axis=0)) / lengths) if lengths > 0 else 1.0


def _axis(label: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The doubled angle of the axis along which the parts of a label bool ``[H, W]`` are longest; its length is from
    0, round, to 1, a line."""
    (rows, both), (_, columns) = spread(label)[0]
    whole = rows + columns
    return np.array([columns - rows, 2 * both]) / whole if whole > 0 else np.zeros(2)
