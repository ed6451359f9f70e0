"""Squares around the parts of a label, cut from a photograph at its own scale so that small defects stay visible.

A network sees ``S x S`` pixels. A whole photograph squeezed into them loses what is a few pixels wide; a square
around it does not. Where a square would be longer than the photograph it ends at the photograph's border, and is
stretched as a whole photograph is. What is long and thin is painted in pieces, each in a square at the scale of its
width that shows where it goes on.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stage_rt.images.labels import in_blocks
from stage_rt.images.pieces import Share, Span, Window, pieces, span
from stage_rt.spec import RegionView

MOST = 256
"""The most regions of one photograph; with more, parts of its label are joined over larger gaps."""
GREATEST_GROWTH = 2.0
"""Regions that overlap become one unless its side were longer than this many times the shorter of theirs."""


@dataclass(frozen=True)
class Region:
    """A window of a photograph and, in ``label`` bool ``[h, w]``, what is to be painted in it.

    ``own`` bool ``[h, w]`` is the part of it that is kept: less where the label belongs to several pieces of the same
    ``group``. Then the photograph is divided among them, and ``share`` is this one's.
    """

    window: Window
    label: NDArray[np.bool_]
    own: NDArray[np.bool_]
    group: int = 0
    share: Window | None = None


def regions(label: NDArray[np.bool_], view: RegionView | None) -> list[Region]:
    """The regions of a label bool ``[H, W]``, in reading order of what they are for.

    Every labelled pixel is the own of exactly one. Without a ``view``, or without anything labelled, there is one:
    the whole photograph.
    """
    if view is None or not label.any():
        return [Region((slice(0, label.shape[0]), slice(0, label.shape[1])), label, label)]
    parts = _parts(label, max(view.least // 8, 1))
    joined = _joined([_Group((number,), *spans) for number, spans in parts.spans.items()], label.shape, view)
    cut = _cut(label, parts, joined, view)
    while sum(map(len, cut)) > MOST:
        view = view.model_copy(update={"least": 2 * view.least})
        cut = _cut(label, parts, joined, view)
    return [
        _region(label, parts, group, share, number, view)
        for number, (group, shares) in enumerate(zip(joined, cut, strict=True))
        for share in shares
    ]


def _cut(
    label: NDArray[np.bool_], parts: "_Parts", groups: list["_Group"], view: RegionView
) -> list[list[Share]]:
    """The pieces of every group, where they are in the photograph."""
    found = []
    for group in groups:
        window = (slice(*group.rows), slice(*group.columns))
        inside = label[window] & np.isin(parts.at(window), group.parts)
        found.append([share.shifted(group.rows[0], group.columns[0]) for share in pieces(inside, view)])
    return found


def _region(
    label: NDArray[np.bool_], parts: "_Parts", group: "_Group", share: Share, number: int, view: RegionView
) -> Region:
    window = square(share.rows, share.columns, label.shape, view)
    shown = label[window] & np.isin(parts.at(window), group.parts)
    if share.of is None:
        return Region(window, shown, shown, number)
    rows, columns = (
        slice(max(one.start - part.start, 0), max(one.stop - part.start, 0))
        for one, part in zip(share.of, window, strict=True)
    )
    own = np.zeros_like(shown)
    own[rows, columns] = shown[rows, columns]
    return Region(window, shown, own, number, share.of)


def square(rows: Span, columns: Span, shape: tuple[int, ...], view: RegionView) -> Window:
    """The window of a label that spans ``rows`` and ``columns`` (first, end) of a photograph ``[H, W]``.

    A square with the view's context on each side, moved into the photograph and ended at its borders.
    """
    extent = max(rows[1] - rows[0], columns[1] - columns[0])
    side = max(round(extent * (1 + 2 * view.context)), view.least)
    return _placed(rows, side, shape[0]), _placed(columns, side, shape[1])


def _placed(span: Span, side: int, length: int) -> slice:
    side = min(side, length)
    start = min(max((span[0] + span[1] - side) // 2, 0), length - side)
    return slice(start, start + side)


@dataclass(frozen=True)
class _Parts:
    """A label's parts, numbered from 1 on a grid of blocks of pixels, and the rows and columns that each spans."""

    block: int
    grid: NDArray[np.int32]
    spans: dict[int, tuple[Span, Span]]

    def at(self, window: Window) -> NDArray[np.int32]:
        """The number of every pixel's block in a window of the photograph."""
        rows, columns = (np.arange(part.start, part.stop) // self.block for part in window)
        return self.grid[np.ix_(rows, columns)]


def _parts(label: NDArray[np.bool_], block: int) -> _Parts:
    """Labelled pixels in the same block or in neighbouring ones belong together."""
    while True:
        grid, count = ndimage.label(in_blocks(label, block), structure=np.ones((3, 3)))
        if count <= MOST:
            break
        block *= 2
    parts = _Parts(block, grid, {})
    for number, (rows, columns) in enumerate(ndimage.find_objects(grid), start=1):
        window = (
            slice(rows.start * block, min(rows.stop * block, label.shape[0])),
            slice(columns.start * block, min(columns.stop * block, label.shape[1])),
        )
        inside = label[window] & (parts.at(window) == number)
        parts.spans[number] = (span(inside, 0, window), span(inside, 1, window))
    return parts


@dataclass(frozen=True)
class _Group:
    """Parts that share a region, and the rows and columns that they span together."""

    parts: tuple[int, ...]
    rows: Span
    columns: Span

    def with_(self, other: "_Group") -> "_Group":
        rows, columns = (
            (min(a[0], b[0]), max(a[1], b[1]))
            for a, b in ((self.rows, other.rows), (self.columns, other.columns))
        )
        return _Group((*self.parts, *other.parts), rows, columns)


def _joined(groups: list[_Group], shape: tuple[int, ...], view: RegionView) -> list[_Group]:
    """Groups whose squares overlap made one, as long as a defect's scale is not lost by it."""

    @cache
    def window(group: _Group) -> Window:
        return square(group.rows, group.columns, shape, view)

    def side(group: _Group) -> int:
        return int(max(part.stop - part.start for part in window(group)))

    def overlap(a: _Group, b: _Group) -> bool:
        pairs = zip(window(a), window(b), strict=True)
        return all(one.start < other.stop and other.start < one.stop for one, other in pairs)

    done: list[_Group] = []
    for group in groups:
        while True:
            partner = next(
                (
                    other
                    for other in done
                    if overlap(group, other)
                    and side(group.with_(other)) <= GREATEST_GROWTH * min(side(group), side(other))
                ),
                None,
            )
            if partner is None:
                break
            done.remove(partner)
            group = partner.with_(group)
        done.append(group)
    return sorted(done, key=lambda group: group.parts[0])
