"""How good a segmenter is: IoU and accuracy a class (Tables II to V), and its anomaly channel (Tables VI and VII)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

PRO_LIMIT = 0.3
"""False positive rate up to which the per-region overlap is integrated (Bergmann et al., CVPR 2020)."""

FOUND, FALSE_ALARMS = 0.3, 0.1
"""Share of a defect's pixels above a threshold from which it is found, and the share of good parts that a threshold
may call defective."""

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


class Scores(NamedTuple):
    """Figures of an anomaly channel over all pixels of a test, each from 0 to 1; nan where a side is empty."""

    auroc: float
    ap: float
    f1_max: float
    pro: float


def confusion(found: NDArray[np.integer], shown: NDArray[np.integer], classes: int) -> Counts:
    """How many pixels of each class shown were found to be which: int64 ``[N, classes, classes]``, one a picture.

    ``found`` and ``shown`` are ``[N, H, W]``; the first axis of a matrix is what is shown.
    """
    code = shown.astype(np.int64) * classes + found
    rows = [np.bincount(one.ravel(), minlength=classes * classes) for one in code]
    return np.stack(rows).reshape(len(code), classes, classes)


def iou(counts: NDArray[np.number]) -> Floats:
    """Intersection over union of every class of matrices ``[..., classes, classes]``; nan where there is none."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(-1) + counts.sum(-2) - hit
    return _ratio(hit, union)


def accuracy(counts: Counts) -> Floats:
    """Share of every class's pixels that were found, of matrices ``[..., classes, classes]``; nan as for `iou`."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    return _ratio(hit, counts.sum(-1))


def _ratio(part: Floats, whole: NDArray[np.number]) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def scores(anomaly: NDArray[np.float16], labels: NDArray[np.bool_]) -> Scores:
    """The figures of a finite ``anomaly``, larger where a defect is, against ``labels``, both ``[N, H, W]``."""
    if not labels.any() or labels.all():
        return Scores(np.nan, np.nan, np.nan, np.nan)
    levels = _levels(anomaly, labels)
    truth, value = _sides(levels)
    pixels = np.concatenate([levels.defective, levels.sound])
    precision, recall, _ = precision_recall_curve(truth, value, sample_weight=pixels)
    f1 = _ratio(2 * precision * recall, precision + recall)
    return Scores(
        float(roc_auc_score(truth, value, sample_weight=pixels)),
        float(average_precision_score(truth, value, sample_weight=pixels)),
        float(np.nanmax(f1)),
        _pro(levels, PRO_LIMIT),
    )


def pro(anomaly: NDArray[np.float16], labels: NDArray[np.bool_], limit: float = PRO_LIMIT) -> float:
    """Area under the mean overlap of all regions against the false positive rate, up to ``limit``, over ``limit``.

    The mean over regions of the share of each that lies above a threshold is the true positive rate of pixels that
    count one over the size of their region.
    """
    return _pro(_levels(anomaly, labels), limit)


class _Levels(NamedTuple):
    """The values that an anomaly channel has, and how many pixels have each: of defects, of sound surface, and of
    defects by one over the size of their region.

    Half precision has 65536 values, and a test may have a billion pixels, whose sorting takes minutes and gigabytes.
    """

    value: Floats
    defective: Floats
    sound: Floats
    regions: Floats


def _levels(anomaly: NDArray[np.float16], labels: NDArray[np.bool_]) -> _Levels:
    counted = np.zeros((3, 2**16))
    for one, label in zip(anomaly, labels, strict=True):
        codes = np.ascontiguousarray(one).view(np.uint16)
        regions, _ = ndimage.label(label, structure=np.ones((3, 3)))
        share = 1 / np.bincount(regions.ravel())[regions[label]]
        for sums, pixels, weight in zip(
            counted, (codes[label], codes[~label], codes[label]), (None, None, share), strict=True
        ):
            sums += np.bincount(pixels, weight, minlength=2**16)
    there = np.flatnonzero(counted[0] + counted[1])
    return _Levels(there.astype(np.uint16).view(np.float16).astype(np.float64), *counted[:, there])


def _sides(levels: _Levels) -> tuple[NDArray[np.bool_], Floats]:
    """Truth and value of every level, once for the pixels of defects and once for those of sound surface."""
    truth = np.repeat([True, False], len(levels.value))
    return truth, np.tile(levels.value, 2)


def _pro(levels: _Levels, limit: float) -> float:
    truth, value = _sides(levels)
    weight = np.concatenate([levels.regions, levels.sound])
    false, overlap, _ = roc_curve(truth, value, sample_weight=weight, drop_intermediate=True)
    end = np.searchsorted(false, limit, side="right")
    last = np.interp(limit, false, overlap)
    return float(auc([*false[:end], limit], [*overlap[:end], last]) / limit)


def defects_found(
    anomaly: NDArray[np.floating], shown: NDArray[np.integer], subjects: NDArray[np.integer], classes: int
) -> Floats:
    """Share of every class's defects that are found where no more than `FALSE_ALARMS` of the good pictures alarm.

    A picture alarms where as many pixels as the smallest label has lie above the threshold; a defect is found where
    `FOUND` of its own do. One that several pictures show, whose ``subjects`` are one number, counts once, by the
    share of them in which it is found.

    Args:
        anomaly: ``[N, H, W]``, larger where a defect is, of whatever class.
        shown: ``[N, H, W]``, at most one class of defects a picture.
        subjects: ``[N]``.
        classes: how many there are, good surface among them.

    Returns:
        ``[classes]``; nan for good surface, for a class that is not shown, and where no picture is without a defect.
    """
    sizes, held = (shown > 0).sum(axis=(1, 2)), shown.max(axis=(1, 2))
    shares, good = np.full(classes, np.nan), sizes == 0
    if good.all() or not good.any():
        return shares
    fewest = sizes[~good].min()
    levels = np.partition(anomaly[good].reshape(good.sum(), -1), -fewest, axis=1)[:, -fewest]
    threshold = np.sort(levels)[-1 - int(FALSE_ALARMS * len(levels))]
    for number in np.unique(held[~good]):
        pictures = np.flatnonzero(held == number)
        found = np.array([(anomaly[n][shown[n] > 0] > threshold).mean() >= FOUND for n in pictures])
        defects = subjects[pictures]
        shares[number] = np.mean([found[defects == one].mean() for one in np.unique(defects)])
    return shares
