"""What ``stage-rt evaluate`` does: the protocol, then its files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stage_rt.engine import Engine
from stage_rt.errors import InputError
from stage_rt.names import RecipeName, SegmenterName, SizeName
from stage_rt.progress import Progress, portion

from . import protocol, report
from .learning import Lesson
from .result import Measured, measured, result
from .segmenters import SEGMENTERS
from .segmenters.encoder import load_encoder
from .sizes import SIZES, lesson_of, side_of
from .sources import Order
from .split import Split, split
from .splits import Evaluated, pooled

COMPARING = 0.02
"""Share of an evaluation's time that comparing photographs is taken to be."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; None is the size's or the model's own. ``command`` is told on the page."""

    root: Path
    size: SizeName
    sources: Sequence[str]
    segmenter: SegmenterName | None
    encoder: Path | None
    types: Sequence[str] | None
    seeds: int
    pairs: int | None
    recipe: RecipeName | None
    command: str


@dataclass(frozen=True)
class Done:
    """The result as on disk, and as text for a terminal."""

    result: dict[str, Any]
    text: str


@dataclass(frozen=True)
class _Ready:
    """One split that can be evaluated."""

    engine: Engine
    parts: Split
    plan: protocol.Plan


Say = Callable[[str], None]


def run(
    engines: Mapping[str, Engine], request: Request, folder: Path, *, say: Say, progress: Progress
) -> Done:
    """Evaluate and write ``result.json``, the page and its plot into ``folder``.

    Args:
        engines: by name, each of a generator with a split of its own; what one is evaluated by is kept in a folder of
            its name. Of several every one has its result there, and the result is that of all.
        request: what the user asked for.
        folder: where all is kept.
        say: told what is at work.
        progress: told the share that is done.

    Raises:
        StageError: the request cannot be done, or a file is unusable; what was computed stays.
    """
    say("comparing photographs")
    compared, rest = portion(progress, 0.0, COMPARING), portion(progress, COMPARING, 1.0)
    ready = {
        name: _ready(engine, request, portion(compared, number / len(engines), (number + 1) / len(engines)))
        for number, (name, engine) in enumerate(engines.items())
    }
    if len(ready) == 1:
        ((name, only),) = ready.items()
        done, _ = _evaluated(only, request, folder, folder / name, say, rest)
        return done
    _refuse_unlike(ready)
    splits = []
    for number, (name, one) in enumerate(ready.items()):
        say(f"split of `{name}`")
        part = portion(rest, number / len(ready), (number + 1) / len(ready))
        done, measured = _evaluated(one, request, folder / name, folder / name, say, part)
        splits.append(Evaluated(name, done.result, measured))
    summary = pooled(splits)
    report.write(folder, summary)
    # Of one split, evaluated before.
    (folder / report.EXAMPLES).unlink(missing_ok=True)
    return Done(summary, _text(summary, folder))


def _ready(engine: Engine, request: Request, progress: Progress) -> _Ready:
    size = SIZES[request.size]
    names, outside = _named(request.sources)
    segmenter = request.segmenter or size.lesson.segmenter
    if request.encoder is not None:
        load_encoder(SEGMENTERS[segmenter](1), request.encoder)
    parts = split(request.root, engine.spec.model, request.types, progress)
    lesson = replace(lesson_of(size, len(parts.types)), segmenter=segmenter, encoder=request.encoder)
    order = Order(request.pairs or size.pairs, size.steps, seed=0)
    side = size.side or side_of(parts.good)
    plan = protocol.Plan(side, lesson, request.seeds, order, names, outside, request.recipe)
    return _Ready(engine, parts, plan)


def _refuse_unlike(ready: Mapping[str, _Ready]) -> None:
    """Splits of which no mean can be told."""
    (first, one), *others = ready.items()
    for name, other in others:
        if one.parts.types != other.parts.types:
            raise InputError(
                f"`{first}` was trained on {', '.join(one.parts.types)} and `{name}` on "
                f"{', '.join(other.parts.types)}",
                "name types that both know with `--types`",
            )
    known: dict[frozenset[Path], str] = {}
    for name, other in ready.items():
        held_out = frozenset(photo for pairs in other.parts.test.values() for photo, _ in pairs)
        if (twin := known.setdefault(held_out, name)) != name:
            raise InputError(
                f"`{twin}` and `{name}` hold out the same photographs, which are one split and not two",
                "give one of them, or a model of `stage-rt train` with another `--seed`",
            )


def _evaluated(
    ready: _Ready, request: Request, folder: Path, work: Path, say: Say, progress: Progress
) -> tuple[Done, Measured]:
    """The result in ``folder``; pairs and segmenters in ``work``, where they are found again whatever is evaluated
    beside this split."""
    work.mkdir(parents=True, exist_ok=True)
    at = ""

    def told(share: float, what: str) -> None:
        nonlocal at
        progress(share)
        if what != at:
            say(f"{share:4.0%} {what}")
            at = what

    parts = ready.parts
    outcome = protocol.evaluate(parts, ready.engine, work, ready.plan, progress=told)
    figures = measured(parts, outcome)
    summary = result(parts, outcome, figures, _how(ready, request, outcome.lesson))
    report.write(folder, summary)
    first = {row.name: row.figures[0] for row in outcome.rows}
    report.write_examples(folder, outcome.test, first, parts.types)
    return Done(summary, _text(summary, folder)), figures


def _how(ready: _Ready, request: Request, lesson: Lesson) -> dict[str, Any]:
    plan, spec = ready.plan, ready.engine.spec
    crops = f"{lesson.batch} crops of {lesson.crop} px from {plan.side}"
    turned = ", turned by quarters" if lesson.turn else ""
    how = {
        "command": request.command,
        "engine": spec.graphs_fingerprint,
        "backend": f"{spec.backend} {spec.library_version}, {spec.dtype}",
        "segmenter": f"{lesson.segmenter}, {lesson.steps} steps of {crops}{turned}",
        "pairs": plan.order.pairs,
        "steps": plan.order.steps,
        "seeds": request.seeds,
    }
    if plan.outside:
        names = ", ".join(sorted(plan.outside))
        how["published"] = f"{names}; whether their generators saw photographs of the test is not known"
    return how


def _named(asked: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    names, outside = [], {}
    for one in asked:
        name, _, place = one.partition("=")
        if name in names:
            raise InputError(f"source {name!r} was asked for twice: leave one out")
        names.append(name)
        if place:
            outside[name] = Path(place)
    return names, outside


def _text(summary: dict[str, Any], folder: Path) -> str:
    wide = max(len(row["row"]) for row in summary["rows"])
    lines = [
        f"{row['row']:<{wide}}  mIoU {row['miou']:5.1f}  Acc {row['acc']:5.1f}" for row in summary["rows"]
    ]
    told = [f"{one['row']}: {one['points']:+.1f} ({one['word']})" for one in report.verdicts(summary)]
    told += [
        f"{source}: segmenters of real defects do not know its {', '.join(types)}"
        for source, types in report.unknown(summary).items()
        if types
    ]
    return "\n".join([*lines, *told, f"page `{folder / report.PAGE}`"])
