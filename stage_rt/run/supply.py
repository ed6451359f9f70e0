"""More labels than there are masks: those given, moved, turned, scaled and joined, inside the object.

What lies at a border of the photograph stays there: a chip is at an edge, a crack runs through, and a model that
learned them there paints nothing likely elsewhere. It is mirrored to the opposite border only if some mask lies at
that: a segmenter that is shown defects at an end of the part that never has one finds defects there. A label is a
function of the masks, the run's seed and the sample's number alone, so a run can grow or be resumed.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, hypot
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stage_rt.images.shapes import spread
from stage_rt.kernels import philox_words

SCALES = (0.7, 1.4)
"""Smallest and largest factor a mask's sides are multiplied by."""
LONGER = 3.0
"""Largest factor a slender label is drawn out by along its own axis, beside its scale: how long a crack or a scratch
grows says nothing of its kind, how broad it is does."""
SLENDER = 10.0
"""Length of a label squared, in its area, from which it may be drawn out, with four deviations along its axis for its
length: of an ellipse that is the length in its mean breadth. A stroke of even breadth has 10 where it is 7.5 times as
long as broad."""
ASPECT = 1.6
"""Largest factor that the length of another label, in its breadth, grows or shrinks by, its area as it was: ten masks
of pits are ten shapes, and those of other pits are others."""
TURN = 20.0
"""Degrees to either side that a mask is turned by: how defects lie on the part is left as it is."""
NEAR = 0.03
"""Share of the photograph's side within which a mask lies at its border."""
JOINED = 0.25
"""Share of labels that are made of two masks."""
LEAST = 0.5
"""Share of a mask's own area, as it is scaled, that a label should have: what goes on beyond a border of the
photograph does not count."""
LONGEST = 1.5
"""Length of a label as it is turned and scaled, in diagonals of the photograph, beyond which what lies too far from
its place to be seen is not rendered."""
PLACES = 24
"""Places, turns and sizes tried for one that lies inside the object; each time the largest size is smaller."""

DRAWS = 64
"""Pixels drawn until one lies in the object."""

# Words of the noise generator that no step draws (`stage_rt.run.pairing` has two more).
_CHOICE, _PLACE = 66, 67

Label = NDArray[np.bool_]
Ends = tuple[tuple[bool, bool], tuple[bool, bool]]
NOWHERE: Ends = (False, False), (False, False)


class Dice:
    """Uniform numbers in [0, 1) that follow from seed and sample, and from what they are for."""

    def __init__(self, seed: int, sample: int, purpose: int = _PLACE) -> None:
        self._seed, self._sample = np.array([seed], dtype=np.uint64), np.array([sample], dtype=np.uint32)
        self._purpose = purpose
        self._numbers = self._draw()

    def __call__(self) -> float:
        """The next number."""
        return next(self._numbers)

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self()

    def _draw(self) -> Iterator[float]:
        step = 0
        while True:
            words = philox_words(self._seed, self._sample, step, self._purpose, 64)[0]
            yield from (words / 2.0**32).tolist()
            step += 1


