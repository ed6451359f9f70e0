"""One run: a folder being filled with pairs, which the same job again resumes."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt import report
from stage_rt.errors import MaskError, PromptError
from stage_rt.files import sha256
from stage_rt.inputs import (
    Header,
    fit_mask,
    latent_mask,
    network_image,
    network_mask,
    read_header,
    read_image,
    read_mask,
)
from stage_rt.noise import PhiloxNoise
from stage_rt.outputs import Manifest, composite, open_run, pair_paths, pixels, write_pair
from stage_rt.pairing import pair
from stage_rt.recipe import Recipe, RecipeName
from stage_rt.samplers import SAMPLERS
from stage_rt.spec import EngineSpec, ModelSpec, PairRecord, RunSpec, SamplerName

if TYPE_CHECKING:
    from stage_rt.executor import Painted

NON_FINITE = "the sampler's result is not finite"


class Painter(Protocol):
    """The part of `stage_rt.engine.Engine` a run needs."""

    @property
    def spec(self) -> EngineSpec:
        """What the engine was compiled for."""

    @property
    def prompts(self) -> Sequence[str]:
        """The prompt names the model knows."""

    def paint(
        self,
        images: NDArray[np.float32],
        masks: NDArray[np.float32],
        *,
        prompt: str,
        noise: PhiloxNoise,
        sampler: SamplerName = "stage",
        recipe: Recipe | None = None,
        callback: Callable[[int, Any], None] | None = None,
    ) -> "Painted":
        """Images ``[B, c, S, S]`` in [-1, 1] with a defect inside their latent masks ``[B, 1, h, w]``."""


@dataclass(frozen=True)
class Job:
    """What the user asked for; ``batch`` samples go through the networks together.

    ``recipe`` names a branch plan to use in place of the model's own.
    """

    normals: Sequence[Path]
    masks: Sequence[Path]
    prompt: str
    count: int
    seed: int
    composite: bool
    batch: int
    sampler: SamplerName = "stage"
    recipe: RecipeName | None = None


@dataclass(frozen=True)
class Summary:
    """What a run came to: ``written`` pairs by this call, ``failed`` indices, ``empty`` latent masks."""

    pairs: int
    written: int
    failed: list[int]
    empty: int
    contact_sheet: Path
    report: Path


@dataclass(frozen=True)
class _Sample:
    index: int
    normal: Path
    mask: Path
    size: tuple[int, int]
    grey: bool

    def label(self) -> NDArray[np.bool_]:
        """The mask at its photograph's size, bool ``[H, W]``."""
        return fit_mask(read_mask(self.mask), self.size, self.mask)


def fill(
    engine: Painter,
    job: Job,
    folder: Path,
    *,
    notify: Callable[[str], None] = lambda notice: None,
    progress: Callable[[float], None] = lambda done: None,
) -> Summary:
    """Make every pair of ``job`` that ``folder`` does not hold yet, then the report.

    Every file is checked before anything is written. Batches are fixed by index and a batch with a missing
    pair is painted whole, so the finished folder has the same bytes however often the run was cut off.
    ``notify`` gets one sentence per thing the user should know. ``progress`` gets the number of pairs done,
    fractions included; it may raise to end the run, which leaves no half pair.

    Raises:
        PromptError, DatasetError, ImageError, MaskError: the job cannot be done.
        RunError: ``folder`` holds something else, is damaged or in use.
    """
    if job.prompt not in engine.prompts:
        raise PromptError(f"unknown prompt {job.prompt!r}: use one of {', '.join(sorted(engine.prompts))}")
    normals = {path: read_header(path) for path in job.normals}
    masks = {path: read_header(path, MaskError) for path in job.masks}
    samples = _pair(job, normals, masks, notify)
    _check(samples, engine.spec.model, notify)
    spec = RunSpec(
        engine=engine.spec.graphs_fingerprint,
        backend=engine.spec.backend,
        recipe=_recipe(engine, job),
        sampler=job.sampler,
        prompt=job.prompt,
        count=job.count,
        seed=job.seed,
        composite=job.composite,
        batch=job.batch,
        normals=_digest(normals, {sample.normal for sample in samples}),
        masks=_digest(masks, {sample.mask for sample in samples}),
    )
    with open_run(folder, spec) as manifest:
        written = _fill(engine, job, samples, folder, manifest, progress)
        manifest.tidy()
        records = [manifest.records[sample.index] for sample in samples]
        report.write(folder, spec, records, [sample.normal for sample in samples])
    return Summary(
        pairs=sum(record.status == "ok" for record in records),
        written=written,
        failed=[record.index for record in records if record.status == "failed"],
        empty=sum(record.latent_mask_cells == 0 for record in records),
        contact_sheet=folder / report.CONTACT_SHEET,
        report=folder / report.PAGE,
    )


