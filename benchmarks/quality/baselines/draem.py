"""DRAEM (Zavrtanik et al., ICCV 2021): a texture from elsewhere, more or less opaque."""

import numpy as np
from numpy.typing import NDArray

from .textures import blended, estranged

OPACITY = (0.2, 1.0)


def paint(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], other: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """See `Baseline`; the paper's thresholded Perlin noise is the label here. Opacity is uniform in 0.2 to 1."""
    return blended(photo, estranged(other, photo.shape, rng), label, rng.uniform(*OPACITY))
