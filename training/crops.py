"""Crops around real defects and of good surface, as a model that is to paint regions must have seen them."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stage_rt.images.regions import regions, square
from stage_rt.spec import RegionView

CROPS_A_TYPE = 800
"""About how many crops are cut of a defect type and of good surface."""
MOST_CROPS = 24
"""The most crops of one region: more would be copies of one another."""
CONTEXT_JITTER = (0.6, 1.6)
"""Range of the factor that the view's context, and the smallest side, are changed by."""

Crop = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def crops_a_region(count: int) -> int:
    """How many crops are cut of each of ``count`` regions."""
    return min(max(-(-CROPS_A_TYPE // max(count, 1)), 1), MOST_CROPS)


def around_defects(
    photo: NDArray[np.uint8],
    label: NDArray[np.bool_],
    view: RegionView,
    crops: int,
    rng: np.random.Generator,
    *,
    turn: bool,
) -> Iterator[Crop]:
    """``crops`` windows or more of a photograph uint8 ``[H, W, 3]`` around what each region of its label keeps.

    Context and place vary, so that the defect is not always in the middle; everything labelled in a window is
    labelled in the crop. Windows are mirrored, and turned by quarters if ``turn``.
    """
    found = regions(label, view)
    pieces = Counter(region.group for region in found)
    for region in found:
        hit = np.nonzero(region.own)
        rows, columns = (
            (int(axis.min()) + part.start, int(axis.max()) + 1 + part.start)
            for axis, part in zip(hit, region.window, strict=True)
        )
        for _ in range(-(-crops // pieces[region.group])):
            factor = rng.uniform(*CONTEXT_JITTER)
            wider = view.model_copy(
                update={"context": view.context * factor, "least": max(round(view.least * factor), 8)}
            )
            window = _moved(square(rows, columns, label.shape, wider), (rows, columns), label.shape, rng)
            yield _posed(photo[window], label[window], rng, turn=turn)


def of_surface(
    photo: NDArray[np.uint8], side: int, crops: int, rng: np.random.Generator, *, turn: bool
) -> Iterator[Crop]:
    """``crops`` windows of about ``side`` pixels anywhere in a good photograph uint8 ``[H, W, 3]``."""
    for _ in range(crops):
        jittered = side * rng.uniform(*CONTEXT_JITTER)
        window = tuple(_anywhere(round(min(jittered, length)), length, rng) for length in photo.shape[:2])
        part = photo[window]
        yield _posed(part, np.zeros(part.shape[:2], dtype=np.bool_), rng, turn=turn)


def _moved(
    window: tuple[slice, slice],
    spans: tuple[tuple[int, int], tuple[int, int]],
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[slice, slice]:
    """The window up to half as far away as it still holds the label and stays in the photograph."""
    placed = []
    for part, (first, end), length in zip(window, spans, shape, strict=True):
        side = part.stop - part.start
        low, high = max(end - side, 0), max(min(first, length - side), 0)
        start = int(rng.integers((low + part.start) // 2, (high + part.start) // 2 + 1))
        placed.append(slice(start, start + side))
    return placed[0], placed[1]


def _anywhere(side: int, length: int, rng: np.random.Generator) -> slice:
    start = int(rng.integers(0, length - side + 1))
    return slice(start, start + side)


def _posed(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], rng: np.random.Generator, *, turn: bool
) -> Crop:
    quarters = int(rng.integers(4)) if turn else 0
    if rng.random() < 0.5:
        photo, label = photo[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(np.rot90(photo, quarters)), np.ascontiguousarray(np.rot90(label, quarters))
