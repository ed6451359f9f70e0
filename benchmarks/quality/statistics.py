"""Means over seeds, and whether two rows differ: intervals of paired differences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .metrics import Counts, iou

RESAMPLES = 2000
LEVEL = 0.95


class Difference(NamedTuple):
    """A difference of mean IoU in points and the interval it lies in (`LEVEL`).

    ``told_apart`` is whether it may be called one: that is without 0, and more than one segmenter was asked.
    """

    points: float
    low: float
    high: float
    told_apart: bool


def mean_iou(counts: Counts) -> NDArray[np.float64]:
    """Mean IoU over the defect classes of matrices ``[..., N, classes, classes]``, in points.

    A class that is neither there nor found has none; NaN where that is so of all.
    """
    each = iou(counts.sum(axis=-3))[..., 1:]
    known = ~np.isnan(each)
    total, count = np.where(known, each, 0).sum(axis=-1), known.sum(axis=-1)
    return np.asarray(100 * np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


class Paired(NamedTuple):
    """Two rows on one test: int64 ``[seeds, N, classes, classes]`` each, of the same seeds, and numbers ``[N]`` of
    what its pictures show, the same for the same thing in every split."""

    row: Counts
    other: Counts
    subjects: NDArray[np.integer]


def difference(splits: Sequence[Paired], seed: int = 0) -> Difference:
    """How much better one row is than another in the mean over ``splits``, of which there may be one.

    A paired bootstrap (Efron and Tibshirani, 1993, chapter 8) over what the tests' pictures show, drawn again with
    replacement, for both rows and all splits alike, and over the seeds of each row. A few seeds drawn again vary less
    than those of another evaluation would: their part is widened to what a t interval of as many says. Photographs of
    one defect, whose ``subjects`` are one number, are drawn together, in whatever split they test: they are one thing
    that a segmenter finds or does not. A draw in which a split does not show every class is passed over: of one that
    is not there a single false pixel is an IoU of 0. The splits themselves are not drawn again: what is said is said
    of them.
    """
    rng = np.random.default_rng(seed)
    things = np.unique(np.concatenate([one.subjects for one in splits]))
    rows = [_by_subject(one.row, one.subjects, things) for one in splits]
    others = [_by_subject(one.other, one.subjects, things) for one in splits]
    seeds = [len(each) for each in rows]
    draws, wider = np.empty(RESAMPLES), _wider(seeds)
    for n in range(RESAMPLES):
        picked = [rng.integers(each, size=(2, each)) for each in seeds]
        p = rng.integers(len(things), size=len(things))
        drawn = [
            _drawn(one[:, p], two[:, p], again, wider)
            for one, two, again in zip(rows, others, picked, strict=True)
        ]
        draws[n] = np.mean(drawn)
    low, high = (float(end) for end in np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    points = float(np.mean([(mean_iou(one.row) - mean_iou(one.other)).mean() for one in splits]))
    return Difference(points, low, high, told_apart=min(seeds) > 1 and (low > 0 or high < 0))


def _drawn(row: Counts, other: Counts, again: NDArray[np.integer], wider: float) -> float:
    """The difference on a drawn test, NaN where it does not show every class; ``again`` ``[2, seeds]`` are the drawn
    seeds of each row."""
    if not (row[0].sum(axis=(0, 2))[1:] > 0).all():
        return np.nan
    one, two = mean_iou(row), mean_iou(other)
    by_seed = (one[again[0]].mean() - one.mean()) - (two[again[1]].mean() - two.mean())
    return float(one.mean() - two.mean() + wider * by_seed)


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
