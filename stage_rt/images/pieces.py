"""What is long and thin, cut along its length: pieces that a square at the scale of its width can hold."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stage_rt.spec import RegionView

Span = tuple[int, int]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Share:
    """The rows and columns (first, end) that a piece's pixels span, and the window it was cut out of the label with.

    ``of`` is None where nothing was cut.
    """

    rows: Span
    columns: Span
    of: Window | None

    def shifted(self, down: int, right: int) -> "Share":
        """The same piece of a label that lies ``down`` and ``right`` in a photograph."""
        rows, columns = (
            (first + by, end + by)
            for (first, end), by in zip((self.rows, self.columns), (down, right), strict=True)
        )
        if self.of is None:
            return Share(rows, columns, None)
        of = [slice(part.start + by, part.stop + by) for part, by in zip(self.of, (down, right), strict=True)]
        return Share(rows, columns, (of[0], of[1]))


def pieces(label: NDArray[np.bool_], view: RegionView) -> list[Share]:
    """The shares of a label bool ``[h, w]`` that reaches all its borders; a single one if it is not slender.

    Its width is its area over its extent, which for a line is that of the pen.
    """
    whole = [Share((0, label.shape[0]), (0, label.shape[1]), None)]
    if view.slender is None:
        return whole
    extent = max(label.shape)
    width = int(label.sum()) / extent
    if extent <= view.slender * width:
        return whole
    reach = max(view.slender * width, view.least / (1 + 2 * view.context))
    shares = _cut(label, (slice(0, label.shape[0]), slice(0, label.shape[1])), reach)
    return shares if len(shares) > 1 else whole


def span(inside: NDArray[np.bool_], axis: int, window: Window) -> Span:
    """(first, end) of the rows or columns, by ``axis``, that hold anything of a window of a photograph."""
    hit = np.flatnonzero(inside.any(axis=1 - axis)) + window[axis].start
    return int(hit[0]), int(hit[-1]) + 1


def _cut(label: NDArray[np.bool_], window: Window, reach: float) -> list[Share]:
    """Labelled pixels of a window as pieces none of which spans more than ``reach``, as nearly alike as may be."""
    inside = label[window]
    if not inside.any():
        return []
    rows, columns = (span(inside, axis, window) for axis in (0, 1))
    (first, end), axis = max(((rows, 0), (columns, 1)), key=lambda one: one[0][1] - one[0][0])
    count = int(-(-(end - first) // reach))
    if count == 1:
        return [Share(rows, columns, window)]
    inner = (first + (end - first) * k // count for k in range(1, count))
    found = []
    for start, stop in pairwise((window[axis].start, *inner, window[axis].stop)):
        part = slice(start, stop)
        found += _cut(label, (part, window[1]) if axis == 0 else (window[0], part), reach)
    return found
