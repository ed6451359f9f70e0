"""One run: a folder being filled with pairs, which the same job again resumes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import amount
from stage_rt.progress import Progress, counted, portion, silent
from stage_rt.run import report, thumbnails
from stage_rt.run.checks import CHECKS_FILE, Checks
from stage_rt.run.job import Job
from stage_rt.run.ledger import Manifest, Place, open_run, records_of
from stage_rt.run.metrics import Outcome
from stage_rt.run.painters import Alone, Painters
from stage_rt.run.plan import Notify, Plan, make_plan
from stage_rt.run.publish import publish
from stage_rt.run.reject import NOTHING, Rejected, check, mark, standing
from stage_rt.run.sample import Sample
from stage_rt.run.shards import take
from stage_rt.run.watch import UNWATCHED, Watch
from stage_rt.run.workers import Result, Task
from stage_rt.run.writer import defect_type, pair_paths, write_pair
from stage_rt.samplers import steps_of
from stage_rt.spec import MANIFEST_FILE, PairRecord, RunSpec
from stage_rt.strokes import Painter

STRANGE = 2.0
"""How many times more than in training a picture may change where nothing is painted."""
NON_FINITE = "the sampler's result is not finite"


@dataclass(frozen=True)
class Summary:
    """What a run came to: ``written`` pairs by this call, indices of ``failed`` samples and of those ``left_out``.

    ``weak`` are the indices of pairs that were kept although their label was painted too little, ``refilled`` is how
    many pairs were painted more than once. ``steps`` is how many levels the sampler visited for each. ``fill`` are
    the shares of the labels that were painted, ascending.
    """

    pairs: int
    written: int
    failed: list[int]
    left_out: list[int]
    weak: list[int]
    refilled: int
    steps: int
    fill: list[float]
    contact_sheet: Path
    report: Path


def fill(
    engine: Painter,
    job: Job,
    folder: Path,
    *,
    rejected: Mapping[str, Rejected] = NOTHING,
    watch: Watch = UNWATCHED,
    notify: Notify = lambda notice: None,
    checking: Progress = silent,
    progress: Progress = silent,
) -> Summary:
    """Make every pair of ``job`` that ``folder`` does not hold yet, then its report and what makes it a data set.

    Every file is checked before anything is written. Batches are fixed by index and a batch with a missing
    pair is painted whole, so the finished folder has the same bytes however often the run was cut off.
    ``rejected`` are pairs whose image is to be replaced by another attempt (`stage_rt.run.reject`).
    ``watch`` is told what happens.
    ``notify`` gets one sentence per thing the user should know. ``checking`` gets the share of the files that were
    checked, then that of the pairs, and ``progress`` the share of the run that is done; what they raise ends the run,
    which leaves no half pair, and nothing at all while files are checked.

    Raises:
        InputError, PromptError, DatasetError, ImageError, MaskError: the job cannot be done.
        RunError: ``folder`` holds something else, is damaged or in use.
    """
    return fill_by(
        Alone(engine),
        job,
        folder,
        rejected=rejected,
        watch=watch,
        notify=notify,
        checking=checking,
        progress=progress,
    )


def fill_by(
    painters: Painters,
    job: Job,
    folder: Path,
    *,
    shard: tuple[int, int] | None = None,
    planned: Callable[[Plan], object] = lambda plan: None,
    rejected: Mapping[str, Rejected],
    watch: Watch,
    notify: Notify,
    checking: Progress,
    progress: Progress,
) -> Summary:
    """`fill` by whoever paints; of all samples, or of the ``shard`` of that number and count.

    ``planned`` is told the plan once its files were checked.
    """
    checks, place = Checks(folder / CHECKS_FILE), Place.of(folder)
    files, pairs = portion(checking, 0.0, 0.5), portion(checking, 0.5, 1.0)
    plan = make_plan(painters.spec, job, notify, files, checks)
    if shard:
        plan = take(plan, *shard)
    planned(plan)
    check(rejected, [(plan, place)])
    return follow(
        painters,
        plan,
        place,
        checks=checks,
        rejected=rejected,
        watch=watch,
        notify=notify,
        checking=pairs,
        progress=progress,
    )


def follow(
    painters: Painters,
    plan: Plan,
    place: Place,
    *,
    checks: Checks | None = None,
    rejected: Mapping[str, Rejected] = NOTHING,
    watch: Watch = UNWATCHED,
    notify: Notify,
    checking: Progress = silent,
    progress: Progress,
) -> Summary:
    """`fill` for a plan that was made already; of several types in one folder whoever fills it makes the report.

    ``checks`` are kept once the folder is the run's. ``checking`` gets the share of the samples of which it is known
    whether they are done.
    """
    kind = defect_type(plan.spec.prompt)
    with open_run(place, plan.spec, plan.given) as manifest:
        if checks:
            checks.save()
        watch.open(place.data, {kind: len(plan.samples)})
        if asked := rejected.get(kind):
            marked = mark(manifest, asked)
            notify(
                f"{amount(marked, 'rejected pair')} to be painted again, {len(asked) - marked} painted before"
            )
        missing = _missing(plan, place.data, manifest, checking)
        written = _fill(painters, plan, missing, place.data, manifest, watch, notify, progress)
        summary = conclude(plan.spec, plan.samples.numbers, manifest, place, written=written)
        if place.data == place.ledger:
            publish(place.data, [part(plan, place)], plan.normals)
    return summary


def conclude(
    spec: RunSpec,
    indices: Sequence[int] | NDArray[np.int64],
    manifest: Manifest,
    place: Place,
    *,
    written: int,
) -> Summary:
    """Tidy the manifest of a run whose samples ``indices`` all have a line, and sum it up.

    ``written`` is how many pairs are new.
    """
    manifest.tidy(indices)
    by_status: defaultdict[str, list[int]] = defaultdict(list)
    weak: list[int] = []
    fill: list[float] = []
    refilled = 0
    for record in records_of(place, spec.prompt):
        by_status[record.status].append(record.index)
        refilled += record.attempts is not None
        if record.weak and record.status == "ok":
            weak.append(record.index)
        if record.fill is not None:
            fill.append(record.fill)
    return Summary(
        pairs=len(by_status["ok"]),
        written=written,
        failed=by_status["failed"],
        left_out=by_status["left out"],
        weak=weak,
        refilled=refilled,
        steps=steps_of(spec.sampler, spec.recipe, spec.steps),
        fill=sorted(fill),
        contact_sheet=place.data / report.CONTACT_SHEET,
        report=place.data / report.PAGE,
    )


def part(plan: Plan, place: Place) -> report.Part:
    """What a report is made from."""
    return report.Part(place, plan.spec, [sample.normal for sample in plan.samples], plan.notices)


def missing(plan: Plan, place: Place, rejected: Rejected, progress: Progress) -> NDArray[np.bool_]:
    """Of each sample of a plan whether `follow` would paint it, given what is ``rejected``; nothing is changed.

    Raises:
        RunError: the manifest is damaged, or a pair was made from a file of that name with another content.
    """
    path = place.ledger / MANIFEST_FILE
    if not path.is_file():
        return np.ones(len(plan.samples), dtype=np.bool_)
    manifest = Manifest(path, plan.spec.prompt, count=plan.spec.count, look=True)
    again = [record.index for record in standing(manifest, rejected)]
    return _missing(plan, place.data, manifest, progress) | np.isin(plan.samples.numbers, again)


def _missing(plan: Plan, folder: Path, manifest: Manifest, progress: Progress) -> NDArray[np.bool_]:
    """Of each sample whether it is to be painted."""
    planned = counted(plan.samples, progress)
    missing = [not manifest.done(sample.index, folder, plan.planned(sample)) for sample in planned]
    return np.array(missing, dtype=np.bool_)


def _fill(
    painters: Painters,
    plan: Plan,
    missing: NDArray[np.bool_],
    folder: Path,
    manifest: Manifest,
    watch: Watch,
    notify: Notify,
    progress: Progress,
) -> int:
    """Have everything painted that is missing, and write it; returns how many pairs are new."""
    wanted, kind = int(missing.sum()), defect_type(plan.spec.prompt)
    strange = _Strange(painters.spec.model.round_trip, notify)
    written = 0

    def keep(task: Task, results: Iterable[Result]) -> None:
        nonlocal written
        samples = {sample.index: sample for sample in task.samples}
        records = []
        for result in results:
            if result.index in task.wanted:
                sample = samples[result.index]
                records.append(_written(plan, sample, result, folder))
                manifest.append(records[-1])
                if records[-1].status != "failed":
                    manifest.seal(result.index, folder, plan.planned(sample))
                watch.add(kind, records[-1])
                written += records[-1].status == "ok"
        strange.look(records)

    done = np.asarray(plan.samples.numbers)[~missing].tolist()
    watch.begin(kind, Counter(Outcome.of(manifest.records[number]) for number in done))
    rest = portion(progress, 1 - wanted / max(len(missing), 1), 1.0)
    rest(0.0)
    if wanted:
        tasks = _tasks(plan, missing, manifest)
        painters.work(tasks, wanted, keep, watch.stepping(rest), watch.stepped)
        rest(1.0)
    strange.look([manifest.records[int(number)] for number in plan.samples.numbers[: plan.together]])
    return written


def _tasks(plan: Plan, missing: NDArray[np.bool_], manifest: Manifest) -> Iterator[Task]:
    """The batches that something is missing of, each whole."""
    for start in range(0, len(plan.samples), plan.together):
        part = slice(start, start + plan.together)
        if missing[part].any():
            samples = [_with_rejected(sample, manifest) for sample in plan.samples[part]]
            wanted = frozenset(
                sample.index for sample, lacks in zip(samples, missing[part], strict=True) if lacks
            )
            spec = plan.spec
            digests = plan.digests_of(samples)
            yield Task(samples, wanted, plan.method, spec.seed, spec.batch, spec.composite, digests)


def _with_rejected(sample: Sample, manifest: Manifest) -> Sample:
    record = manifest.records.get(sample.index)
    return replace(sample, rejected=tuple(record.rejected)) if record and record.rejected else sample


class _Strange:
    """Tells once if the first pairs' photographs are unlike those the model was trained on."""

    def __init__(self, familiar: float | None, notify: Notify) -> None:
        self._familiar, self._notify = familiar, notify

    def look(self, records: Sequence[PairRecord]) -> None:
        if self._familiar is None:
            return
        changes = [one.round_trip for one in records if one.round_trip is not None]
        if not changes:
            return
        if (found := median(changes)) > STRANGE * self._familiar:
            self._notify(
                "the photographs look unlike those the model was trained on: where nothing is painted the networks "
                f"change them by up to {found:.0f} grey levels, and {self._familiar:.0f} in training"
            )
        self._familiar = None


