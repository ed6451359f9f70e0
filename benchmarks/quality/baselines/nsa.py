"""NSA (Schlueter et al., ECCV 2022): a part of another photograph, resized and blended in by Poisson's equation."""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SCALES = (0.7, 1.3)
GROWN = 4
"""Pixels by which a label is grown for the blending. OpenCV gives the outermost three of a mask to the photograph:
labels up to four pixels wide, as cracks have, were left as they were."""
MARGIN = GROWN + 2
"""Pixels around a label that the blending sees; its own border it must not touch."""


def paint(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], other: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """See `Baseline`; each connected part of the label gets a part of its own (Perez et al., SIGGRAPH 2003)."""
    result = photo.copy()
    parts, _ = ndimage.label(label, structure=np.ones((3, 3)))
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[rows, columns] == number
        padded = np.pad(part, MARGIN)
        patch = _patch(other, padded.shape, rng)
        result = _blended(result, patch, padded, rows.start, columns.start, rng)
    result[~label] = photo[~label]
    return result


def _patch(other: NDArray[np.uint8], shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Any part of a photograph, resized by a random factor to ``shape`` ``[h, w, 3]``."""
    sides = [
        min(max(round(length / rng.uniform(*SCALES)), 1), most)
        for length, most in zip(shape, other.shape, strict=False)
    ]
    corner = [int(rng.integers(0, most - side + 1)) for side, most in zip(sides, other.shape, strict=False)]
    part = other[corner[0] : corner[0] + sides[0], corner[1] : corner[1] + sides[1]]
    return np.asarray(cv2.resize(part, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _blended(
    photo: NDArray[np.uint8],
    patch: NDArray[np.uint8],
    part: NDArray[np.bool_],
    top: int,
    left: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """A photograph with a patch under a part of its label, both with `MARGIN` around; the part begins at a pixel."""
    grown = ndimage.binary_dilation(part, np.ones((3, 3)), iterations=GROWN).astype(np.uint8) * 255
    around = MARGIN + 1
    canvas = np.pad(photo, ((around, around), (around, around), (0, 0)), mode="reflect")
    # OpenCV puts the middle of the mask's bounding box, which is that of the part and `GROWN` around, at this point.
    height, width = part.shape[0] - 2 * MARGIN, part.shape[1] - 2 * MARGIN
    centre = (left + around + width // 2, top + around + height // 2)
    way = cv2.NORMAL_CLONE if rng.random() < 0.5 else cv2.MIXED_CLONE
    done = cv2.seamlessClone(patch, canvas, grown, centre, way)
    return np.asarray(done[around:-around, around:-around], dtype=np.uint8)
