"""CutPaste (Li et al., CVPR 2021): another part of the same photograph, its colours jittered."""

import numpy as np
from numpy.typing import NDArray

NEAREST = 0.1
"""How far away the part is taken from, in sides of the photograph, at least."""
JITTER = (0.6, 1.4)


def paint(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], other: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """See `Baseline`; the paper's rectangle is the label here."""
    moves = [round(rng.uniform(NEAREST, 1 - NEAREST) * length) for length in label.shape]
    part = np.roll(photo, moves, axis=(0, 1)).astype(np.float64)
    centre = part[label].mean() if label.any() else 0.0
    jittered = (part - centre) * rng.uniform(*JITTER) + centre * rng.uniform(*JITTER)
    result = photo.copy()
    result[label] = np.clip(jittered, 0, 255).astype(np.uint8)[label]
    return result
