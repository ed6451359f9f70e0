"""How defects end: how much of them lies just beyond their labels, in real photographs and in painted ones.

Whoever draws a label follows the dark of a pit or a crack, and its soft edge stays outside. A segmentation network
that learned defects cut off at their labels takes that edge for defect too.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

WIDTH = 3
"""How far beyond a label its defect is looked for, in pixels of the network."""
LEAST = 0.15
"""Share of a defect's contrast that the first pixel beyond its label must have to be a part of it."""


def profile(image: NDArray[np.uint8], label: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much an image ``[c, S, S]`` differs from the surface around, in grey levels, ``[1 + WIDTH]``.

    Means over a label bool ``[S, S]`` and over the pixels up to 1, 2, ... beyond it; NaN where there are none.
    """
    grey = image.mean(axis=0, dtype=np.float64)
    distance = ndimage.distance_transform_edt(~label)
    far = (distance > WIDTH + 1) & (distance <= 3 * (WIDTH + 1))
    surface = np.median(grey[far]) if far.any() else np.nan
    bands = [label, *((distance > n) & (distance <= n + 1) & ~label for n in range(WIDTH))]
    return np.array([grey[band].mean() - surface if band.any() else np.nan for band in bands])


def mean_profile(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]]) -> NDArray[np.float64]:
    """The mean `profile` of images and their labels; 0 where no image shows a band."""
    profiles = np.array([profile(image, label) for image, label in pairs if label.any()])
    return np.array(
        [np.mean(band[~np.isnan(band)]) if (~np.isnan(band)).any() else 0.0 for band in profiles.T]
    )


def reaches_beyond(real: NDArray[np.float64]) -> bool:
    """Whether defects of this mean profile go on beyond their labels."""
    return bool(real[0] * real[1] > 0 and abs(real[1]) >= LEAST * abs(real[0]))


def fading(real: NDArray[np.float64], painted: NDArray[np.float64]) -> tuple[float, ...]:
    """Which share of the paint is to be kept in each band beyond a label, so that it fades out as real defects do.

    It never rises again, and is cut off where nothing is left. Arguments are mean profiles.
    """
    shares: list[float] = []
    for wanted, there in zip(real[1:], painted[1:], strict=True):
        share = (
            1.0
            if abs(there) <= abs(wanted) and wanted * there > 0
            else max(wanted / there, 0.0)
            if there
            else 0.0
        )
        shares.append(round(min(share, *shares, 1.0), 2))
    while shares and shares[-1] < 0.05:
        shares.pop()
    return tuple(shares)
