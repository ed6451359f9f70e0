"""What was painted, put into the photograph it belongs to."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

FEATHER = 2
"""Half the width of the ramp around a label in which photo and paint are mixed, in pixels of the photo."""


def pixels(painted: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The decoder's float32 ``[c, S, S]`` in [-1, 1] as uint8 ``[S, S, 3]``; one channel is repeated."""
    levels = np.rint(np.clip((painted + 1) / 2, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels.transpose(1, 2, 0), (*levels.shape[1:], 3)))


def composite(
    photo: NDArray[np.uint8], painted: NDArray[np.uint8], label: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """``photo`` uint8 ``[H, W, 3]`` with ``painted`` uint8 ``[S, S, 3]`` in place of its labelled pixels.

    All paint on ``label`` bool ``[H, W]``, a linear ramp around it, and beyond ``2 * FEATHER`` pixels the
    bytes of the photograph.
    """
    result = photo.copy()
    if not label.any():
        return result
    near = _surroundings(label, 2 * FEATHER)
    enlarged = np.asarray(Image.fromarray(painted).resize(label.shape[::-1], Image.Resampling.BICUBIC))
    mask = Image.fromarray(label[near].astype(np.uint8) * 255)
    # Blurring the label grown by the blur's own radius leaves the label itself at full strength.
    grown = mask.filter(ImageFilter.MaxFilter(2 * FEATHER + 1))
    alpha = np.asarray(grown.filter(ImageFilter.BoxBlur(FEATHER)), dtype=np.float32)[..., None] / 255
    result[near] = np.rint((1 - alpha) * photo[near] + alpha * enlarged[near])
    return result


def _surroundings(label: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(label.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )
