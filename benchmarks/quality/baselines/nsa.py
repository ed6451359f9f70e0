"""NSA (Schlueter et al., ECCV 2022): a part of another photograph, resized and blended in by Poisson's equation."""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SCALES = (0.7, 1.3)
MARGIN = 2
"""Pixels around a label that the blending sees; its own border it must not touch."""


def paint(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], other: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """See `Baseline`; each connected part of the label gets a part of its own (Perez et al., SIGGRAPH 2003)."""
    result = photo.copy()
    parts, _ = ndimage.label(label, structure=np.ones((3, 3)))
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[rows, columns] == number
        patch = _patch(other, part.shape, rng)
        result = _blended(result, patch, part, rows.start, columns.start, rng)
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
    # Grown by a pixel, so that paint meets the photograph just outside the label, and OpenCV can do a single one.
    padded = ndimage.binary_dilation(np.pad(part, MARGIN), np.ones((3, 3))).astype(np.uint8) * 255
    source = np.pad(patch, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")
    around = MARGIN + 1
    canvas = np.pad(photo, ((around, around), (around, around), (0, 0)), mode="reflect")
    # OpenCV puts the middle of the mask's bounding box, which is the whole of it, at this point.
    height, width = part.shape
    centre = (left + around + width // 2, top + around + height // 2)
    way = cv2.NORMAL_CLONE if rng.random() < 0.5 else cv2.MIXED_CLONE
    done = cv2.seamlessClone(source, canvas, padded, centre, way)
    return np.asarray(done[around:-around, around:-around], dtype=np.uint8)
