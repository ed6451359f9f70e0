"""The paper's protocol (section IV): segmenters that learned real pairs, with and without painted ones, tested alike.

What was computed is kept by its content in ``cache``: a row whose pictures, segmenter and seed are the same is never
computed again, however often the evaluation is cut off or asked for more.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.engine import Engine
from stage_rt.files import write_atomic
from stage_rt.training.loop import Device

from . import metrics, realism, sources
from .learning import Lesson, find, learn
from .metrics import Counts
from .pictures import Pictures, joined, load
from .split import Split

REAL = "real only"
GOOD_A_REAL = 1.0
"""Good photographs in the training set for each real pair."""
ALONE = ("ours",)
"""Sources that one segmenter also learns from without real pairs."""
PAINTING = 0.3
"""Share of an evaluation's time that painting is taken to be."""
FORMAT = 1
"""Of what is kept; another one is computed anew."""


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
    """One row of the result: ``counts`` int64 ``[seeds, N, C, C]`` over the test's pictures, and the anomaly scores.

    ``agreement`` is IoU a type on each source's pairs, of the segmenters of this row; ``realism`` by source and type.
    """

    name: str
    counts: Counts
    scores: list[metrics.Scores]
    agreement: dict[str, list[float]]
    realism: dict[str, dict[str, realism.Distance]]


def evaluate(
    split: Split,
    engine: Engine,
    folder: Path,
    plan: Plan,
    *,
    progress: Callable[[float, str], None],
) -> tuple[list[Row], Pictures, dict[str, NDArray[np.uint8]]]:
    """All rows, real only first, then each source with the real pairs, then ours alone.

    Beside them the test's pictures, and what the first segmenters of the rows with real pairs found in them.

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
    device = Device.best()
    real, test = _real(split, plan.side)
    painted, part = {}, PAINTING / max(len(plan.names), 1)
    for number, name in enumerate(plan.names):

        def painting(share: float, start: float = number * part, name: str = name) -> None:
            progress(start + part * share, name)

        painted[name] = _pictures_of(name, split, engine, folder, plan, painting)
    lists = [(REAL, real, plan.seeds)]
    lists += [(f"with {name}", joined([real, pairs]), plan.seeds) for name, pairs in painted.items()]
    good = _good(real)
    lists += [(f"{name} alone", joined([good, pairs]), 1) for name, pairs in painted.items() if name in ALONE]
    total, done, rows = sum(seeds for *_, seeds in lists), 0, []
    found: dict[str, NDArray[np.uint8]] = {}
    for name, pictures, seeds in lists:
        parts = []
        for seed in range(seeds):

            def learning(share: float, before: int = done, name: str = name) -> None:
                progress(PAINTING + (1 - PAINTING) * (before + share) / total, name)

            beside = painted if name == REAL else {}
            parts.append(_result(pictures, test, beside, split, plan.lesson, seed, folder, device, learning))
            done += 1
        rows.append(_row(name, parts, split))
        if seeds == plan.seeds:
            found[name] = np.array(parts[0]["found"], dtype=np.uint8)
    progress(1.0, "report")
    return rows, test, found


def _real(split: Split, side: int) -> tuple[Pictures, Pictures]:
    """What every segmenter learns from, and what it is tested on; good photographs are among both."""
    numbers = {kind: n for n, kind in enumerate(split.types, start=1)}
    pairs = [(photo, mask, numbers[kind]) for kind in split.types for photo, mask in split.real[kind]]
    count = min(round(GOOD_A_REAL * len(pairs)), len(split.good))
    every = len(split.good) / count
    good = [(split.good[int(n * every)], None, 0) for n in range(count)]
    tested = [(photo, mask, numbers[kind]) for kind in split.types for photo, mask in split.test[kind]]
    return load([*pairs, *good], side), load(
        [*tested, *((photo, None, 0) for photo in split.test_good)], side
    )


def _good(real: Pictures) -> Pictures:
    index = np.flatnonzero(~real.classes.any(axis=(1, 2)))
    return Pictures(real.images[index], real.classes[index], [real.names[n] for n in index])


def _pictures_of(
    name: str, split: Split, engine: Engine, folder: Path, plan: Plan, progress: Callable[[float], None]
) -> Pictures:
    if name in plan.outside:
        pairs = sources.of_others(name, plan.outside[name], split, plan.order.pairs)
    else:
        place = folder / "pairs" / (f"{name}-{plan.recipe}" if plan.recipe else name)
        pairs = sources.make(name, split, plan.order, engine, place, plan.recipe, progress)
    numbers = {kind: n for n, kind in enumerate(split.types, start=1)}
    return load(
        [(image, mask, numbers[kind]) for kind in split.types for image, mask in pairs[kind]], plan.side
    )


def _result(
    pictures: Pictures,
    test: Pictures,
    beside: Mapping[str, Pictures],
    split: Split,
    lesson: Lesson,
    seed: int,
    folder: Path,
    device: Device,
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """One segmenter's figures, from the cache or computed."""
    key = {
        "format": FORMAT,
        "lesson": asdict(lesson),
        "seed": seed,
        "types": split.types,
        "learned": pictures.digest,
        "tested": test.digest,
        "beside": {name: part.digest for name, part in beside.items()},
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = folder / "cache" / f"{digest[:32]}.json"
    if path.exists():
        progress(1.0)
        return _kept(path)
    classes = len(split.types) + 1
    network = learn(pictures, classes, lesson, seed, device, progress)
    found = find(network, test, device)
    result = {
        "counts": metrics.confusion(found.classes, test.classes, classes).tolist(),
        "scores": metrics.scores(found.anomaly.astype(np.float32), test.classes > 0),
        "agreement": {},
        "realism": {},
    }
    for name, part in beside.items():
        said = metrics.confusion(find(network, part, device).classes, part.classes, classes).sum(axis=0)
        result["agreement"][name] = metrics.iou(said)[1:].tolist()
        result["realism"][name] = {
            kind: realism.compare(
                realism.features(network, _of_type(part, n), device),
                realism.features(network, _of_type(test, n), device),
            )
            for n, kind in enumerate(split.types, start=1)
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = io.BytesIO()
    np.savez_compressed(shown, found=found.classes)
    write_atomic(path.with_suffix(".npz"), shown.getvalue())
    write_atomic(path, json.dumps(result).encode())
    return _kept(path)


def _kept(path: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as file:
        return kept | {"found": file["found"]}


def _of_type(pictures: Pictures, number: int) -> Pictures:
    index = np.flatnonzero((pictures.classes == number).any(axis=(1, 2)))
    return Pictures(pictures.images[index], pictures.classes[index], [pictures.names[n] for n in index])


def _row(name: str, parts: Sequence[Mapping[str, Any]], split: Split) -> Row:
    beside = parts[0]["agreement"]
    return Row(
        name,
        np.array([part["counts"] for part in parts], dtype=np.int64),
        [metrics.Scores(*part["scores"]) for part in parts],
        {
            source: np.mean([part["agreement"][source] for part in parts], axis=0).tolist()
            for source in beside
        },
        {
            source: {
                kind: realism.Distance(
                    *np.mean([part["realism"][source][kind] for part in parts], axis=0).tolist()
                )
                for kind in split.types
            }
            for source in beside
        },
    )
