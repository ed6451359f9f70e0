"""Squares around the parts of a label, cut from a photograph at its own scale so that small defects stay visible.

A network sees ``S x S`` pixels. A whole photograph squeezed into them loses what is a few pixels wide; a square
around it does not. Where a square would be longer than the photograph it ends at the photograph's border, and is
stretched as a whole photograph is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stage_rt.images.labels import in_blocks
from stage_rt.spec import RegionView

MOST = 256
"""The most regions of one photograph; with more, parts of its label are joined over larger gaps."""
GREATEST_GROWTH = 2.0
"""Regions that overlap become one unless its side were longer than this many times the shorter of theirs."""

_Span = tuple[int, int]
_Window = tuple[slice, slice]


@dataclass(frozen=True)
class Region:
    """A window of a photograph and, in ``label`` bool ``[h, w]``, what is to be painted in it."""

    window: _Window
    label: NDArray[np.bool_]


def regions(label: NDArray[np.bool_], view: RegionView | None) -> list[Region]:
    """The regions of a label bool ``[H, W]``, in reading order of what they are for.

    Every labelled pixel belongs to exactly one. Without a ``view``, or without anything labelled, there is one: the
    whole photograph.
    """
    if view is None or not label.any():
        return [Region((slice(0, label.shape[0]), slice(0, label.shape[1])), label)]
    parts = _parts(label, max(view.least // 8, 1))
    joined = _joined([_Group((number,), *spans) for number, spans in parts.spans.items()], label.shape, view)
    found = []
    for group in joined:
        window = square(group.rows, group.columns, label.shape, view)
        found.append(Region(window, label[window] & np.isin(parts.at(window), group.parts)))
    return found


def square(rows: _Span, columns: _Span, shape: tuple[int, ...], view: RegionView) -> _Window:
    """The window of a label that spans ``rows`` and ``columns`` (first, end) of a photograph ``[H, W]``.

    A square with the view's context on each side, moved into the photograph and ended at its borders.
    """
    extent = max(rows[1] - rows[0], columns[1] - columns[0])
    side = max(round(extent * (1 + 2 * view.context)), view.least)
    return _placed(rows, side, shape[0]), _placed(columns, side, shape[1])


def _placed(span: _Span, side: int, length: int) -> slice:
    side = min(side, length)
    start = min(max((span[0] + span[1] - side) // 2, 0), length - side)
    return slice(start, start + side)


@dataclass(frozen=True)
class _Parts:
    """A label's parts, numbered from 1 on a grid of blocks of pixels, and the rows and columns that each spans."""

    block: int
    grid: NDArray[np.int32]
    spans: dict[int, tuple[_Span, _Span]]

    def at(self, window: _Window) -> NDArray[np.int32]:
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
        parts.spans[number] = (_span(inside, 0, window), _span(inside, 1, window))
    return parts


def _span(inside: NDArray[np.bool_], axis: int, window: _Window) -> _Span:
    hit = np.flatnonzero(inside.any(axis=1 - axis)) + window[axis].start
    return int(hit[0]), int(hit[-1]) + 1


@dataclass(frozen=True)
class _Group:
    """Parts that share a region, and the rows and columns that they span together."""

    parts: tuple[int, ...]
    rows: _Span
    columns: _Span

    def with_(self, other: "_Group") -> "_Group":
        rows, columns = (
            (min(a[0], b[0]), max(a[1], b[1]))
            for a, b in ((self.rows, other.rows), (self.columns, other.columns))
        )
        return _Group((*self.parts, *other.parts), rows, columns)


def _joined(groups: list[_Group], shape: tuple[int, ...], view: RegionView) -> list[_Group]:
    """Groups whose squares overlap made one, as long as a defect's scale is not lost by it."""

    def side(group: _Group) -> int:
        rows, columns = square(group.rows, group.columns, shape, view)
        return int(max(rows.stop - rows.start, columns.stop - columns.start))

    def overlap(a: _Group, b: _Group) -> bool:
        pairs = zip(
            square(a.rows, a.columns, shape, view), square(b.rows, b.columns, shape, view), strict=True
        )
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
