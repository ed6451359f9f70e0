"""The paper's protocol (section IV): segmenters learn real pairs, alone and with painted ones, and are tested."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stage_rt.engine import Engine

from . import sources
from .learning import Lesson, shares_of
from .pictures import Pictures, load
from .split import Split
from .trials import Figures, Job, Opinion, Trials

REAL = "real only"
MOST_GOOD = 1000
"""Good photographs that segmenters learn from; of more, some between which the others lie."""
PAINTING = 0.3
"""Share of an evaluation's time that painting is taken to be."""


def has_real(row: str) -> bool:
    """Whether the segmenters of a row of that name learn real pairs."""
    return row == REAL or row.startswith("with ")


@dataclass(frozen=True)
class Plan:
    """What is compared, and how: ``side`` pixels, ``seeds`` segmenters a row, ``names`` of the sources.

    ``outside`` are published runs by name; ``recipe`` is a branch plan for our own pairs.
    """

    side: int
    lesson: Lesson
    seeds: int
    order: sources.Order
    names: Sequence[str]
    outside: Mapping[str, Path]
    recipe: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of the result: the figures of its segmenters, one a seed; ``fit`` is their mean IoU on the real pairs
    that they learned, in the mean over seeds, or None of rows that learned none."""

    name: str
    figures: list[Figures]
    fit: float | None


@dataclass(frozen=True)
class Outcome:
    """All rows, real only first; what its segmenters say of each source, one a seed; and the test's pictures."""

    rows: list[Row]
    opinions: dict[str, list[Opinion]]
    test: Pictures


def evaluate(
    split: Split, engine: Engine, folder: Path, plan: Plan, *, progress: Callable[[float, str], None]
) -> Outcome:
    """Make the pairs, train the segmenters, test them.

    Args:
        split: the object.
        engine: whose pairs and labels are used.
        folder: where runs and results are kept.
        plan: what is compared.
        progress: told the share that is done and what is at work.

    Raises:
        InputError: a source is unknown.
        StageError: a photograph or a run is unusable.
    """
    for name in plan.names:
        sources.check(name, plan.outside, split)
    real, good, test = _real(split, plan.side)
    painted, part = {}, PAINTING / max(len(plan.names), 1)
    for number, name in enumerate(plan.names):

        def painting(share: float, start: float = number * part, name: str = name) -> None:
            progress(start + part * share, name)

        painted[name] = _pictures_of(name, split, engine, folder, plan, painting)
    shares = shares_of(real, len(split.types) + 1)
    trials = Trials(folder / "cache", split.types, plan.lesson, shares, good, test)
    lists = _lists(real, painted, plan.seeds)
    trials.train(
        [job for jobs in lists.values() for job in jobs],
        lambda share, name: progress(PAINTING + (1 - PAINTING) * share, name),
    )
    rows = [
        Row(name, [trials.figures(job) for job in jobs], _fit(trials, jobs, real))
        for name, jobs in lists.items()
    ]
    opinions = {name: [trials.opinion(job, pairs) for job in lists[REAL]] for name, pairs in painted.items()}
    progress(1.0, "report")
    return Outcome(rows, opinions, test)


def _fit(trials: Trials, jobs: Sequence[Job], real: Pictures) -> float | None:
    if not any(part is real for part in jobs[0].parts):
        return None
    return float(np.mean([trials.fit(job, real) for job in jobs]))


def _lists(real: Pictures, painted: Mapping[str, Pictures], seeds: int) -> dict[str, list[Job]]:
    """What the segmenters of every row learn: real pairs, with those of each source, and each source alone, where
    nothing hides what it teaches."""
    parts = {
        REAL: [real],
        **{f"with {name}": [real, pairs] for name, pairs in painted.items()},
        **{f"{name} alone": [pairs] for name, pairs in painted.items()},
    }
    return {name: [Job(name, part, seed) for seed in range(seeds)] for name, part in parts.items()}


def _real(split: Split, side: int) -> tuple[Pictures, Pictures, Pictures]:
    """The labelled and the good photographs that segmenters learn from, and those of both kinds that test them."""
    numbers = {kind: n for n, kind in enumerate(split.types, start=1)}
    pairs = [(photo, mask, numbers[kind]) for kind in split.types for photo, mask in split.real[kind]]
    tested = [(photo, mask, numbers[kind]) for kind in split.types for photo, mask in split.test[kind]]
    good = split.good[:: -(-len(split.good) // MOST_GOOD)]

    def empty(photos: Sequence[Path]) -> list[tuple[Path, None, int]]:
        return [(photo, None, 0) for photo in photos]

    return load(pairs, side), load(empty(good), side), load([*tested, *empty(split.test_good)], side)


def _pictures_of(
    name: str, split: Split, engine: Engine, folder: Path, plan: Plan, progress: Callable[[float], None]
) -> Pictures:
    if name in plan.outside:
        pairs = sources.of_others(name, plan.outside[name], split, plan.order.pairs)
    else:
        pairs = sources.make(name, split, plan.order, engine, folder / "pairs", plan.recipe, progress)
    numbers = {kind: n for n, kind in enumerate(split.types, start=1)}
    return load(
        [(image, mask, numbers[kind]) for kind in split.types for image, mask in pairs[kind]], plan.side
    )
