"""Pieces of one defect made one picture.

Two bands of scale are joined each in its own way, as P. J. Burt and E. H. Adelson join photographs ("A
multiresolution spline with application to image mosaics", ACM Transactions on Graphics 2, 1983).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from stage_rt.images.regions import Region

SEAM = 4
"""Half the width of the ramp between two pieces of a defect, in pixels of the photo."""
SHADE = 2.0 * SEAM
"""Deviation of the blur that parts how bright a piece is from what is drawn in it, in pixels of the photo."""


def joined(
    photo: NDArray[np.uint8], pieces: Sequence[tuple[Region, NDArray[np.uint8]]]
) -> tuple[tuple[slice, slice], NDArray[np.uint8], NDArray[np.bool_]]:
    """The window that holds the regions of all pieces, their pictures in it as one, and what is to be kept of it.

    ``pieces`` are regions of one group with their pictures uint8 ``[S, S, 3]``. Where there are several, how bright
    they are goes over into one another from the middle of one share to the middle of the next, or the eye finds the
    seam; what is finer does so over `SEAM` pixels to either side, or it is seen twice.
    """
    first, levels = pieces[0]
    if len(pieces) == 1:
        return first.window, levels, first.own
    rows, columns = (
        slice(min(r.window[axis].start for r, _ in pieces), max(r.window[axis].stop for r, _ in pieces))
        for axis in (0, 1)
    )
    seen = photo[rows, columns]
    shade, detail = _Mixed(seen.shape), _Mixed(seen.shape)
    label = np.zeros(seen.shape[:2], dtype=np.bool_)
    for region, levels in pieces:
        inner = (
            slice(region.window[0].start - rows.start, region.window[0].stop - rows.start),
            slice(region.window[1].start - columns.start, region.window[1].stop - columns.start),
        )
        enlarged = Image.fromarray(levels).resize(region.label.shape[::-1], Image.Resampling.BICUBIC)
        paint = np.asarray(enlarged, dtype=np.float32)
        coarse = _shade(paint, region.label)
        shade.add(inner, coarse, _weights(region, None))
        detail.add(inner, paint - coarse, _weights(region, SEAM))
        label[inner] |= region.own
    mixed = np.where(detail.total > 0, shade.mean() + detail.mean(), seen)
    return (rows, columns), np.clip(np.rint(mixed), 0, 255).astype(np.uint8), label


class _Mixed:
    """A weighted mean of pictures that lie over one another in a window ``[H, W, 3]``."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total = np.zeros((*shape[:2], 1), dtype=np.float32)
        self._sum = np.zeros(shape, dtype=np.float32)

    def add(
        self, inner: tuple[slice, slice], picture: NDArray[np.float32], weight: NDArray[np.float32]
    ) -> None:
        self.total[inner] += weight
        self._sum[inner] += weight * picture

    def mean(self) -> NDArray[np.float32]:
        return np.asarray(self._sum / np.maximum(self.total, 1e-6), dtype=np.float32)


def _shade(paint: NDArray[np.float32], label: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The local mean of ``paint`` ``[h, w, 3]`` over the pixels of ``label`` ``[h, w]``; far from any, the paint."""
    inside = label.astype(np.float32)[..., None]
    near = ndimage.gaussian_filter(inside, SHADE, axes=(0, 1))
    blurred = ndimage.gaussian_filter(inside * paint, SHADE, axes=(0, 1))
    return np.asarray(np.where(near > 1e-3, blurred / np.maximum(near, 1e-3), paint), dtype=np.float32)


def _weights(region: Region, reach: float | None) -> NDArray[np.float32]:
    """How much each pixel of a region's window counts ``[h, w, 1]``, by its place in the region's share."""
    assert region.share is not None
    rows, columns = (
        _ramp(part, share, reach) for part, share in zip(region.window, region.share, strict=True)
    )
    return np.outer(rows, columns)[..., None]


def _ramp(window: slice, share: slice, reach: float | None) -> NDArray[np.float32]:
    """1 for the pixels of a window inside ``share``, falling to nearly 0 over ``reach`` pixels beside its ends.

    Without a ``reach`` it falls from the middle of the share.
    """
    position = np.arange(window.start, window.stop) + np.float32(0.5)
    inside = np.minimum(position - share.start, share.stop - position)
    half = reach or (share.stop - share.start) / 2
    ramp: NDArray[np.float32] = np.clip(0.5 + inside / (2 * half), 1e-3, 1).astype(np.float32)
    return ramp
