"""One run: a folder being filled with pairs, which the same job again resumes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from stage_rt.progress import Progress, portion, silent
from stage_rt.run import report, thumbnails
from stage_rt.run.job import Job
from stage_rt.run.ledger import Manifest, Place, open_run
from stage_rt.run.plan import Notify, Plan, make_plan
from stage_rt.run.publish import publish
from stage_rt.run.quality import Stroke
from stage_rt.run.reject import NOTHING, Rejected, check, mark
from stage_rt.run.sample import Sample
from stage_rt.run.watch import UNWATCHED, Watch
from stage_rt.run.workers import Batch, Painter, Result, finish, paint, prepare
from stage_rt.run.writer import WriterThread, defect_type, pair_paths, write_pair
from stage_rt.spec import ModelSpec, PairRecord

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
    checked, then ``progress`` the share of the run that is done; what they raise ends the run, which leaves no half
    pair, and nothing at all before painting begins.

    Raises:
        InputError, PromptError, DatasetError, ImageError, MaskError: the job cannot be done.
        RunError: ``folder`` holds something else, is damaged or in use.
    """
    plan, place = make_plan(engine.spec, job, notify, checking), Place.of(folder)
    check(rejected, [(plan, place)])
    return follow(engine, plan, place, rejected=rejected, watch=watch, notify=notify, progress=progress)


def follow(
    engine: Painter,
    plan: Plan,
    place: Place,
    *,
    rejected: Mapping[str, Rejected] = NOTHING,
    watch: Watch = UNWATCHED,
    notify: Notify,
    progress: Progress,
) -> Summary:
    """`fill` for a plan that was made already; of several types in one folder whoever fills it makes the report."""
    with open_run(place, plan.spec) as manifest:
        watch.open(place.data, {defect_type(plan.spec.prompt): plan.spec.count})
        if asked := rejected.get(defect_type(plan.spec.prompt)):
            marked = mark(manifest, asked)
            notify(f"{marked} rejected pairs are painted again, {len(asked) - marked} were before")
        written = _fill(engine, plan, place.data, manifest, watch, notify, progress)
        manifest.tidy([sample.index for sample in plan.samples])
        records = [manifest.records[sample.index] for sample in plan.samples]
        if place.data == place.ledger:
            publish(place.data, [part(plan, place)], plan.normals)
    return Summary(
        pairs=sum(record.status == "ok" for record in records),
        written=written,
        failed=[record.index for record in records if record.status == "failed"],
        left_out=[record.index for record in records if record.status == "left out"],
        weak=[record.index for record in records if record.weak and record.status == "ok"],
        refilled=sum(record.attempts is not None for record in records),
        steps=plan.method.steps,
        fill=sorted(record.fill for record in records if record.fill is not None),
        contact_sheet=place.data / report.CONTACT_SHEET,
        report=place.data / report.PAGE,
    )


def part(plan: Plan, place: Place) -> report.Part:
    """What a report is made from."""
    return report.Part(place, plan.spec, [sample.normal for sample in plan.samples], plan.notices)


def _fill(
    engine: Painter,
    plan: Plan,
    folder: Path,
    manifest: Manifest,
    watch: Watch,
    notify: Notify,
    progress: Progress,
) -> int:
    """Paint on this thread, finish and write on another; returns how many pairs are new."""
    model = engine.spec.model
    samples = [_with_rejected(sample, manifest) for sample in plan.samples]
    missing = {s.index for s in samples if not manifest.done(s.index, folder, plan.planned(s))}
    done, count = len(samples) - len(missing), len(samples)
    strange = _Strange(model.round_trip, notify)
    watch.begin(defect_type(plan.spec.prompt), done)
    progress(done / count)
    with WriterThread() as writer:
        for start in range(0, count, plan.together):
            part = samples[start : start + plan.together]
            wanted = {sample.index for sample in part} & missing
            if not wanted:
                continue
            share = portion(progress, done / count, (done + len(wanted)) / count)
            batch = prepare(part, model, plan.method.region)
            strokes = paint(
                engine,
                batch,
                plan.method,
                seed=plan.spec.seed,
                size=plan.spec.batch,
                progress=watch.stepping(_watched(writer.check, share)),
            )
            writer.start(partial(_write, plan, batch, strokes, wanted, model, folder, manifest, watch))
            done += len(wanted)
            strange.look(manifest)
        progress(done / count)
    strange.look(manifest)
    return sum(manifest.records[index].status == "ok" for index in missing)


def _with_rejected(sample: Sample, manifest: Manifest) -> Sample:
    record = manifest.records.get(sample.index)
    return replace(sample, rejected=tuple(record.rejected)) if record and record.rejected else sample


class _Strange:
    """Tells once if the first pairs' photographs are unlike those the model was trained on."""

    def __init__(self, familiar: float | None, notify: Notify) -> None:
        self._familiar, self._notify = familiar, notify

    def look(self, manifest: Manifest) -> None:
        if self._familiar is None:
            return
        # A copy, as another thread appends.
        changes = [one.round_trip for one in list(manifest.records.values()) if one.round_trip is not None]
        if not changes:
            return
        if (found := median(changes)) > STRANGE * self._familiar:
            self._notify(
                "the photographs look unlike those the model was trained on: where nothing is painted the networks "
                f"change them by up to {found:.0f} grey levels, and {self._familiar:.0f} in training"
            )
        self._familiar = None


def _watched(check: Callable[[], None], progress: Progress) -> Progress:
    """A `Progress` that also raises what the writer thread did."""

    def watched(share: float) -> None:
        check()
        progress(share)

    return watched


def _write(
    plan: Plan,
    batch: Batch,
    strokes: Callable[[], Sequence[Stroke]],
    wanted: Collection[int],
    model: ModelSpec,
    folder: Path,
    manifest: Manifest,
    watch: Watch,
) -> None:
    exact = plan.spec.region is not None
    results = finish(batch, strokes(), model, composited=plan.spec.composite, exact=exact)
    for result in results:
        if result.sample.index in wanted:
            record = _keep(plan, result, folder)
            manifest.append(record)
            watch.add(defect_type(plan.spec.prompt), record)


def _keep(plan: Plan, result: Result, folder: Path) -> PairRecord:
    sample, spec = result.sample, plan.spec
    record = PairRecord(
        index=sample.index,
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
    if spec.strict and record.weak:
        reason = f"{result.weakest:.0%} of a label was painted, less than {spec.min_fill:.0%}"
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
