"""How much of their labels the levers of the recipe paint: ``python benchmarks/labels.py ENGINE [--json PATH]``.

ENGINE is that of ``models/demo``. Photographs and labels are made as the demo's data are, from the part of the
surface that training never saw; the defects rendered under the same labels say what there is to reach. Measured are
the share of a label's pixels that changed by more than 15 grey levels, the mean change under it and how far that is
spread over pairs, the leak before compositing, and the mean difference between two seeds; for rendered defects
between two looks under one label.
``as used`` is the model as it is used: its own guidance, and weak labels painted again; ``once``: they are not.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from options import engine_parser, keep
from painting import method_of, painted
from skimage import data

import stage_rt
from stage_rt.machine import cpu_name
from stage_rt.method import Method
from stage_rt.recipe import Recipe

sys.path.append(str(Path(__file__).parents[1] / "models"))
import make_demo_data
from make_demo_data import DEFECTS, SEEN_COLUMNS, crop

VISIBLE, SEED = 15, 20261124
AUTHORS, PAPER, MASKED = Recipe.authors(), Recipe.paper(), Recipe.masked()
LEVERS = {
    "authors": AUTHORS,
    "authors, guidance 2": AUTHORS.guided(2),
    "authors, guidance 4": AUTHORS.guided(4),
    "paper": PAPER,
    "paper, guidance 2": PAPER.guided(2),
    "masked, guidance 1": MASKED.guided(1),
    "masked (guidance 2)": MASKED,
    "masked, guidance 3": MASKED.guided(3),
    "masked, guidance 1, prompt guidance 2": MASKED.guided(1).contrasted(2),
    "masked, prompt guidance 2": MASKED.contrasted(2),
}


def figures(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    difference = after.astype(np.float64) - before
    each = [float((np.abs(d[m]) > VISIBLE).mean()) for d, m in zip(difference, labels, strict=True)]
    changes = [d[m].mean() for d, m in zip(difference, labels, strict=True)]
    return {
        "fill": round(float(np.mean(each)), 3),
        "weakest_tenth": round(float(np.quantile(each, 0.1)), 3),
        "change": round(float(np.mean(changes)), 1),
        "spread": round(float(np.std(changes)), 1),
    }


def variety(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> float:
    """Mean difference under the label between two seeds, in grey levels."""
    return round(float(np.abs(first.astype(np.float64) - second)[labels].mean()), 1)


class Looks:
    """A generator of a rendered defect's shape whose look comes from another: a crack's one is its darkness."""

    def __init__(self, shape: np.random.Generator, look: np.random.Generator) -> None:
        self._shape, self._look = shape, look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shape, name)

    def uniform(self, low: float, high: float, *size: int) -> Any:
        return (self._look if (low, high) == (0.15, 0.3) else self._shape).uniform(low, high, *size)


def two_looks(kind: str, good: np.ndarray) -> float:
    """`variety` of rendered defects."""
    rendered = []
    for n, grey in enumerate(good / 255):
        mask = make_demo_data.blob(np.random.default_rng([SEED, n]), 9 if kind == "hole" else 16, 0.14)
        pair = []
        for look in (0, 1):
            rng = np.random.default_rng([SEED, n, look])
            if kind == "crack":
                pair.append(DEFECTS[kind](grey, Looks(np.random.default_rng([SEED, n]), rng)))
            else:
                with mock.patch.object(make_demo_data, "blob", lambda *_, mask=mask: mask):
                    pair.append(DEFECTS[kind](grey, rng))
        rendered.append(pair)
    first, second = (np.stack([np.rint(255 * pair[k][0]) for pair in rendered]) for k in (0, 1))
    return variety(first, second, np.stack([pair[0][1] for pair in rendered]))


def scenes(kind: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Good crops, the same with a rendered defect, and its labels."""
    rng = np.random.default_rng(SEED)
    unseen = data.brick()[:, SEEN_COLUMNS:]
    good = [np.rint(crop(unseen, rng) * 255) / 255 for _ in range(count)]
    rendered = [DEFECTS[kind](grey, rng) for grey in good]
    to_levels = [
        np.rint(255 * np.stack(greys)).astype(np.uint8) for greys in (good, [grey for grey, _ in rendered])
    ]
    return to_levels[0], to_levels[1], np.stack([mask for _, mask in rendered])


def row(
    engine: Any, kind: str, name: str, method: Method, scene: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """What a method paints, with two seeds for its variety."""
    good, labels = scene
    start = time.perf_counter()
    first, second = (painted(engine, good, labels, method, seed) for seed in (SEED, SEED + 1))
    seconds = (time.perf_counter() - start) / (2 * len(good))
    return {
        "type": kind,
        "lever": name,
        **figures(good, first.images, labels),
        "leak": round(float(np.mean([result.figures.leak for result in first.results])), 3),
        "variety": variety(first.images, second.images, labels),
        "squares": round(first.calls / len(good), 2),
        "seconds": round(seconds, 2),
        "painted_again": round(float(np.mean([result.attempts > 1 for result in first.results])), 3),
    }


def main(options: argparse.Namespace) -> None:
    engine = stage_rt.load(options.engine)
    result: dict[str, Any] = {"machine": cpu_name(), "steps": options.steps, "pairs_a_type": options.count}
    result["rows"] = rows = []
    for kind in DEFECTS:
        good, rendered, labels = scenes(kind, options.count)
        real = {"type": kind, "lever": "rendered", **figures(good, rendered, labels)}
        rows.append(real | {"variety": two_looks(kind, good)})
        print(rows[-1], flush=True)
        used = method_of(engine, f"brick+{kind}", options.steps)
        methods = {"as used": used, "as used, once": replace(used, min_fill=0.0, retries=0)}
        if not options.default:
            for name, recipe in LEVERS.items():
                methods[name] = method_of(engine, f"brick+{kind}", options.steps, recipe)
        for name, method in methods.items():
            rows.append(row(engine, kind, name, method, (good, labels)))
            print(rows[-1], flush=True)
            keep(result, options.json)


if __name__ == "__main__":
    parser = engine_parser(__doc__)
    parser.add_argument(
        "--count", type=int, default=8, help="pairs a type and lever, each painted with two seeds"
    )
    parser.add_argument("--default", action="store_true", help="only the model as it is used")
    main(parser.parse_args())
