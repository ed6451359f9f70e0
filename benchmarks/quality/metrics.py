"""How good a segmenter is: IoU and accuracy a class (Tables II to V), and its anomaly channel (Tables VI and VII)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

PRO_LIMIT = 0.3
"""False positive rate up to which the per-region overlap is integrated (Bergmann et al., CVPR 2020)."""

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


def iou(counts: Counts) -> Floats:
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


def scores(anomaly: NDArray[np.floating], labels: NDArray[np.bool_]) -> Scores:
    """The figures of ``anomaly`` ``[N, H, W]``, larger where a defect is, against ``labels`` ``[N, H, W]``."""
    if not labels.any() or labels.all():
        return Scores(np.nan, np.nan, np.nan, np.nan)
    truth, value = labels.ravel(), anomaly.ravel()
    precision, recall, _ = precision_recall_curve(truth, value)
    f1 = _ratio(2 * precision * recall, precision + recall)
    return Scores(
        float(roc_auc_score(truth, value)),
        float(average_precision_score(truth, value)),
        float(np.nanmax(f1)),
        pro(anomaly, labels),
    )


def pro(anomaly: NDArray[np.floating], labels: NDArray[np.bool_], limit: float = PRO_LIMIT) -> float:
    """Area under the mean overlap of all regions against the false positive rate, up to ``limit``, over ``limit``.

    The mean over regions of the share of each that lies above a threshold is the true positive rate of pixels that
    count one over the size of their region.
    """
    weight = np.ones(labels.shape)
    for one, label in zip(weight, labels, strict=True):
        regions, count = ndimage.label(label, structure=np.ones((3, 3)))
        if count:
            sizes = np.bincount(regions.ravel())
            one[label] = 1 / sizes[regions[label]]
    false, overlap, _ = roc_curve(
        labels.ravel(), anomaly.ravel(), sample_weight=weight.ravel(), drop_intermediate=True
    )
    end = np.searchsorted(false, limit, side="right")
    last = np.interp(limit, false, overlap)
    return float(auc([*false[:end], limit], [*overlap[:end], last]) / limit)