def _pair(
    job: Job, normals: Mapping[Path, Header], masks: Mapping[Path, Header], notify: Callable[[str], None]
) -> list[_Sample]:
    pairs, left_out = pair(normals, masks, count=job.count, seed=job.seed)
    if left_out:
        notify(f"masks left out, as no photograph has their shape: {_some(left_out)}")
    resized = sorted({mask for normal, mask in pairs if normals[normal][:2] != masks[mask][:2]})
    if resized:
        notify(f"masks resized to the size of their photograph: {_some(resized)}")
    return [
        _Sample(index, normal, mask, normals[normal][:2], normals[normal].grey)
        for index, (normal, mask) in enumerate(pairs)
    ]


def _check(samples: Sequence[_Sample], spec: ModelSpec, notify: Callable[[str], None]) -> None:
    """Decode every file the run will use: a bad one must not be found in the middle of the night."""
    for normal in {sample.normal: None for sample in samples}:
        read_image(normal)
    by_mask = defaultdict(list)
    for sample in samples:
        by_mask[sample.mask].append(sample.size)
    vanished = []
    for mask, sizes in by_mask.items():
        label = read_mask(mask)
        fitted = [fit_mask(label, size, mask) for size in dict.fromkeys(sizes)]
        if not all(latent_mask(label, spec).any() for label in fitted):
            vanished.append(mask)
    if vanished:
        notify(
            f"masks that vanish in the latent under mask rule `{spec.recipe.mask_rule}`, so that their pairs "
            f"show no defect: {_some(vanished)}"
        )