def partners(seed: int, samples: NDArray[np.uint32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of ``counts`` masks each sample's own is to be joined with, -1 for none; all int ``[N]``."""
    seeds = np.full(len(samples), seed, dtype=np.uint64)
    joined, which = (philox_words(seeds, samples, 0, _CHOICE, 1)[:, :2] / 2.0**32).T
    return np.where(joined < JOINED, (which * counts).astype(np.int64), -1)


def ends(label: Label) -> Ends:
    """Whether a label bool ``[H, W]`` lies at the first border and at the last one, of rows and of columns."""
    found = []
    for span, length in zip(ndimage.find_objects(label.astype(np.uint8))[0], label.shape, strict=True):
        near = max(round(NEAR * length), 1)
        found.append((bool(span.start < near), bool(span.stop > length - near)))
    return found[0], found[1]


def opposite(known: Iterable[Ends]) -> tuple[bool, bool]:
    """Whether labels may be mirrored from one border to the opposite one, of rows and of columns: some of those
    ``known`` lies at each."""
    of_rows, of_columns = np.any([NOWHERE, *known], axis=0).tolist()
    return all(of_rows), all(of_columns)


def placed(label: Label, inside: Label, dice: Dice, across: tuple[bool, bool] = (False, False)) -> Label:
    """A label somewhere else in the object, turned, mirrored and scaled; at the same borders as it was.

    Args:
        label: bool ``[H, W]``, something labelled.
        inside: bool ``[H, W]``, the object in the photograph, somewhere true.
        dice: draws turn, scale and place.
        across: whether it may be mirrored to the opposite border of rows and of columns (`opposite`).

    Returns:
        bool ``[H, W]``, labelled inside the object only. If the label fits nowhere it is cut off at the object's
        outline, where most of it lies inside.
    """
    cut = _Cut.of(label)
    best = _Put((slice(0, 0), slice(0, 0)), cut.label[:0, :0], -1.0)
    for place in range(PLACES):
        largest = SCALES[1] - (SCALES[1] - SCALES[0] / 2) * place / PLACES
        scale = dice.between(min(SCALES[0], largest), largest)
        if cut.slender:
            longer = LONGER ** (dice() * (1 - place / PLACES))
        else:
            longer = ASPECT ** dice.between(-1.0, 1.0)
            scale /= longer**0.5
        degrees = dice.between(-TURN, TURN)
        mirrored = [dice() < 0.5 and (free or far) for free, far in zip(cut.free, across, strict=True)]
        shape = cut.posed(degrees, scale, mirrored, longer, inside.shape)
        best = max(best, _put(shape, _somewhere(inside, dice), inside), key=lambda put: put.share)
        if best.share == 1:
            break
    result = np.zeros_like(inside)
    result[best.window] = best.label
    if not best.label.any():
        result[_first(inside)] = True
    return result


class _Cut(NamedTuple):
    """A label cut out of its photograph.

    ``area`` is how many of its pixels are in the photograph. ``free`` says of each axis whether the label lies at
    both of its ends or at neither: then it may be mirrored wherever other labels lie.
    ``borders`` says of each axis at which of its ends the label lies, -1 or 1, or 0 for neither; ``anchors`` is the
    pixel of the cut that lies on that border. Beyond the border the label goes on as it ends there. ``through`` says
    of each axis whether the label lies at both of its ends.
    """

    label: Label
    area: float
    free: tuple[bool, ...]
    borders: tuple[int, ...]
    anchors: tuple[NDArray[np.float64], ...]
    through: tuple[bool, ...]
    slender: bool
    axis: NDArray[np.float64]

    @classmethod
    def of(cls, label: Label) -> "_Cut":
        spans, free, borders, pads = [], [], [], []
        shown = ndimage.find_objects(label.astype(np.uint8))[0]
        for span, length, (low, high) in zip(shown, label.shape, ends(label), strict=True):
            # Of one that goes through, the far end is where it was left off: it goes on from there.
            spans.append(slice(0 if low else span.start, length if high and not low else span.stop))
            free.append(low == high)
            borders.append(-1 if low else int(high))
            reach = span.stop - span.start
            pads.append((-(-reach // 2) if low else 0, -(-reach // 2) if high else 0))
        cut = label[tuple(spans)]
        places = [np.array(pad[0]) for pad in pads]
        anchors = [cls._anchor(cut, axis, border) + places for axis, border in enumerate(borders)]
        return cls(
            np.pad(cut, pads, mode="edge"),
            float(cut.sum()),
            tuple(free),
            tuple(borders),
            tuple(anchors),
            tuple(map(all, ends(label))),
            *_long_axis(cut),
        )

    @staticmethod
    def _anchor(cut: Label, axis: int, border: int) -> NDArray[np.float64]:
        """The pixel on the border, beside the middle of what lies nearest to it."""
        lines = np.flatnonzero(cut.any(axis=1 - axis))
        nearest = lines[0] if border < 0 else lines[-1]
        anchor = np.empty(2)
        anchor[axis] = 0 if border < 0 else cut.shape[axis] - 1
        anchor[1 - axis] = np.flatnonzero(cut.take(nearest, axis)).mean()
        return anchor

    def posed(
        self,
        degrees: float,
        scale: float,
        mirrored: Sequence[bool],
        longer: float,
        photo: tuple[int, ...],
    ) -> "_Cut":
        """Drawn out along its own axis, mirrored in rows and columns, turned about the middle and scaled; never
        empty.

        Of a label that is much larger than the ``photo`` of that shape only what can be seen of it.
        """
        angle, flips = np.deg2rad(degrees), np.where(mirrored, -1, 1)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        forward = scale * turn * flips @ (np.eye(2) + (longer - 1) * np.outer(self.axis, self.axis))
        whole = self._to_the_far_border(np.abs(forward), photo)
        size = np.ceil(np.abs(forward) @ whole.shape).astype(int) + 2
        middle, centre = (np.array(whole.shape) - 1) / 2, (size - 1) / 2
        anchors = [forward @ (anchor - middle) + centre for anchor in self.anchors]
        borders = [int(border * flip) for border, flip in zip(self.borders, flips, strict=True)]
        if size.max() > LONGEST * hypot(*photo):
            first, size = _in_sight(size, borders, anchors, photo)
            centre, anchors = centre - first, [anchor - first for anchor in anchors]
        back = np.linalg.inv(forward)
        shape = ndimage.affine_transform(
            np.where(whole, np.uint8(255), np.uint8(0)),
            back,
            middle - back @ centre,
            output_shape=tuple(size),
            order=1,
        )
        label = shape >= 128
        if not label.any():
            label[tuple(size // 2)] = True
        return self._replace(
            label=label, area=self.area * scale**2 * longer, borders=tuple(borders), anchors=tuple(anchors)
        )

    def _to_the_far_border(self, forward: NDArray[np.float64], photo: tuple[int, ...]) -> Label:
        """The label, and of one that goes through as much more as reaches the opposite border once it is posed.

        ``forward`` float64 ``[2, 2]`` are the absolute factors of rows and columns in the pose.
        """
        pads = [(0, 0), (0, 0)]
        for axis in np.flatnonzero(self.through):
            # However far before its anchor the far end is turned to.
            far = photo[axis] + forward[axis, 1 - axis] * self.label.shape[1 - axis]
            needed = ceil(self.anchors[axis][axis] + far / forward[axis, axis]) + 1
            pads[axis] = (0, max(needed - self.label.shape[axis], 0))
        return np.pad(self.label, pads, mode="edge")


def _in_sight(
    size: NDArray[np.int_],
    borders: Sequence[int],
    anchors: Sequence[NDArray[np.float64]],
    photo: tuple[int, ...],
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """The first row and column of a window in a posed label of some ``size``, and the window's own size.

    It goes from the border that the label lies at as far as the photograph does, or lies about where the label does
    at the other axis' border, or about the middle.
    """
    first, end = np.zeros(2, dtype=int), size.copy()
    for axis, side in enumerate(photo):
        if border := borders[axis]:
            before, after = (0.0, side) if border < 0 else (side, 0.0)
        else:
            # Its middle is put somewhere in the photograph, so that what is cut off lies outside.
            before = after = min(2 * side, LONGEST / 2 * hypot(*photo))
        known = anchors[axis if border else 1 - axis]
        middle = known[axis] if any(borders) else size[axis] / 2
        # Beyond the photograph's own last line, wherever between two lines the anchor lies.
        first[axis] = np.clip(int(middle - before) - 2, 0, size[axis] - 1)
        end[axis] = np.clip(int(middle + after) + 2, first[axis] + 1, size[axis])
    return first, end - first


def _long_axis(label: Label) -> tuple[bool, NDArray[np.float64]]:
    """Whether the parts of a label are slender, and the direction they are longest in: a unit vector of rows and
    columns. Where parts lie says nothing of that."""
    covariance, sizes = spread(label)
    spreads, axes = np.linalg.eigh(covariance)
    area = np.average(sizes, weights=sizes)
    return bool(16 * spreads[1] >= SLENDER * area), axes[:, 1]


def _somewhere(inside: Label, dice: Dice) -> tuple[int, int]:
    """A pixel of the object."""
    for _ in range(DRAWS):
        row, column = (min(int(dice() * length), length - 1) for length in inside.shape)
        if inside[row, column]:
            return row, column
    return _first(inside)


def _first(inside: Label) -> tuple[int, int]:
    row, column = divmod(int(np.argmax(inside)), inside.shape[1])
    return row, column


class _Put(NamedTuple):
    """What is left of a shape in a window of the photograph, and its share of what there should be."""

    window: tuple[slice, slice]
    label: Label
    share: float


def _put(shape: _Cut, centre: tuple[int, int], inside: Label) -> _Put:
    """The shape around a pixel, or at the object's borders, without what is outside of the object."""
    seen = ndimage.find_objects(shape.label.astype(np.uint8))[0]
    starts = [middle - (span.start + span.stop) // 2 for middle, span in zip(centre, seen, strict=True)]
    limits = [(0, length) for length in inside.shape]
    for axis in sorted((0, 1), key=lambda axis: bool(shape.borders[axis])):
        if border := shape.borders[axis]:
            first, end = starts[1 - axis] + seen[1 - axis].start, starts[1 - axis] + seen[1 - axis].stop
            edge = _edge(inside, axis, border, slice(max(first, 0), max(end, 0)))
            starts[axis] = edge - round(shape.anchors[axis][axis])
            limits[axis] = (edge, inside.shape[axis]) if border < 0 else (0, edge + 1)
    window, parts, there = [], [], []
    for border, start, (low, high), span in zip(shape.borders, starts, limits, seen, strict=True):
        first, end = max(start + span.start, low), min(start + span.stop, high)
        end = max(end, first)
        window.append(slice(first, end))
        parts.append(slice(first - start, end - start))
        there.append(parts[-1] if border else span)
    kept = shape.label[tuple(parts)] & inside[tuple(window)]
    wanted = max(float(shape.label[tuple(there)].sum()), LEAST * shape.area)
    return _Put((window[0], window[1]), kept, float(kept.sum()) / wanted)


def _edge(inside: Label, axis: int, border: int, across: slice) -> int:
    """Where the object begins along an axis, or ends, in the middle of the lines ``across``; the photograph's border
    where it is in none of them."""
    lines = np.moveaxis(inside, axis, 0)[::-border, across]
    lines = lines[:, lines.any(axis=0)]
    depth = round(float(np.median(lines.argmax(axis=0)))) if lines.shape[1] else 0
    return depth if border < 0 else inside.shape[axis] - 1 - depth
