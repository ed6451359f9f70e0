"""What was painted, put into the photograph it belongs to."""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from stage_rt.images.joining import joined
from stage_rt.images.luminance import luminance, tinted
from stage_rt.images.regions import Region

FEATHER = 2
"""Half the width of the ramp around a label in which photo and paint are mixed, in pixels of the photo."""
GRAIN = 1.5
"""Deviation of the blur that parts a picture's grain from what it shows, in pixels of the photo."""
_SHIFTS = 8


def pixels(painted: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The decoder's float32 ``[c, S, S]`` in [-1, 1] as uint8 ``[S, S, 3]``; one channel is repeated."""
    levels = np.rint(np.clip((painted + 1) / 2, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels.transpose(1, 2, 0), (*levels.shape[1:], 3)))


def composite(
    photo: NDArray[np.uint8],
    painted: NDArray[np.uint8],
    label: NDArray[np.bool_],
    *,
    exact: bool = False,
    rim: Sequence[float] = (),
    pixel: float = 1.0,
) -> NDArray[np.uint8]:
    """``photo`` uint8 ``[H, W, 3]`` with ``painted`` uint8 ``[S, S, 3]`` in place of its labelled pixels.

    All paint on ``label`` bool ``[H, W]``, a linear ramp around it, and beyond ``2 * FEATHER`` pixels the bytes of
    the photograph. ``exact``: there is no ramp, and the paint gets the photograph's grain (`grain_of`). So a
    segmentation network learns outlines where they were drawn, and cannot tell a defect by its being smooth. With a
    ``rim``, paint fades out beyond the label as it says instead; ``pixel`` is how many pixels of the photograph one
    of the network is.
    """
    return _over(photo, photo, painted, label, label, exact=exact, rim=rim, pixel=pixel)


def _over(
    under: NDArray[np.uint8],
    photo: NDArray[np.uint8],
    painted: NDArray[np.uint8],
    label: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    *,
    exact: bool,
    rim: Sequence[float],
    pixel: float,
) -> NDArray[np.uint8]:
    """As `composite`, over what is ``under`` the paint: ``photo``, or that with other paint in it.

    The grain is the untouched photograph's, from beyond all that is ``labelled``.
    """
    result = under.copy()
    if not label.any():
        return result
    reach = max(2 * FEATHER, math.ceil((len(rim) + 1) * pixel))
    near = _surroundings(label, reach)
    enlarged = np.asarray(Image.fromarray(painted).resize(label.shape[::-1], Image.Resampling.BICUBIC))
    if exact:
        enlarged = np.clip(enlarged + grain_of(photo, enlarged, label, labelled, reach), 0, 255)
    if rim:
        alpha = fading(label[near], rim, pixel)
    else:
        alpha = label[near].astype(np.float32) if exact else _ramp_around(label[near])
    alpha = alpha[..., None]
    result[near] = np.rint((1 - alpha) * under[near] + alpha * enlarged[near])
    return result


def _ramp_around(label: NDArray[np.bool_]) -> NDArray[np.float32]:
    mask = Image.fromarray(label.astype(np.uint8) * 255)
    # Blurring the label grown by the blur's own radius leaves the label itself at full strength.
    blurred = mask.filter(ImageFilter.MaxFilter(2 * FEATHER + 1)).filter(ImageFilter.BoxBlur(FEATHER))
    return np.asarray(blurred, dtype=np.float32) / np.float32(255)


def fading(label: NDArray[np.bool_], rim: Sequence[float], pixel: float) -> NDArray[np.float32]:
    """The share of the paint that is kept, ``[H, W]``: all on the label, then falling along ``rim`` to nothing."""
    distance = ndimage.distance_transform_edt(~label) / pixel
    return np.asarray(np.interp(distance, np.arange(len(rim) + 2), (1.0, *rim, 0.0)), dtype=np.float32)


def pasted(
    photo: NDArray[np.uint8],
    regions: Sequence[Region],
    painted: Sequence[NDArray[np.uint8]],
    *,
    exact: bool,
    rim: Sequence[float] = (),
    channels: int = 3,
) -> NDArray[np.uint8]:
    """``photo`` uint8 ``[H, W, 3]`` with each of its regions composited with its own ``painted`` ``[S, S, 3]``.

    Regions of a group are pieces of one defect: their pictures become one first (`stage_rt.images.joining`). What
    networks of one of ``channels`` painted changes the luminance alone (`stage_rt.images.luminance`).
    """
    if channels == 1:
        return tinted(photo, _pasted(luminance(photo), regions, painted, exact=exact, rim=rim))
    return _pasted(photo, regions, painted, exact=exact, rim=rim)


def _pasted(
    photo: NDArray[np.uint8],
    regions: Sequence[Region],
    painted: Sequence[NDArray[np.uint8]],
    *,
    exact: bool,
    rim: Sequence[float],
) -> NDArray[np.uint8]:
    result, labelled = photo.copy(), np.zeros(photo.shape[:2], dtype=np.bool_)
    for region in regions:
        labelled[region.window] |= region.own
    pairs = zip(regions, painted, strict=True)
    for _, members in groupby(pairs, key=lambda pair: pair[0].group):
        pieces = list(members)
        window, levels, label = joined(result, pieces)
        pixel = float(np.median([max(region.label.shape) / len(picture) for region, picture in pieces]))
        result[window] = _over(
            result[window],
            photo[window],
            levels,
            label,
            labelled[window],
            exact=exact,
            rim=rim,
            pixel=pixel,
        )
    return result


def grain_of(
    photo: NDArray[np.uint8],
    enlarged: NDArray[np.uint8],
    label: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    reach: int = 2 * FEATHER,
) -> NDArray[np.float32]:
    """What the photograph's fine texture has and the painted picture has not, for the labelled pixels.

    ``photo`` and ``enlarged`` are uint8 ``[H, W, 3]`` and show the same surface beyond all that is ``labelled`` bool
    ``[H, W]``, of which ``label`` is one defect: there their difference, less its smooth part, is the grain that the
    autoencoder and the change of size lost. It is moved from there under the label as one piece, so that its
    structure stays. So many pixels beyond the label as ``reach`` says are painted too.

    Returns:
        Grey levels float32 ``[H, W, 1]``; 0 where no move finds grain.
    """
    lost = photo.mean(axis=2, dtype=np.float32) - enlarged.mean(axis=2, dtype=np.float32)
    lost -= ndimage.gaussian_filter(lost, GRAIN)
    painted = ndimage.binary_dilation(label, iterations=reach)
    nothing = ndimage.binary_dilation(labelled, iterations=reach)
    lost[nothing] = 0
    height, width = label.shape
    rows, columns = np.nonzero(painted)
    best, fewest = (0, 0), len(rows) + 1
    for step in range(1, _SHIFTS * _SHIFTS):
        down, right = step // _SHIFTS * height // _SHIFTS, step % _SHIFTS * width // _SHIFTS
        overlap = int(nothing[(rows + down) % height, (columns + right) % width].sum())
        if overlap < fewest:
            best, fewest = (down, right), overlap
    moved = np.roll(lost, (-best[0], -best[1]), axis=(0, 1))
    return np.where(painted, moved, np.float32(0))[..., None]


def _surroundings(label: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(label.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )
