"""Evaluations of one data set on several splits, each with a generator of its own, as one result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .result import DIGITS, Measured, differences, shared_rows

OF_A_SPLIT = ("real_pairs", "test_pairs", "test_defects", "test_good")


@dataclass(frozen=True)
class Evaluated:
    """The result of one split, what its differences were made of, and the ``name`` of its engine."""

    name: str
    result: Mapping[str, Any]
    measured: Measured


def pooled(splits: Sequence[Evaluated]) -> dict[str, Any]:
    """Means over the splits in the form of one's result, of the rows that all have, with what was learned in each.

    How it was made is told where it is the same for all. Differences are those of
    `stage_rt.quality.statistics.Drawn`. A source convinces in the types in which it does in all splits.
    """
    first = splits[0].result
    hows = [one.result["how"] for one in splits]
    rows = [{row["row"]: row for row in one.result["rows"]} for one in splits]
    measured = [one.measured for one in splits]
    shared = shared_rows(measured)
    return {
        "object": first["object"],
        "types": first["types"],
        "splits": [
            {
                "engine": one.name,
                "segmenter": one.result["how"]["segmenter"],
                **{field: one.result[field] for field in OF_A_SPLIT},
                "miou": {name: each[name]["miou"] for name in shared},
            }
            for one, each in zip(splits, rows, strict=True)
        ],
        "how": {
            field: value for field, value in first["how"].items() if all(how[field] == value for how in hows)
        },
        "rows": [_mean([each[name] for each in rows]) for name in shared],
        "differences": differences(measured),
        "agreement": _mean([one.result["agreement"] for one in splits]),
        "convincing": {
            source: [
                kind for kind in known if all(kind in one.result["convincing"][source] for one in splits)
            ]
            for source, known in first["convincing"].items()
        },
    }


def _mean(each: Sequence[Any]) -> Any:
    """Of figures their mean, of mappings that of every value; of whole numbers, which count segmenters, the sum, and
    of lists, which have one figure each, all one after another. A name stays, and None stands for what a split lacks.
    """
    one = each[0]
    if isinstance(one, str):
        return one
    if any(value is None for value in each):
        return None
    if isinstance(one, Mapping):
        return {key: _mean([value[key] for value in each]) for key in one}
    if isinstance(one, list):
        return [value for values in each for value in values]
    if isinstance(one, int):
        return sum(each)
    return round(float(np.mean(each)), DIGITS)
