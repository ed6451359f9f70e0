"""Crops around real defects and of good surface, as a model that is to paint regions must have seen them."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from stage_rt.images.regions import regions, square
from stage_rt.spec import RegionView

CROPS_A_TYPE = 800
"""About how many crops are cut of a defect type and of good surface."""
MOST_CROPS = 24
"""The most crops of one region: more would be copies of one another."""
CONTEXT_JITTER = (0.6, 1.6)
"""Range of the factor that the view's context, and the smallest side, are changed by."""
BEND_DEGREES, BEND_STRETCH, BEND_PUSH = 12.0, 0.15, 0.025
"""Most that a crop's content is turned by and stretched by along either axis, and the deviation of what is added to
its places, as a share of its side.

A small model remembers the labels it saw: on labels it never saw it paints the same type fainter (a third, measured
on cracks). No two crops of a defect have the same label so.
"""
LIGHT = 16.0
"""Most grey levels that a crop is made brighter or darker by, as if the lamp were another.

Without it the darkness of painted defects is spread further than that of those that were learned: cracks of the demo
1.25 times as far, 1.19 times with it. A factor in place of levels changes how strong defects are too: stains came out
paler by a fifth and 1.43 times as far apart.
"""
BEND_GRID = 4
"""Points along a side between which places are pushed smoothly."""

MOST_SIDE = 1024
"""Pixels of a window's side that are bent. Larger windows are made smaller first: the largest preset sees a quarter
of that, and 12 million pixels, bent, are six seconds of every crop."""

Crop = tuple[NDArray[np.uint8], NDArray[np.bool_]]


class Cut(NamedTuple):
    """A crop uint8 ``[h, w, 3]`` and its label bool ``[h, w]``, of a window of ``side`` pixels of the photograph."""

    photo: NDArray[np.uint8]
    label: NDArray[np.bool_]
    side: int


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
) -> Iterator[Cut]:
    """``crops`` windows or more of a photograph uint8 ``[H, W, 3]`` around what each region of its label keeps.

    Context and place vary, so that the defect is not always in the middle; everything labelled in a window is
    labelled in the crop. Windows are bent a little, mirrored, and turned by quarters if ``turn``.
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
            yield Cut(*_posed(*_bent(photo, label, window, rng), rng, turn=turn), _side(window))


def of_surface(
    photo: NDArray[np.uint8], side: int, crops: int, rng: np.random.Generator, *, turn: bool
) -> Iterator[Crop]:
    """``crops`` windows of about ``side`` pixels anywhere in a good photograph uint8 ``[H, W, 3]``."""
    for _ in range(crops):
        jittered = side * rng.uniform(*CONTEXT_JITTER)
        window = tuple(_anywhere(round(min(jittered, length)), length, rng) for length in photo.shape[:2])
        part, label = _bent(photo, np.zeros(photo.shape[:2], dtype=np.bool_), (window[0], window[1]), rng)
        yield _posed(part, label, rng, turn=turn)


def lit(photo: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A crop uint8 ``[h, w, 3]``, all of it up to `LIGHT` brighter or darker; what leaves 0 to 255 ends there."""
    levels = photo.astype(np.float32) + rng.uniform(-LIGHT, LIGHT)
    moved: NDArray[np.uint8] = np.rint(levels).clip(0, 255).astype(np.uint8)
    return moved


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


def _bent(
    photo: NDArray[np.uint8],
    label: NDArray[np.bool_],
    window: tuple[slice, slice],
    rng: np.random.Generator,
) -> Crop:
    """A window whose content is turned, stretched and pushed about by up to `BEND_DEGREES` and the like.

    What comes in at its sides is the photograph's own; beyond the photograph it is mirrored. As it was, if nothing
    labelled would be left. Of more than `MOST_SIDE` pixels it is made smaller first.
    """
    photo, label, window = _reduced(photo, label, window)
    size = np.array([part.stop - part.start for part in window])
    places = _bend(size, rng) + np.array([part.start for part in window])[:, None, None]
    first = np.maximum(np.floor(places.min(axis=(1, 2))).astype(int) - 3, 0)
    end = np.minimum(np.ceil(places.max(axis=(1, 2))).astype(int) + 4, label.shape)
    part = slice(first[0], end[0]), slice(first[1], end[1])
    places -= first[:, None, None]
    bent = ndimage.map_coordinates(label[part].astype(np.float32), places, order=1, mode="mirror") >= 0.5
    if label[window].any() and not bent.any():
        return photo[window], label[window]
    levels = np.stack(
        [
            ndimage.map_coordinates(channel, places, output=np.float32, order=3, mode="mirror")
            for channel in np.moveaxis(photo[part], -1, 0)
        ],
        axis=-1,
    )
    return levels.round().clip(0, 255).astype(np.uint8), bent


def _reduced(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], window: tuple[slice, slice]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[slice, slice]]:
    """A window and what lies around it, made smaller by a whole number; a pixel of which any is labelled is."""
    factor = -(-_side(window) // MOST_SIDE)
    if factor == 1:
        return photo, label, window
    # Content is turned, stretched and pushed by less than a quarter of the side.
    reach = _side(window) // 4
    first = [part.start - min(reach, part.start) // factor * factor for part in window]
    around = tuple(slice(at, part.stop + reach) for part, at in zip(window, first, strict=True))
    small = np.asarray(Image.fromarray(photo[around]).reduce(factor))
    share = np.asarray(Image.fromarray(label[around].astype(np.float32)).reduce(factor))
    rows, columns = (
        slice((part.start - at) // factor, (part.stop - at) // factor)
        for part, at in zip(window, first, strict=True)
    )
    return small, share > 0, (rows, columns)


def _side(window: tuple[slice, slice]) -> int:
    return int(max(part.stop - part.start for part in window))


def _bend(size: NDArray[np.int_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Where the pixels of a window of ``size`` come from, in pixels of it: ``[2, H, W]``."""
    strength = rng.uniform()
    angle = np.deg2rad(strength * rng.uniform(-BEND_DEGREES, BEND_DEGREES))
    stretch = np.exp(strength * rng.uniform(-BEND_STRETCH, BEND_STRETCH, size=2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * stretch
    middle = ((size - 1) / 2)[:, None, None]
    straight = np.indices(tuple(size)) - middle
    knots = rng.normal(0, strength * BEND_PUSH, (2, BEND_GRID, BEND_GRID)) * size[:, None, None]
    push = [ndimage.zoom(axis, size / BEND_GRID, order=3, grid_mode=True, mode="nearest") for axis in knots]
    bend: NDArray[np.float64] = np.einsum("ij,jhw->ihw", turn, straight) + np.stack(push) + middle
    return bend


def _posed(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], rng: np.random.Generator, *, turn: bool
) -> Crop:
    quarters = int(rng.integers(4)) if turn else 0
    if rng.random() < 0.5:
        photo, label = photo[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(np.rot90(photo, quarters)), np.ascontiguousarray(np.rot90(label, quarters))
