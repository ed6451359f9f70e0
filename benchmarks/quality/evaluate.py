"""What ``stage-rt evaluate`` does: the protocol, then its files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stage_rt.engine import Engine
from stage_rt.errors import InputError
from stage_rt.names import RecipeName, SegmenterName, SizeName
from stage_rt.progress import Progress

from . import protocol, report
from .result import result
from .segmenters import SEGMENTERS
from .segmenters.encoder import load_encoder
from .sizes import SIZES, lesson_of, side_of
from .sources import Order
from .split import split


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


def run(
    engine: Engine, request: Request, folder: Path, *, say: Callable[[str], None], progress: Progress
) -> Done:
    """Evaluate and write ``result.json``, the page and its plot into ``folder``.

    Raises:
        StageError: the request cannot be done, or a file is unusable; what was computed stays.
    """
    size = SIZES[request.size]
    names, outside = _named(request.sources)
    segmenter = request.segmenter or size.lesson.segmenter
    if request.encoder is not None:
        load_encoder(SEGMENTERS[segmenter](1), request.encoder)
    parts = split(request.root, engine.spec.model, request.types)
    lesson = replace(lesson_of(size, len(parts.types)), segmenter=segmenter, encoder=request.encoder)
    order = Order(request.pairs or size.pairs, size.steps, seed=0)
    side = size.side or side_of(parts.good)
    plan = protocol.Plan(side, lesson, request.seeds, order, names, outside, request.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    at = ""

    def told(share: float, what: str) -> None:
        nonlocal at
        progress(share)
        if what != at:
            say(f"{share:4.0%} {what}")
            at = what

    outcome = protocol.evaluate(parts, engine, folder, plan, progress=told)
    crops = f"{lesson.batch} crops of {lesson.crop} px from {side}"
    turned = ", turned by quarters" if outcome.lesson.turn else ""
    how = {
        "command": request.command,
        "engine": engine.spec.graphs_fingerprint,
        "segmenter": f"{lesson.segmenter}, {lesson.steps} steps of {crops}{turned}",
        "pairs": order.pairs,
        "steps": order.steps,
        "seeds": request.seeds,
    }
    summary = result(parts, outcome, how)
    report.write(folder, summary)
    found = {row.name: row.figures[0].found for row in outcome.rows}
    report.write_examples(folder, outcome.test, found, parts.types)
    return Done(summary, _text(summary, folder))


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
