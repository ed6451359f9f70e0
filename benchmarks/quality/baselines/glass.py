"""GLASS's local anomaly synthesis (Chen et al., ECCV 2024), its strong anomalies in pixels."""

import numpy as np
from numpy.typing import NDArray

from .textures import blended, estranged

OPACITY, SPREAD, RANGE = 0.5, 0.1, (0.2, 0.8)


def paint(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], other: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """See `Baseline`; the opacity is normal about 0.5 and cut to 0.2 to 0.8, as in the paper's section 3.3."""
    opacity = float(np.clip(rng.normal(OPACITY, SPREAD), *RANGE))
    return blended(photo, estranged(other, photo.shape, rng), label, opacity)
