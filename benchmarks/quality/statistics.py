"""Means over seeds, and whether two rows differ: intervals of paired differences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .metrics import Counts, Floats, iou

RESAMPLES = 100_000
"""Draws: the ends of an interval of some points are then right to about 0.03."""
AT_ONCE = 5000
LEVEL = 0.95
FEWEST_DEFECTS = 5
"""Defects of every class that a test must show for anything to be told: of fewer, drawn again, hardly one differs."""


class Difference(NamedTuple):
    """A difference of mean IoU in points and the interval it lies in (`LEVEL`).

    ``told_apart`` is whether it may be called one: that is without 0, more than one segmenter was asked, and the
    test shows `FEWEST_DEFECTS` of every class.
    """

    points: float
    low: float
    high: float
    told_apart: bool


def mean_iou(counts: Counts) -> Floats:
    """Mean IoU over the defect classes of matrices ``[..., N, classes, classes]``, in points.

    A class that is neither there nor found has none; NaN where that is so of all.
    """
    return _mean_iou(counts.sum(axis=-3))


def _mean_iou(sums: NDArray[np.number]) -> Floats:
    each = iou(sums)[..., 1:]
    known = ~np.isnan(each)
    total, count = np.where(known, each, 0).sum(axis=-1), known.sum(axis=-1)
    return np.asarray(100 * np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


class Drawn:
    """The rows of an evaluation on tests drawn again, the same for all.

    A paired bootstrap (Efron and Tibshirani, 1993, chapter 8) over what the tests' pictures show, drawn again with
    replacement, for all rows and splits alike, and over the seeds of each row. A few seeds drawn again vary less
    than those of another evaluation would: their part is widened to what a t interval of as many says. Photographs of
    one defect, whose ``subjects`` are one number, are drawn together, in whatever split they test: they are one thing
    that a segmenter finds or does not. A draw in which a split does not show every class is passed over: of one that
    is not there a single false pixel is an IoU of 0. The splits themselves are not drawn again: what is said is said
    of them.

    Args:
        rows: by name, int64 ``[seeds, N, C, C]`` of each split, of which there may be one; all of as many seeds.
        subjects: of each split numbers ``[N]`` of what its pictures show, the same for the same thing in every split.
    """

    def __init__(
        self, rows: Mapping[str, Sequence[Counts]], subjects: Sequence[NDArray[np.integer]], seed: int = 0
    ) -> None:
        things = np.unique(np.concatenate(list(subjects)))
        sums = {
            name: [_by_subject(one, shown, things) for one, shown in zip(splits, subjects, strict=True)]
            for name, splits in rows.items()
        }
        first = next(iter(sums.values()))
        seeds = [len(each) for each in first]
        shown = np.stack([one[0].sum(axis=-1)[:, 1:] for one in first])
        self._enough = min(seeds) > 1 and bool(((shown > 0).any(axis=0).sum(axis=0) >= FEWEST_DEFECTS).all())
        self._points = {
            name: float(np.mean([mean_iou(one).mean() for one in splits])) for name, splits in rows.items()
        }
        wider = _wider(seeds)
        # A stream for each row: what is said of two does not depend on which others there are.
        streams = {name: np.random.default_rng([seed, *name.encode()]) for name in rows}
        draws: dict[str, list[Floats]] = {name: [] for name in rows}
        for weights in _weights(len(things), np.random.default_rng(seed)):
            whole = (np.einsum("rt,stc->rsc", weights, shown) > 0).all(axis=(1, 2))
            for name, splits in sums.items():
                each = [_redrawn(one, weights, streams[name], wider) for one in splits]
                draws[name].append(np.where(whole, np.mean(each, axis=0), np.nan))
        self._draws = {name: np.concatenate(each) for name, each in draws.items()}

    def difference(self, row: str, other: str) -> Difference:
        """How much better one row is than another in the mean over the splits; the other way round it is as much
        worse."""
        drawn = self._draws[row] - self._draws[other]
        low, high = (float(end) for end in np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        points = self._points[row] - self._points[other]
        return Difference(points, low, high, told_apart=self._enough and (low > 0 or high < 0))


def _weights(things: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each thing is drawn, ``[draws, things]``, some draws at once."""
    for start in range(0, RESAMPLES, AT_ONCE):
        count = min(AT_ONCE, RESAMPLES - start)
        yield rng.multinomial(things, np.full(things, 1 / things), size=count).astype(np.float64)


def _redrawn(sums: Counts, weights: Floats, rng: np.random.Generator, wider: float) -> Floats:
    """The mean over seeds of a row's mean IoU on each drawn test ``[draws]``, of seeds drawn again."""
    seeds, things, classes, _ = sums.shape
    flat = sums.astype(np.float64).swapaxes(0, 1).reshape(things, -1)
    each = _mean_iou((weights @ flat).reshape(len(weights), seeds, classes, classes))
    again = rng.integers(seeds, size=each.shape)
    mean = each.mean(axis=1)
    return np.asarray(mean + wider * (np.take_along_axis(each, again, axis=1).mean(axis=1) - mean))


def _wider(seeds: Sequence[int]) -> float:
    """What the deviation of a mean of so many seeds of each row and split, drawn again, falls short by."""
    fewest = min(seeds)
    if fewest == 1:
        return 1.0
    end, free = (1 + LEVEL) / 2, sum(2 * each - 2 for each in seeds)
    return float(np.sqrt(fewest / (fewest - 1)) * stats.t.ppf(end, free) / stats.norm.ppf(end))


def _by_subject(counts: Counts, subjects: NDArray[np.integer], things: NDArray[np.integer]) -> Counts:
    """Sums of the pictures of each of ``things``, 0 where there are none: ``[seeds, things, classes, classes]``."""
    sums = np.zeros((len(things), counts.shape[0], *counts.shape[2:]), counts.dtype)
    np.add.at(sums, np.searchsorted(things, subjects), counts.swapaxes(0, 1))
    return sums.swapaxes(0, 1)
