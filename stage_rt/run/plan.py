"""A job as a list of samples, with every file checked before anything is written."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stage_rt.errors import InputError, MaskError
from stage_rt.files import sha256
from stage_rt.images.inputs import (
    Header,
    check_image,
    fit_mask,
    latent_mask,
    read_header,
    same_aspect,
)
from stage_rt.images.masks import Reading, read_mask
from stage_rt.images.regions import regions
from stage_rt.progress import Progress, counted, portion, silent
from stage_rt.run.augment import augmented
from stage_rt.run.job import Job, Method, resolve
from stage_rt.run.pairing import pair
from stage_rt.run.sample import Sample, readable
from stage_rt.spec import EngineSpec, ModelSpec, RegionView, RunSpec

PIXELS_TOGETHER = 128_000_000
"""Photographs that are cut into regions are held in memory for as long as their batch takes, up to so many pixels."""

COVERING = 0.9
"""Share of a photograph beyond which a label is told of: an inverted mask labels nearly everything."""

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a run: its samples in order, and ``spec``, which is written down.

    ``together`` samples are read, painted and written at a time. ``digests`` are the sha256 of all files that are
    used. ``normals`` are all photographs, used or not, ``notices`` what was told of the files.
    """

    method: Method
    samples: list[Sample]
    together: int
    spec: RunSpec
    digests: Mapping[Path, str]
    normals: Sequence[Path] = ()
    notices: Sequence[str] = ()

    def planned(self, sample: Sample) -> dict[str, Any]:
        """What the record of a sample holds whatever is painted."""
        used = [self.digests[path] for path in sample.label_files]
        return {
            "normal": readable(sample.normal),
            "label": " + ".join(map(readable, sample.masks)),
            "normal_sha256": self.digests[sample.normal],
            "label_sha256": used[0] if len(used) == 1 else hashlib.sha256("".join(used).encode()).hexdigest(),
            "prompt": self.spec.prompt,
            "seed": self.spec.seed,
            "sampler": self.spec.sampler,
            "recipe": self.spec.recipe.name,
            "steps": self.spec.steps,
        }


def make_plan(engine: EngineSpec, job: Job, notify: Notify, progress: Progress = silent) -> Plan:
    """Check every file of ``job`` and pair them.

    A photograph is opened once here if the run will use all of them, and otherwise once more if it uses this one.
    ``notify`` gets one sentence per thing the user should know, ``progress`` the share of the files that was checked.

    Raises:
        InputError, PromptError, DatasetError, ImageError, MaskError: the job cannot be done.
    """
    method, notices = resolve(job, engine.model), list[str]()
    notify = _noted(notify, notices)
    if job.view is not None and (method.region is None) != (engine.model.region is None):
        trained = "squares around defects" if engine.model.region else "whole photographs"
        notify(f"the model was trained on {trained}, so `--view {job.view}` may paint worse")
    photographs = _Photographs(
        job.normals, every=job.count >= len(job.normals), progress=portion(progress, 0.0, 0.4)
    )
    masks = {path: read_header(path, MaskError) for path in counted(job.masks, portion(progress, 0.4, 0.5))}
    samples = _pair(
        job, photographs.headers, masks, _Labels(engine.model, method.region, job.reading), notify
    )
    if job.augment:
        samples = augmented(samples, job, masks)
    elif job.objects:
        raise InputError("masks of the object only serve labels that are moved", "add `--augment-masks`")
    used = {sample.normal for sample in samples}
    for normal in counted(photographs.headers, portion(progress, 0.5, 0.8)):
        if normal in used:
            photographs.digest(normal)
    _check_masks(samples, job.reading, notify, portion(progress, 0.8, 1.0))
    files = {path for sample in samples for path in sample.label_files}
    digests = {path: photographs.digest(path) for path in used} | {path: sha256(path) for path in files}
    spec = RunSpec(
        engine=engine.graphs_fingerprint,
        backend=engine.backend,
        recipe=method.recipe,
        sampler=job.sampler,
        prompt=job.prompt,
        count=job.count,
        seed=job.seed,
        composite=job.composite,
        batch=job.batch,
        steps=None if method.own_steps else method.steps,
        region=method.region,
        min_fill=method.min_fill or None,
        retries=method.retries,
        strict=job.strict,
        normals=files_digest(photographs.headers),
        augment=job.augment,
        mask_class=job.reading.value,
        mask_threshold=job.reading.threshold,
        objects=files_digest({path: read_header(path) for path in job.objects}) if job.objects else None,
        masks=files_digest(masks),
    )
    together = _together(samples, job.batch, method.region)
    return Plan(method, samples, together, spec, digests, list(photographs.headers), notices)


