"""What an evaluation came to, as JSON: rows in the paper's form, and what may be called a difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import Counts, Scores, accuracy, iou
from .protocol import REAL, Outcome, Row, has_real
from .split import Split, numbered
from .statistics import Difference, Drawn, mean_iou
from .trials import Opinion

DIGITS = 2


@dataclass(frozen=True)
class Measured:
    """All that differences are made of: int64 ``[seeds, N, C, C]`` by row, and names of what the N pictures show."""

    rows: dict[str, Counts]
    things: list[str]


def result(split: Split, outcome: Outcome, measured: Measured, how: dict[str, Any]) -> dict[str, Any]:
    """``how`` it was made, one entry a row, and the `differences`."""
    return {
        "object": split.name,
        "types": split.types,
        "real_pairs": {kind: len(split.real[kind]) for kind in split.types},
        "test_pairs": {kind: len(split.test[kind]) for kind in split.types},
        "test_defects": {kind: len(set(split.shown[kind])) for kind in split.types},
        "test_good": len(split.test_good),
        "how": how,
        "rows": [_entry(row, split) for row in outcome.rows],
        "differences": differences([measured]),
        "agreement": {source: _agreement(opinions, split) for source, opinions in outcome.opinions.items()},
        "convincing": outcome.convincing,
    }


def measured(split: Split, outcome: Outcome) -> Measured:
    """Of a split that was evaluated."""
    return Measured({row.name: _counts(row) for row in outcome.rows}, split.things())


def shared_rows(splits: Sequence[Measured]) -> list[str]:
    """The names of the rows that all splits have, in the order of the first."""
    return [name for name in splits[0].rows if all(name in one.rows for one in splits)]


def differences(splits: Sequence[Measured]) -> list[dict[str, Any]]:
    """Between rows with real pairs, and between real pairs and those of every source alone; of rows of all splits."""
    numbers = numbered(chain.from_iterable(one.things for one in splits))
    subjects = np.split(numbers, np.cumsum([len(one.things) for one in splits])[:-1])
    names = shared_rows(splits)
    drawn = Drawn({name: [one.rows[name] for one in splits] for name in names}, subjects)
    beside = [name for name in names if has_real(name)]
    alone = [REAL, *(name for name in names if not has_real(name))]
    return [
        {"row": name, "from": other, **_rounded(drawn.difference(name, other))}
        for group in (beside, alone)
        for name in group
        for other in group
        if name != other
    ]


def _counts(row: Row) -> Counts:
    """int64 ``[seeds, N, C, C]``."""
    return np.stack([one.counts for one in row.figures])


def _entry(row: Row, split: Split) -> dict[str, Any]:
    counts, defective = _counts(row), sum(map(len, split.test.values()))
    means = mean_iou(counts)
    each, found = iou(counts.sum(axis=1)), accuracy(counts.sum(axis=1))
    return {
        "row": row.name,
        "seeds": len(counts),
        "miou": round(float(means.mean()), DIGITS),
        "miou_by_seed": [round(float(value), DIGITS) for value in means],
        "miou_defective": round(float(mean_iou(counts[:, :defective]).mean()), DIGITS),
        "miou_learned": None
        if row.fit is None
        else round(100 * float(np.nanmean([*row.fit.values()])), DIGITS),
        "iou_learned": row.fit and {kind: round(100 * fit, DIGITS) for kind, fit in row.fit.items()},
        "acc": round(float(100 * np.nanmean(found[:, 1:])), DIGITS),
        "iou": _by_type(each, split),
        "acc_by_type": _by_type(found, split),
        "defects_found": _known(row.defects_found, split),
        "anomaly": {
            field: round(float(100 * np.mean([getattr(one.scores, field) for one in row.figures])), DIGITS)
            for field in Scores._fields
        },
    }


def _by_type(each: np.ndarray[Any, Any], split: Split) -> dict[str, float]:
    mean = 100 * each.mean(axis=0)
    return {kind: round(float(mean[n]), DIGITS) for n, kind in enumerate(split.types, start=1)}


def _known(each: NDArray[np.float64], split: Split) -> dict[str, float] | None:
    """Of segmenters ``[seeds, C]``; None where the test has no good photographs."""
    return None if np.isnan(each[:, 1:]).all() else _by_type(each, split)


def _rounded(one: Difference) -> dict[str, float | bool]:
    low, high = round(one.low, DIGITS), round(one.high, DIGITS)
    return {"points": round(one.points, DIGITS), "low": low, "high": high, "told_apart": one.told_apart}


def _agreement(opinions: list[Opinion], split: Split) -> dict[str, dict[str, float | None]]:
    """By type, means over the segmenters that learned real pairs alone; None where the test has too few defects."""

    def mean(values: list[float]) -> float | None:
        known = float(np.mean(values))
        return None if np.isnan(known) else round(known, DIGITS)

    return {
        kind: {
            "iou": mean([100 * one.iou[kind] for one in opinions]),
            "distance": mean([one.distance[kind].distance for one in opinions]),
            "floor": mean([one.distance[kind].floor for one in opinions]),
        }
        for kind in split.types
    }
