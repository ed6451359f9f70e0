"""Labels as parts with boxes and outlines that give back every pixel.

An outline runs along the borders of pixels. A hole is reached by a cut of no width, there and back, so that one
outline is the whole part: polygons of COCO and YOLO cannot say what is a hole.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_EIGHT = np.ones((3, 3), dtype=bool)
# Directions (x, y), y down, in the order of right turns; the pixel on the right of an edge that leaves a corner.
_AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))
_RIGHT = ((0, 0), (-1, 0), (-1, -1), (0, -1))


Corner = tuple[int, int]


class Part(NamedTuple):
    """One connected part (8 neighbours) of a label, bool ``[h, w]``, whose corner lies at ``(x, y)``."""

    x: int
    y: int
    label: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels."""
        height, width = self.label.shape
        return self.x, self.y, width, height


class Edge(NamedTuple):
    """A step of an outline: the corner of pixels it starts from, and the labelled pixel it runs along."""

    corner: Corner
    pixel: tuple[int, int]


def parts(label: NDArray[np.bool_]) -> Iterator[Part]:
    """The connected parts of a label, bool ``[H, W]``, from the top."""
    numbers, _ = ndimage.label(label, _EIGHT)
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), start=1):
        yield Part(columns.start, rows.start, numbers[rows, columns] == number)


def corners(part: Part) -> NDArray[np.int64]:
    """The outline ``[n, 2]`` as (x, y) of corners of pixels: what a raster of exact areas needs."""
    path = np.array([edge.corner for edge in outline(part.label)], dtype=np.int64)
    return np.asarray(path[_turning(path)] + (part.x, part.y))


def points(part: Part) -> NDArray[np.float64]:
    """The outline ``[n, 2]`` as points inside the pixels along it, which round and truncate to those pixels.

    Readers of YOLO's files do either before they fill a polygon with its border.
    """
    edges = outline(part.label)
    pixel = np.array([edge.pixel for edge in edges])
    side = np.array([edge.corner for edge in edges]) - pixel
    path = pixel + np.where(side > 0, 0.4, 0.1)
    return np.asarray(path[_turning(path)] + (part.x, part.y))


def outline(label: NDArray[np.bool_]) -> list[Edge]:
    """The closed outline of a connected part bool ``[h, w]``, clockwise, holes included."""
    inside = np.pad(label, 1)
    whole, *holes = sorted(_loops(_edges(inside)), key=lambda loop: min(edge.corner[::-1] for edge in loop))
    detours = {}
    for hole in holes:
        start = min(range(len(hole)), key=lambda n: hole[n].corner[::-1])
        x, low = hole[start].corner
        high = low
        while inside[high, x + 1]:
            high -= 1
        down = [Edge((x, y), (x, y)) for y in range(high, low)]
        up = [Edge((x, y + 1), (x, y)) for y in reversed(range(high, low))]
        # What ends the column above a hole's highest corner is higher than the hole: cuts lead to no circle.
        detours[Edge((x, high), (x, high))] = [*down, *hole[start:], *hole[:start], *up]
    return _joined(whole, detours)


def _joined(whole: list[Edge], detours: dict[Edge, list[Edge]]) -> list[Edge]:
    """The outline with each of ``detours``, which may have some of their own, before the edge that it is known by."""
    path: list[Edge] = []
    ways = [iter(whole)]
    while ways:
        for edge in ways[-1]:
            # A cut begins as the edge it leaves from: the second time that is the edge itself.
            if (detour := detours.pop(edge, None)) is not None:
                ways.append(iter([*detour, edge]))
                break
            path.append(edge)
        else:
            ways.pop()
    return path


def _loops(leaving: Mapping[Corner, Collection[int]]) -> Iterator[list[Edge]]:
    """The outer outline and those of holes, with the label on their right."""
    every = [(corner, way) for corner, ways in leaving.items() for way in ways]
    waiting = set(every)
    for corner, direction in every:
        loop = []
        while (corner, direction) in waiting:
            waiting.remove((corner, direction))
            (dx, dy), (rx, ry) = _AHEAD[direction], _RIGHT[direction]
            loop.append(Edge(corner, (corner[0] + rx, corner[1] + ry)))
            corner = (corner[0] + dx, corner[1] + dy)
            # To the left where two pixels meet in a corner, so that they stay one part.
            turns = ((direction + turn) % 4 for turn in (-1, 0, 1))
            direction = next(turn for turn in turns if turn in leaving[corner])
        if loop:
            yield loop


def _edges(inside: NDArray[np.bool_]) -> dict[Corner, list[int]]:
    """The directions in which edges leave the corners of a label that is padded by one."""
    # Around a corner: south-east, south-west, north-west, north-east.
    around = (inside[1:, 1:], inside[1:, :-1], inside[:-1, :-1], inside[:-1, 1:])
    found: dict[Corner, list[int]] = {}
    for direction in range(4):
        right, left = around[direction], around[direction - 1]
        ys, xs = np.nonzero(right & ~left)
        for corner in zip(xs.tolist(), ys.tolist(), strict=True):
            found.setdefault(corner, []).append(direction)
    return found


def _turning(path: NDArray[np.number]) -> NDArray[np.bool_]:
    """Which points of a closed path ``[n, 2]`` do not lie on a straight line between their neighbours."""
    before, after = path - np.roll(path, 1, axis=0), np.roll(path, -1, axis=0) - path
    straight = before[:, 0] * after[:, 1] == before[:, 1] * after[:, 0]
    onward = (before * after).sum(axis=1) > 0
    return np.asarray(~(straight & onward))