def _noted(notify: Notify, notices: list[str]) -> Notify:
    """``notify`` that keeps what it tells."""

    def noted(notice: str) -> None:
        notices.append(notice)
        notify(notice)

    return noted


def _together(samples: Sequence[Sample], batch: int, view: RegionView | None) -> int:
    """``batch``, or as many as `PIXELS_TOGETHER` allow of photographs that are cut into regions."""
    if view is None:
        return batch
    largest = max(sample.size[0] * sample.size[1] for sample in samples)
    return min(max(PIXELS_TOGETHER // largest, 1), batch)


class _Photographs:
    """Headers and digests of photographs; what is digested is known to decode."""

    def __init__(self, paths: Sequence[Path], *, every: bool, progress: Progress) -> None:
        self._digests: dict[Path, str] = {}
        self.headers = {
            path: self._check(path) if every else read_header(path) for path in counted(paths, progress)
        }

    def digest(self, path: Path) -> str:
        if path not in self._digests:
            self._check(path)
        return self._digests[path]

    def _check(self, path: Path) -> Header:
        header, self._digests[path] = check_image(path)
        return header


class _Labels:
    """Whether a mask shows anything in the latent of a photograph of some size; it is decoded if that is in doubt."""

    def __init__(self, model: ModelSpec, view: RegionView | None, reading: Reading) -> None:
        self._model, self._view, self._reading = model, view, reading
        self.shows = cache(self._shows)

    def _shows(self, mask: Path, drawn: tuple[int, int], size: tuple[int, int]) -> bool:
        if drawn == size and self._model.recipe.mask_rule == "cover":
            return True
        try:
            whole = read_mask(mask, self._reading).label
        except MaskError:
            # Told when it is used.
            return True
        try:
            label = fit_mask(whole, size, mask)
        except MaskError:
            return False
        return all(latent_mask(region.label, self._model).any() for region in regions(label, self._view))


def _pair(
    job: Job, normals: Mapping[Path, Header], masks: Mapping[Path, Header], labels: _Labels, notify: Notify
) -> list[Sample]:
    pairs, left_out = pair(normals, masks, count=job.count, seed=job.seed, shows=labels.shows)
    sizes = {header[:2] for header in normals.values()}
    vanished = [mask for mask in left_out if any(same_aspect(masks[mask][:2], size) for size in sizes)]
    if other := [mask for mask in left_out if mask not in vanished]:
        notify(f"masks left out, as no photograph has their shape: {_names(other)}")
    if vanished:
        notify(f"masks left out, as nothing of some defect would be seen by the networks: {_names(vanished)}")
    resized = sorted({mask for normal, mask in pairs if normals[normal][:2] != masks[mask][:2]})
    if resized:
        notify(f"masks resized to the size of their photograph: {_names(resized)}")
    return [
        Sample(index, normal, mask, normals[normal][:2], normals[normal].grey, job.reading)
        for index, (normal, mask) in enumerate(pairs)
    ]


def _check_masks(samples: Sequence[Sample], reading: Reading, notify: Notify, progress: Progress) -> None:
    """Decode every mask the run will use: a bad one must not be found in the middle of the night."""
    by_mask = defaultdict(set)
    for sample in samples:
        for mask in sample.masks:
            by_mask[mask].add(sample.size)
    shaded, covering = [], []
    for mask, sizes in counted(by_mask.items(), progress):
        label, in_shades = read_mask(mask, reading)
        shaded += [mask] * in_shades
        covering += [mask] * bool(label.mean() > COVERING)
        for size in sorted(sizes):
            fit_mask(label, size, mask)
    if shaded:
        notify(
            f"masks in shades of grey, labelled from half of their brightest on: {_names(shaded)}; "
            "`--mask-threshold` sets another"
        )
    if covering:
        notify(f"masks that label more than {COVERING:.0%} of the photograph: {_names(covering)}")


def _names(paths: Sequence[Path]) -> str:
    names = ", ".join(f"`{readable(path)}`" for path in paths[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"


def files_digest(headers: Mapping[Path, Header]) -> str:
    """Digest of what decides the pairing: the names and sizes of all files, used or not."""
    digest = hashlib.sha256()
    for path, header in headers.items():
        digest.update(os.fsencode(path.name) + f"\0{header.width}\0{header.height}\n".encode())
    return digest.hexdigest()
