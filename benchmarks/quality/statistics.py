"""Means over seeds, and whether two rows differ: intervals of paired differences."""

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


def difference(row: Counts, other: Counts, subjects: NDArray[np.integer], seed: int = 0) -> Difference:
    """How much better ``row`` is than ``other``, int64 ``[seeds, N, classes, classes]`` of the same test and seeds.

    A paired bootstrap (Efron and Tibshirani, 1993, chapter 8) over what the test's pictures show, drawn again with
    replacement and for both rows alike, and over the seeds of each row. A few seeds drawn again vary less than those
    of another evaluation would: their part is widened to what a t interval of as many says. Photographs of one
    defect, whose ``subjects`` ``[N]`` are one number, are drawn together: they are one thing that a segmenter finds
    or does not. A draw that does not show every class is passed over: of one that is not there a single false pixel
    is an IoU of 0.
    """
    rng = np.random.default_rng(seed)
    first, second = (_by_subject(counts, subjects) for counts in (row, other))
    seeds, shown = first.shape[:2]
    draws, wider = np.empty(RESAMPLES), _wider(seeds)
    for n in range(RESAMPLES):
        picked, p = rng.integers(seeds, size=(2, seeds)), rng.integers(shown, size=shown)
        one, two = mean_iou(first[:, p]), mean_iou(second[:, p])
        by_seed = (one[picked[0]].mean() - one.mean()) - (two[picked[1]].mean() - two.mean())
        whole = (first[0][p].sum(axis=(0, 2))[1:] > 0).all()
        draws[n] = one.mean() - two.mean() + wider * by_seed if whole else np.nan
    low, high = (float(end) for end in np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    points = float((mean_iou(row) - mean_iou(other)).mean())
    return Difference(points, low, high, told_apart=seeds > 1 and (low > 0 or high < 0))


def _wider(seeds: int) -> float:
    """What the deviation of a mean of so many seeds of each row, drawn again, falls short by."""
    if seeds == 1:
        return 1.0
    end = (1 + LEVEL) / 2
    return float(np.sqrt(seeds / (seeds - 1)) * stats.t.ppf(end, 2 * seeds - 2) / stats.norm.ppf(end))


def _by_subject(counts: Counts, subjects: NDArray[np.integer]) -> Counts:
    """The sums of the pictures of each subject, ``[seeds, subjects, classes, classes]``."""
    _, place = np.unique(subjects, return_inverse=True)
    sums = np.zeros((place.max() + 1, counts.shape[0], *counts.shape[2:]), counts.dtype)
    np.add.at(sums, place, counts.swapaxes(0, 1))
    return sums.swapaxes(0, 1)