def _some(paths: Sequence[Path]) -> str:
    names = ", ".join(f"`{_readable(path)}`" for path in paths[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"


def _readable(path: Path) -> str:
    """The name of a file, which need not be text on the disk, as text."""
    return os.fsencode(path.name).decode(errors="replace")


def _digest(files: Mapping[Path, Header], used: Collection[Path]) -> str:
    """Digest of what decides the pairing (all names and sizes) and the pixels (the used files' contents)."""
    digest = hashlib.sha256()
    for path, header in files.items():
        content = sha256(path) if path in used else ""
        digest.update(os.fsencode(path.name) + f"\0{header.width}\0{header.height}\0{content}\n".encode())
    return digest.hexdigest()


def _fill(
    engine: Painter,
    job: Job,
    samples: Sequence[_Sample],
    folder: Path,
    manifest: Manifest,
    progress: Callable[[float], None],
) -> int:
    recipe = _recipe(engine, job)
    missing = {sample.index for sample in samples if not manifest.done(sample.index, folder)}
    done = len(samples) - len(missing)
    progress(done)
    with _Writer() as writer:
        for start in range(0, len(samples), job.batch):
            batch = samples[start : start + job.batch]
            wanted = {sample.index for sample in batch} & missing
            if not wanted:
                continue
            calls = SAMPLERS[job.sampler].calls(engine.spec.model.recipe)
            steps = _Steps(progress, writer.check, done, len(wanted), calls)
            results = _paint(engine, job, recipe, batch, steps)
            writer.start(partial(_keep_all, job, recipe.name, batch, results, wanted, folder, manifest))
            done += len(wanted)
        progress(done)
    return sum(manifest.records[index].status == "ok" for index in missing)


class _Writer:
    """Writes a batch while the next one is painted, in a thread; what was handed over is always finished."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "stage-rt-writer")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._wait()

    def start(self, write: Callable[[], None]) -> None:
        """Hand over a batch; waits for the one before and raises what it raised."""
        self._wait()
        self._writing = self._pool.submit(write)

    def check(self) -> None:
        """Raise what the batch in hand raised, if it did, so that nothing more is painted for a full disk."""
        if self._writing is not None and self._writing.done():
            self._wait()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


@dataclass(frozen=True)
class _Steps:
    """The sampler's callback: turns the steps of a batch into fractions of pairs."""

    progress: Callable[[float], None]
    check: Callable[[], None]
    done: int
    batch: int
    steps: int

    def __call__(self, i: int, state: object) -> None:
        self.check()
        self.progress(self.done + self.batch * (self.steps - i) / self.steps)


@dataclass(frozen=True)
class _Result:
    """A painted sample, ready to be written; ``image`` is None when it is not finite."""

    image: Image.Image | None
    label: NDArray[np.bool_]
    latent_mask_cells: int


def _paint(
    engine: Painter, job: Job, recipe: Recipe, batch: Sequence[_Sample], steps: _Steps
) -> Iterator[_Result]:
    """Paint a batch now; whoever takes the results waits for their images, and makes them ready to be written."""
    model = engine.spec.model
    photos = [read_image(sample.normal) for sample in batch]
    labels = [sample.label() for sample in batch]
    masks = np.stack([latent_mask(label, model) for label in labels])
    painted = engine.paint(
        np.stack([network_image(photo, model) for photo in photos]),
        masks,
        prompt=job.prompt,
        noise=PhiloxNoise([job.seed] * len(batch), [sample.index for sample in batch]),
        sampler=job.sampler,
        recipe=recipe,
        callback=steps,
    )
    return _results(job, model, batch, photos, labels, masks, painted)


def _results(
    job: Job,
    model: ModelSpec,
    batch: Sequence[_Sample],
    photos: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.bool_]],
    masks: NDArray[np.float32],
    painted: "Painted",
) -> Iterator[_Result]:
    images, finite = painted.images, painted.finite
    for n, sample in enumerate(batch):
        image, label = None, labels[n] if job.composite else network_mask(labels[n], model)
        if finite[n]:
            levels = pixels(images[n])
            image = Image.fromarray(composite(photos[n], levels, label) if job.composite else levels)
            image = image.convert("L") if sample.grey else image
        yield _Result(image, label, int(masks[n].sum()))


def _recipe(engine: Painter, job: Job) -> Recipe:
    own = engine.spec.model.recipe
    return own.named(job.recipe) if job.recipe else own


def _keep_all(
    job: Job,
    recipe: str,
    batch: Sequence[_Sample],
    results: Iterator[_Result],
    wanted: Collection[int],
    folder: Path,
    manifest: Manifest,
) -> None:
    for sample, result in zip(batch, results, strict=True):
        if sample.index in wanted:
            manifest.append(_keep(job, recipe, sample, result, folder))


def _keep(job: Job, recipe: str, sample: _Sample, result: _Result, folder: Path) -> PairRecord:
    record = PairRecord(
        index=sample.index,
        status="failed",
        reason=NON_FINITE,
        normal=_readable(sample.normal),
        label=_readable(sample.mask),
        prompt=job.prompt,
        seed=job.seed,
        sampler=job.sampler,
        recipe=recipe,
        latent_mask_cells=result.latent_mask_cells,
    )
    if result.image is None:
        return record
    image, mask = pair_paths(job.prompt, sample.index)
    image_sha256, mask_sha256 = write_pair(folder, (image, mask), result.image, result.label)
    written = {"image": image, "mask": mask, "image_sha256": image_sha256, "mask_sha256": mask_sha256}
    return record.model_copy(update={"status": "ok", "reason": None, **written})
