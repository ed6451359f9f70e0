"""The shape of a label, whatever its place."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def spread(label: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How a label bool ``[H, W]`` spreads about the middles of its parts: where these lie says nothing of its shape.

    Returns:
        The covariance ``[2, 2]`` of rows and columns in pixels squared, and the parts' sizes in pixels.
    """
    numbers, count = ndimage.label(label, np.ones((3, 3)))
    places, part = np.argwhere(label).astype(np.float64), numbers[label] - 1
    sizes = np.bincount(part, minlength=count)
    middles = np.stack([np.bincount(part, axis, count) / sizes for axis in places.T], axis=1)
    return np.cov(places - middles[part], rowvar=False, bias=True), sizes
