"""More labels than there are masks: those given, moved, turned, scaled and joined, inside the object.

A label is a function of the run's seed and the sample's number alone, so a run can grow or be resumed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stage_rt.kernels import philox_words

SCALES = (0.7, 1.4)
"""Smallest and largest factor a mask's sides are multiplied by."""
JOINED = 0.25
"""Share of labels that are made of two masks."""
PLACES = 24
"""Places, turns and sizes tried for one that lies inside the object; each time the largest size is smaller."""

DRAWS = 64
"""Pixels drawn until one lies in the object."""

# Words of the noise generator that no step draws (`stage_rt.run.pairing` has two more).
_CHOICE, _PLACE = 66, 67

Label = NDArray[np.bool_]


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


def partner(seed: int, sample: int, count: int) -> int | None:
    """Which of ``count`` masks, if any, a sample's own is to be joined with."""
    dice = Dice(seed, sample, _CHOICE)
    return int(dice() * count) if dice() < JOINED else None


def placed(label: Label, inside: Label, dice: Dice) -> Label:
    """A label somewhere else in the object, turned, mirrored and scaled.

    Args:
        label: bool ``[h, w]``, something labelled; at the scale of the photograph.
        inside: bool ``[H, W]``, the object in the photograph, somewhere true.
        dice: draws turn, scale and place.

    Returns:
        bool ``[H, W]``, labelled inside the object only. If the label fits nowhere it is cut off at the object's
        outline, where most of it lies inside.
    """
    cut = label[ndimage.find_objects(label.astype(np.uint8))[0]]
    best = _Put((slice(0, 0), slice(0, 0)), cut[:0, :0], -1.0)
    for place in range(PLACES):
        largest = SCALES[1] - (SCALES[1] - SCALES[0] / 2) * place / PLACES
        shape = _posed(
            cut, dice.between(0, 360), dice.between(min(SCALES[0], largest), largest), dice() < 0.5
        )
        best = max(best, _put(shape, _somewhere(inside, dice), inside), key=lambda put: put.share)
        if best.share == 1:
            break
    result = np.zeros_like(inside)
    result[best.window] = best.label
    if not best.label.any():
        result[_first(inside)] = True
    return result


def _posed(cut: Label, degrees: float, scale: float, mirrored: bool) -> Label:
    """A cut-out label turned about its centre and scaled; never empty."""
    turned = ndimage.rotate(
        np.pad(cut[:, ::-1] if mirrored else cut, 1).astype(np.float32), degrees, order=1, reshape=True
    )
    sized: Label = ndimage.zoom(turned, scale, order=1, grid_mode=True, mode="grid-constant") >= 0.5
    if not sized.any():
        return np.ones((1, 1), dtype=np.bool_)
    return np.asarray(sized[ndimage.find_objects(sized.astype(np.uint8))[0]])


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
    """What is left of a shape in a window of the photograph, and its share of the shape."""

    window: tuple[slice, slice]
    label: Label
    share: float


def _put(shape: Label, centre: tuple[int, int], inside: Label) -> _Put:
    """The shape around a pixel, without what is outside of the object."""
    (top, height), (left, width) = (
        (middle - length // 2, length) for length, middle in zip(shape.shape, centre, strict=True)
    )
    window = (
        slice(max(top, 0), min(top + height, inside.shape[0])),
        slice(max(left, 0), min(left + width, inside.shape[1])),
    )
    kept = shape[window[0].start - top : window[0].stop - top, window[1].start - left : window[1].stop - left]
    kept = kept & inside[window]
    return _Put(window, kept, float(kept.sum() / shape.sum()))
