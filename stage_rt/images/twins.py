"""Photographs of the same defect: one part photographed again, lit or cut otherwise.

Of magnetic tiles 88 photographs show 17 blowholes. Whoever learns from some of them and is tested on the others is
asked what he has been told.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, sparse

SIDE = 128
"""Photographs and labels are compared at so many pixels."""
SHIFT = 12
"""Pixels of those that two photographs of a part may lie apart."""
LABELS_ALIKE = 0.45
"""Least IoU of two labels, a little wider than drawn and moved onto one another."""
SURFACES_ALIKE = 0.2
"""Least correlation of two surfaces' fine structure.

Of pairs of magnetic tiles whose labels are alike it is above in 98 of 100 for blowholes, 97 for cracks and 27 for
`uneven`, whose labels cover most of a tile; of other pairs in 6."""
UNLIKELY = 0.93
"""Surfaces must also be more alike than so many of those whose labels do not touch: bricks all look alike."""
COVERING = 0.5
"""Share of a photograph from which on a label leaves too little to compare."""
_DRAWN = 0.25


def defects(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]]) -> NDArray[np.intp]:
    """Which defect each labelled photograph shows, as numbers ``[n]``: the same for photographs of the same.

    Args:
        pairs: photographs uint8 ``[H, W, 3]`` and labels bool ``[H, W]``, of one type of defect.
    """
    looks = []
    for photo, label in pairs:
        wider = _wider(label)
        looks.append((_structure(photo, wider), wider))
    labels = [label for _, label in looks]
    surfaces = _correlations([structure for structure, _ in looks])
    apart = [(a, b) for a in range(len(labels)) for b in range(a) if not (labels[a] & labels[b]).any()]
    chance = float(np.quantile([surfaces[pair] for pair in apart], UNLIKELY)) if apart else 0.0
    same = np.zeros_like(surfaces, dtype=np.bool_)
    for a, b in np.argwhere(np.tril(surfaces >= max(SURFACES_ALIKE, chance), -1)).tolist():
        same[a, b] = _overlap(labels[a], labels[b]) >= LABELS_ALIKE
    numbers: NDArray[np.intp] = sparse.csgraph.connected_components(same, directed=False)[1].astype(np.intp)
    return numbers


def _correlations(structures: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The highest correlation of every two surfaces ``[n, n]``, of which only the lower half is filled."""
    spectra = [np.fft.rfft2(structure) for structure in structures]
    highest = np.zeros((len(structures),) * 2)
    for a in range(len(structures)):
        for b in range(a):
            correlation = np.fft.irfft2(spectra[a] * spectra[b].conj(), s=(SIDE, SIDE))
            highest[a, b] = np.roll(correlation, (SHIFT, SHIFT), (0, 1))[
                : 2 * SHIFT + 1, : 2 * SHIFT + 1
            ].max()
    return highest


def _structure(photo: NDArray[np.uint8], label: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fine structure of a surface ``[S, S]``, of the same strength everywhere however it is lit; of length 1.

    Defects of a kind look alike on any part, so theirs is left out, unless there is hardly anything else.
    """
    grey = Image.fromarray(photo).convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    fine = np.asarray(grey, dtype=np.float64)
    fine -= ndimage.gaussian_filter(fine, 6)
    fine /= np.sqrt(ndimage.gaussian_filter(fine**2, 10)) + 2
    fine -= fine.mean()
    if label.mean() < COVERING:
        fine[label] = 0
    length = float(np.linalg.norm(fine))
    return fine / length if length else fine


def _wider(label: NDArray[np.bool_]) -> NDArray[np.bool_]:
    share = Image.fromarray(label.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(ndimage.binary_dilation(np.asarray(share) >= _DRAWN, iterations=2))


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The IoU of two labels where they lie on one another best, which need not be where the surfaces do."""
    steps = range(-SHIFT, SHIFT + 1, 2)
    moved = (np.roll(b, (down, right), (0, 1)) for down in steps for right in steps)
    return max(float((a & one).sum() / max((a | one).sum(), 1)) for one in moved)
