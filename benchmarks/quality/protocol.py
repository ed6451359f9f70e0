"""The paper's protocol (section IV): segmenters learn real pairs, alone and with painted ones, and are tested."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage_rt.engine import Engine
from stage_rt.errors import InputError
from stage_rt.files import locked

from . import sources
from .directions import turnable
from .learning import Lesson, painted_shares, shares_of
from .pictures import Pictures, load
from .split import Split
from .trials import Figures, Job, Opinion, Trials

REAL = "real only"
MOST_GOOD = 1000
"""Good photographs that segmenters learn from; of more, some between which the others lie."""
PAINTING, CHOSEN = 0.3, 0.05
"""Shares of an evaluation's time that painting, and the rows of chosen types, are taken to be."""
CONVINCING = 0.5
"""Segmenters of real pairs find the painted defects of a type at least so well as real ones that they learned: a type
whose painted defects they do not know teaches something else under its name."""


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
    """One row of the result: the figures of its segmenters, one a seed.

    ``defects_found`` float64 ``[seeds, C]`` are those of `stage_rt.quality.metrics.defects_found`. ``fit`` is their
    IoU by type on the real pairs that they learned, in the mean over seeds, or None of rows that learned none.
    """

    name: str
    figures: list[Figures]
    defects_found: NDArray[np.float64]
    fit: dict[str, float] | None