def _written(plan: Plan, sample: Sample, result: Result, folder: Path) -> PairRecord:
    """The record of a result, whose files were written if it is to be kept."""
    spec = plan.spec
    record = PairRecord(
        index=result.index,
        status="failed",
        reason=NON_FINITE,
        **plan.planned(sample),
        latent_mask_cells=result.latent_mask_cells,
        regions=result.regions if result.regions > 1 else None,
        attempts=result.attempts if result.attempts > 1 else None,
        weak=True if spec.min_fill is not None and result.weakest < spec.min_fill else None,
        rejected=list(sample.rejected) or None,
    )
    image, mask = pair_paths(spec.prompt, sample.index)
    if result.image is None or result.figures is None:
        _remove(folder, image, mask)
        return record
    if spec.strict and spec.min_fill is not None and record.weak:
        # Rounded down, as what is told to be less shall look so.
        painted = f"{int(100 * result.weakest)}%"
        reason = f"{painted} of a label was painted, less than {100 * spec.min_fill:g}%"
        _remove(folder, image, mask)
        return record.model_copy(update={"status": "left out", "reason": reason})
    image_sha256, mask_sha256 = write_pair(folder, (image, mask), result.image, result.label)
    written = {"image": image, "mask": mask, "image_sha256": image_sha256, "mask_sha256": mask_sha256}
    measured = {
        "fill": round(result.figures.fill, 4),
        "leak": round(result.figures.leak, 4),
        "contrast": round(result.figures.contrast, 2),
        "label_pixels": result.figures.label_pixels,
        "round_trip": round(result.round_trip, 1),
        "box": result.box,
    }
    record = record.model_copy(update={"status": "ok", "reason": None, **written, **measured})
    thumbnails.put(folder, defect_type(spec.prompt), record, result.thumbnail or b"")
    return record


def _remove(folder: Path, *paths: str) -> None:
    """What was rejected does not stay where nothing takes its place."""
    for path in paths:
        (folder / path).unlink(missing_ok=True)
