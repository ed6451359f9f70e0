"""Where the part is in a photograph, found from its difference to the border, or to dark strips along it."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SEPARATION = 0.7
"""Share of a picture's variance that object and background must explain to be told apart (Otsu's criterion)."""
BORDER = 0.9
"""Share of the border that must be background for the rest to be an object."""

STRIP, DARK = 0.15, 0.55
"""How far from the border, in sides of the photograph, a strip of background reaches at most where the part fills the
picture, and how bright it is at most, of the median."""


def find_object(photo: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The object in a photograph uint8 ``[H, W, 3]``, bool ``[H, W]``; without a background, all but dark strips.

    What differs from the border's median colour by more than Otsu's threshold (IEEE Transactions on Systems, Man, and
    Cybernetics 9, 1979), its largest component, holes filled. A photograph of a surface, which has no background,
    shows at its border what it shows everywhere.
    """
    border = np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]])
    distance = np.abs(photo.astype(np.int16) - np.median(border, axis=0).astype(np.int16)).max(axis=2)
    threshold, separation = otsu(distance.astype(np.uint8))
    different = distance > threshold
    outside = ~np.concatenate([different[0], different[-1], different[:, 0], different[:, -1]])
    if separation < SEPARATION or outside.mean() < BORDER:
        return _beyond_strips(photo)
    parts, _ = ndimage.label(different)
    sizes = np.bincount(parts.ravel())
    largest = 1 + int(np.argmax(sizes[1:]))
    return np.asarray(ndimage.binary_fill_holes(parts == largest))


def _beyond_strips(photo: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """All but dark strips along the border: where a part ends just inside the picture, a gap or a shadow shows.

    A label there would lie on no part. What is dark further in than a strip reaches is taken for the part's own.
    """
    grey = ndimage.gaussian_filter(photo.mean(axis=2), 1.0)
    parts, _ = ndimage.label(grey < DARK * np.median(grey))
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in grey.shape)
    further_in = (rows >= STRIP * len(rows))[:, None] & (columns >= STRIP * len(columns))
    at_border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    strips = np.setdiff1d(at_border, [0, *parts[further_in]])
    return np.asarray(~np.isin(parts, strips))


def otsu(values: NDArray[np.uint8]) -> tuple[int, float]:
    """The grey level that parts values best into those up to it and those above, and how much variance it explains.

    A share of 0 where all values are the same.
    """
    count = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    share, level = count / count.sum(), np.arange(256)
    below = np.cumsum(share)
    mean, total = np.cumsum(share * level), float(share @ level)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.nan_to_num((total * below - mean) ** 2 / (below * (1 - below)), posinf=0.0)
    variance = float(share @ (level - total) ** 2)
    best = int(np.argmax(between))
    return best, float(between[best]) / variance if variance else 0.0