@dataclass(frozen=True)
class Outcome:
    """All rows, real only first and those without real pairs last; ``opinions`` of the first one's segmenters on each
    source, one a seed, and the types that it is ``convincing`` in; the ``lesson`` of all, and the pictures
    of the test."""

    rows: list[Row]
    opinions: dict[str, list[Opinion]]
    convincing: dict[str, list[str]]
    lesson: Lesson
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
        InputError: a source is unknown, or another process evaluates into the folder.
        StageError: a photograph or a run is unusable.
    """
    for name in plan.names:
        sources.check(name, plan.outside, split)
    with _place(folder / "pictures") as place:
        return _evaluate(split, engine, folder, plan, lambda pictures: pictures.shared(place), progress)


@contextmanager
def _place(folder: Path) -> Iterator[Path]:
    """A folder for as long as an evaluation lasts, without what one that was killed left there."""

    def taken() -> None:
        raise InputError(
            f"another evaluation is writing `{folder.parent}`: wait for it to end, or give another `-o`"
        )

    with locked(folder, taken):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _evaluate(
    split: Split,
    engine: Engine,
    folder: Path,
    plan: Plan,
    shared: Callable[[Pictures], Pictures],
    progress: Callable[[float, str], None],
) -> Outcome:
    real, good, test = map(shared, _real(split, plan.side))
    lesson = replace(plan.lesson, turn=turnable(real))
    made = sources.Sources(split, plan.order, engine, folder / "pairs", plan.recipe)
    made.make_room(plan.names)
    painted, part = {}, PAINTING / max(len(plan.names), 1)
    for number, name in enumerate(plan.names):

        def painting(share: float, start: float = number * part, name: str = name) -> None:
            progress(start + part * share, name)

        painted[name] = shared(_pictures_of(name, made, plan, painting))
    trials = Trials(
        folder / "cache",
        split.types,
        lesson,
        shares_of(real, len(split.types) + 1),
        painted_shares([split.defects[kind] for kind in split.types]),
        good,
        test,
        split.subjects(),
    )
    lists = _lists(real, painted, plan.seeds)
    last = 1 - CHOSEN
    _train(trials, lists, lambda share, name: progress(PAINTING + (last - PAINTING) * share, name))
    said = trials.opinions(lists[REAL], list(painted.values()))
    opinions = dict(zip(painted, said, strict=True))
    rows = _rows(trials, lists, real)
    known = {source: convincing(each, rows[0].fit or {}) for source, each in opinions.items()}
    chosen = _chosen(real, painted, known, split.types, plan.seeds)
    _train(trials, chosen, lambda share, name: progress(last + CHOSEN * share, name))
    rows += _rows(trials, chosen, real)
    progress(1.0, "report")
    ordered = sorted(rows, key=lambda row: not has_real(row.name))
    return Outcome(ordered, opinions, known, lesson, test.in_memory())


def _train(
    trials: Trials, lists: Mapping[str, Sequence[Job]], progress: Callable[[float, str], None]
) -> None:
    trials.train([job for jobs in lists.values() for job in jobs], progress)


def _rows(trials: Trials, lists: Mapping[str, Sequence[Job]], real: Pictures) -> list[Row]:
    return [
        Row(
            name,
            [trials.figures(job) for job in jobs],
            np.stack([trials.defects_found(job) for job in jobs]),
            _fit(trials, jobs, real),
        )
        for name, jobs in lists.items()
    ]


def _fit(trials: Trials, jobs: Sequence[Job], real: Pictures) -> dict[str, float] | None:
    if not any(part is real for part in jobs[0].parts):
        return None
    fits = [trials.fit(job, real) for job in jobs]
    return {kind: float(np.mean([fit[kind] for fit in fits])) for kind in trials.types}


def _lists(real: Pictures, painted: Mapping[str, Pictures], seeds: int) -> dict[str, list[Job]]:
    """What the segmenters of every row learn: real pairs, with those of each source, and each source alone, where
    nothing hides what it teaches."""
    parts = {
        REAL: [real],
        **{f"with {name}": [real, pairs] for name, pairs in painted.items()},
        **{f"{name} alone": [pairs] for name, pairs in painted.items()},
    }
    return {name: _jobs(name, part, seeds) for name, part in parts.items()}


def _chosen(
    real: Pictures,
    painted: Mapping[str, Pictures],
    known: Mapping[str, Sequence[str]],
    types: Sequence[str],
    seeds: int,
) -> dict[str, list[Job]]:
    """Of sources that convince in some of the ``types`` and not in all, a row with the pairs of those ``known``."""
    lists = {}
    for source, pairs in painted.items():
        if 0 < len(known[source]) < len(types):
            numbers = [number for number, kind in enumerate(types, start=1) if kind in known[source]]
            kept = pairs.pick(pairs.showing(*numbers))
            name = f"with {source} ({', '.join(known[source])})"
            lists[name] = _jobs(name, [real, kept], seeds)
    return lists


def convincing(opinions: Sequence[Opinion], fit: Mapping[str, float]) -> list[str]:
    """The types of a source that segmenters of real pairs find `CONVINCING` well; ``fit`` is how well they find the
    real ones that they learned. A type of which they did not even learn those convinces nobody."""
    return [
        kind
        for kind, own in fit.items()
        if own > 0 and np.mean([one.iou[kind] for one in opinions]) >= CONVINCING * own
    ]


def _jobs(name: str, parts: Sequence[Pictures], seeds: int) -> list[Job]:
    return [Job(name, parts, seed) for seed in range(seeds)]


def _real(split: Split, side: int) -> tuple[Pictures, Pictures, Pictures]:
    """The labelled and the good photographs that segmenters learn from, and those of both kinds that test them."""
    numbers = {kind: n for n, kind in enumerate(split.types, start=1)}
    pairs = [(photo, mask, numbers[kind]) for kind in split.types for photo, mask in split.real[kind]]
    tested = [(photo, mask, numbers[kind]) for kind in split.types for photo, mask in split.test[kind]]
    good = split.good[:: -(-len(split.good) // MOST_GOOD)]

    def empty(photos: Sequence[Path]) -> list[tuple[Path, None, int]]:
        return [(photo, None, 0) for photo in photos]

    return load(pairs, side), load(empty(good), side), load([*tested, *empty(split.test_good)], side)


def _pictures_of(name: str, made: sources.Sources, plan: Plan, progress: Callable[[float], None]) -> Pictures:
    if name in plan.outside:
        pairs = sources.of_others(name, plan.outside[name], made.split, plan.order.pairs)
    else:
        pairs = made.make(name, progress)
    return load(
        [
            (image, mask, number)
            for number, kind in enumerate(made.split.types, start=1)
            for image, mask in pairs[kind]
        ],
        plan.side,
    )
