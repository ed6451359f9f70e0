"""Several defect types in one folder: all are checked before the first is begun, and each is a run of its own."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import PromptError, RunError, StageError
from stage_rt.files import disk_failures
from stage_rt.images.inputs import network_image
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress, portion, silent
from stage_rt.run.checks import Checks
from stage_rt.run.fill import Summary, follow, missing, part
from stage_rt.run.job import Job
from stage_rt.run.ledger import Place, check_claim, claim, locked_run, same_job
from stage_rt.run.others import others
from stage_rt.run.painters import Painters
from stage_rt.run.plan import Notify, Plan, make_plan
from stage_rt.run.publish import publish
from stage_rt.run.reject import NOTHING, Rejected, check
from stage_rt.run.watch import UNWATCHED, Watch
from stage_rt.run.workers import prepare
from stage_rt.run.writer import defect_type
from stage_rt.samplers import find
from stage_rt.spec import RUN_FILE, EngineSpec
from stage_rt.strokes import Painter, Piece

TYPES = "types"
"""The folder in which each type has its description, manifest and report."""
MEASURED_STEPS = 4
"""Steps of a batch, at least, whose time is taken for that of all."""
PNG_SHARE = 0.6
"""Size of a written PNG by that of its pixels, of photographs of surfaces."""


@dataclass(frozen=True)
class Outlook:
    """What jobs will come to: pairs by type and how many of them are left, and what those take: seconds without what
    is painted again, and bytes on disk."""

    pairs: dict[str, int]
    left: dict[str, int]
    seconds: float
    bytes: int


def plans(
    engine: EngineSpec,
    jobs: Sequence[Job],
    *,
    notify: Notify,
    progress: Progress = silent,
    checks: Checks | None = None,
) -> list[Plan]:
    """The plan of every job, all of whose files were checked.

    Raises:
        InputError: as `stage_rt.run.plan.make_plan`; says of which type.
    """
    made = []
    for number, job in enumerate(jobs):
        share = portion(progress, number / len(jobs), (number + 1) / len(jobs))
        try:
            made.append(make_plan(engine, job, _of(job.prompt, notify), share, checks))
        except PromptError:
            # It names the type.
            raise
        except StageError as error:
            raise type(error)(f"{job.prompt}: {error.problem}", error.remedy) from error
    return made


def follow_all(
    painters: Painters,
    made: Sequence[Plan],
    folder: Path,
    *,
    checks: Checks | None = None,
    rejected: Mapping[str, Rejected] = NOTHING,
    watch: Watch = UNWATCHED,
    notify: Notify,
    progress: Progress,
) -> dict[str, Summary]:
    """Paint every plan into ``folder``, one type after the other; what each came to, by its prompt.

    ``rejected`` are pairs by their type whose image is to be replaced. ``watch`` is told what happens.

    The same plans again resume. A type that was added later is painted beside the others, which keep their place in
    data set and report whether there is a plan of theirs or not.

    Raises:
        RunError: ``folder`` is a run of one type, holds runs of other jobs or something else or is in use, or others
            are of other photographs.
        StageError: as `stage_rt.run.fill.fill`.
    """
    check_runs(made, folder, several=True)
    check(rejected, [(plan, _place(folder, plan)) for plan in made])
    claim(folder, TYPES)
    total, done, summaries = sum(plan.spec.count for plan in made), 0, {}
    with disk_failures(folder), locked_run(folder):
        if checks:
            checks.save()
        (folder / TYPES).mkdir(exist_ok=True)
        places = [_place(folder, plan) for plan in made]
        beside = others(folder, folder / TYPES, [place.ledger for place in places], _contents(made))
        watch.open(folder, {defect_type(plan.spec.prompt): len(plan.samples) for plan in made})
        watch.beside(beside.counts)
        for plan, place in zip(made, places, strict=True):
            share = portion(progress, done / total, (done + plan.spec.count) / total)
            told = _of(plan.spec.prompt, notify)
            summaries[plan.spec.prompt] = follow(
                painters, plan, place, rejected=rejected, watch=watch, notify=told, progress=share
            )
            done += plan.spec.count
        parts = [*map(part, made, places), *beside.parts]
        publish(folder, parts, _contents(made), beside.painted)
    return summaries


def check_runs(made: Sequence[Plan], folder: Path, *, several: bool) -> None:
    """See that ``folder``, if it is there, is as the plans need it, of ``several`` types or of one; change nothing.

    Raises:
        RunError: it holds runs of other jobs, or something else.
    """
    if several:
        _check_night(folder)
    if folder.is_dir():
        check_claim(folder, TYPES if several else RUN_FILE)
    for plan in made:
        same_job((_place(folder, plan).ledger if several else folder) / RUN_FILE, plan.spec, plan.given)


def left_of(
    made: Sequence[Plan],
    folder: Path,
    *,
    several: bool,
    rejected: Mapping[str, Rejected] = NOTHING,
    progress: Progress = silent,
) -> list[NDArray[np.bool_]]:
    """Of each sample of each plan whether it is still to be painted into ``folder``; nothing is changed.

    Raises:
        InputError, RunError: as `stage_rt.run.reject.check` and `stage_rt.run.fill.missing`.
    """
    places = [_place(folder, plan) if several else Place.of(folder) for plan in made]
    check(rejected, list(zip(made, places, strict=True)))
    parts = [portion(progress, number / len(made), (number + 1) / len(made)) for number in range(len(made))]
    asked = [rejected.get(defect_type(plan.spec.prompt), {}) for plan in made]
    return [missing(*one) for one in zip(made, places, asked, parts, strict=True)]


def _check_night(folder: Path) -> None:
    if (folder / RUN_FILE).is_file():
        raise RunError(
            f"`{folder}` holds a run of one type: give another `-o`, or its own options to go on with it"
        )


def _contents(made: Sequence[Plan]) -> dict[Path, str]:
    """All photographs of the plans, with their sha256."""
    return {path: digest for plan in made for path, digest in plan.normals.items()}


def _place(folder: Path, plan: Plan) -> Place:
    return Place(folder, folder / TYPES / defect_type(plan.spec.prompt))


def outlook(engine: Painter, made: Sequence[Plan], left: Sequence[NDArray[np.bool_]]) -> Outlook:
    """How long what is ``left`` of the plans will take and what it will need, by a few steps of a batch of each."""
    seconds, size = 0.0, 0
    for plan, lacking in zip(made, left, strict=True):
        if not lacking.any():
            continue
        samples = plan.samples[: plan.together]
        batch = prepare(samples, engine.spec.model, plan.method, plan.digests)
        pace = _seconds_a_batch(engine, plan, batch.pieces[: plan.spec.batch])
        regions = len(batch.pieces) / len(batch.samples)
        # What something is missing of is painted whole.
        parts = [lacking[start : start + plan.together] for start in range(0, len(lacking), plan.together)]
        painted = sum(len(part) for part in parts if part.any())
        seconds += -(-painted * regions // plan.spec.batch) * pace
        written = [plan.samples[int(place)] for place in np.flatnonzero(lacking)]
        pixels = [sample.size[0] * sample.size[1] * (1 if sample.grey else 3) for sample in written]
        size += round(sum(pixels) * PNG_SHARE)
    counts = {plan.spec.prompt: len(plan.samples) for plan in made}
    still = {plan.spec.prompt: int(one.sum()) for plan, one in zip(made, left, strict=True)}
    return Outlook(counts, still, seconds, size)


class _Measured(Exception):  # noqa: N818  # no error
    """Enough steps were timed."""


def _seconds_a_batch(engine: Painter, plan: Plan, pieces: Sequence[Piece]) -> float:
    """How long all steps of a batch take, by the share of them that is told after a few; a device tells it rarely."""
    calls = find(plan.spec.sampler).calls(plan.method.recipe, plan.method.steps)
    begun = monotonic()
    told: list[tuple[float, float]] = []

    def timed(share: float) -> None:
        told.append((share, monotonic()))
        if round((share - told[0][0]) * calls) >= MEASURED_STEPS:
            raise _Measured

    with suppress(_Measured):
        engine.paint(
            np.stack([network_image(piece.photo, engine.spec.model) for piece in pieces]),
            np.stack([piece.mask for piece in pieces]),
            prompt=plan.method.prompt,
            noise=PhiloxNoise([plan.spec.seed] * len(pieces), range(len(pieces))),
            sampler=plan.method.sampler,
            recipe=plan.method.recipe,
            steps=plan.method.steps,
            progress=timed,
        )
    if not told:
        return monotonic() - begun
    # What comes before the first step counts only where nothing else was told.
    (first, start), (last, end) = told[0] if len(told) > 1 else (0.0, begun), told[-1]
    return (end - start) / (last - first)


def _of(prompt: str, notify: Notify) -> Notify:
    return lambda notice: notify(f"{prompt}: {notice}")
