"""What an evaluation came to, as JSON: rows in the paper's form, and what may be called a difference."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .metrics import Scores, accuracy, iou
from .protocol import REAL, Row
from .split import Split
from .statistics import Difference, difference, mean_iou

DIGITS = 2


def result(split: Split, rows: Sequence[Row], how: dict[str, Any]) -> dict[str, Any]:
    """``how`` it was made, one entry a row, and the differences of every row with real pairs from the others'."""
    by_name = {row.name: row for row in rows}
    several = [row for row in rows if len(row.counts) == len(by_name[REAL].counts)]
    return {
        "object": split.name,
        "types": split.types,
        "real_pairs": {kind: len(split.real[kind]) for kind in split.types},
        "test_pairs": {kind: len(split.test[kind]) for kind in split.types},
        "test_good": len(split.test_good),
        "how": how,
        "rows": [_entry(row, split) for row in rows],
        "differences": [
            {"row": row.name, "from": other.name, **_rounded(difference(row.counts, other.counts))}
            for row in several
            for other in several
            if row is not other
        ],
        "agreement": _agreement(by_name[REAL], split),
    }


def _entry(row: Row, split: Split) -> dict[str, Any]:
    means = mean_iou(row.counts)
    each, found = iou(row.counts.sum(axis=1)), accuracy(row.counts.sum(axis=1))
    return {
        "row": row.name,
        "seeds": len(row.counts),
        "miou": round(float(means.mean()), DIGITS),
        "miou_by_seed": [round(float(value), DIGITS) for value in means],
        "acc": round(float(100 * np.nanmean(found[:, 1:])), DIGITS),
        "iou": _by_type(each, split),
        "acc_by_type": _by_type(found, split),
        "anomaly": {
            field: round(float(100 * np.mean([getattr(one, field) for one in row.scores])), DIGITS)
            for field in Scores._fields
        },
    }


def _by_type(each: np.ndarray[Any, Any], split: Split) -> dict[str, float]:
    mean = 100 * each.mean(axis=0)
    return {kind: round(float(mean[n]), DIGITS) for n, kind in enumerate(split.types, start=1)}


def _rounded(one: Difference) -> dict[str, float | bool]:
    low, high = round(one.low, DIGITS), round(one.high, DIGITS)
    return {"points": round(one.points, DIGITS), "low": low, "high": high, "real": one.real}


def _agreement(row: Row, split: Split) -> dict[str, Any]:
    """Of segmenters that learned real pairs alone: IoU a type on painted pairs, and how far these are from real."""
    return {
        source: {
            kind: {
                "iou": round(100 * row.agreement[source][n], DIGITS),
                "distance": round(row.realism[source][kind].distance, DIGITS),
                "floor": round(row.realism[source][kind].floor, DIGITS),
            }
            for n, kind in enumerate(split.types)
        }
        for source in row.agreement
    }
