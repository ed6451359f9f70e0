"""A job as a list of samples, with every file checked before anything is written."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import MaskError
from stage_rt.files import sha256
from stage_rt.images.inputs import Header, check_image, fit_mask, latent_mask, read_header, read_mask
from stage_rt.run.job import Job, Method, resolve
from stage_rt.run.pairing import pair
from stage_rt.spec import EngineSpec, ModelSpec, RunSpec

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """One pair to be made; ``size`` is the (width, height) of its photograph, ``grey`` whether it has one channel."""

    index: int
    normal: Path
    mask: Path
    size: tuple[int, int]
    grey: bool

    def label(self) -> NDArray[np.bool_]:
        """The mask at its photograph's size, bool ``[H, W]``."""
        return fit_mask(read_mask(self.mask), self.size, self.mask)


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a run: its samples in order, and ``spec``, which is written down."""

    method: Method
    samples: list[Sample]
    spec: RunSpec


def make_plan(engine: EngineSpec, job: Job, notify: Notify) -> Plan:
    """Check every file of ``job`` and pair them.

    A photograph is opened once here if the run will use all of them, and otherwise once more if it uses this one.
    ``notify`` gets one sentence per thing the user should know.

    Raises:
        InputError, PromptError, DatasetError, ImageError, MaskError: the job cannot be done.
    """
    method = resolve(job, engine.model)
    photographs = _Photographs(job.normals, every=job.count >= len(job.normals))
    masks = {path: read_header(path, MaskError) for path in job.masks}
    samples = _pair(job, photographs.headers, masks, notify)
    used = {sample.normal for sample in samples}
    for normal in photographs.headers:
        if normal in used:
            photographs.digest(normal)
    _check_masks(samples, engine.model, notify)
    digests = {path: photographs.digest(path) if path in used else "" for path in photographs.headers}
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
        normals=_digest(photographs.headers, digests),
        masks=_digest(masks, _contents(masks, {sample.mask for sample in samples})),
    )
    return Plan(method, samples, spec)


def readable(path: Path) -> str:
    """The name of a file, which need not be text on the disk, as text."""
    return os.fsencode(path.name).decode(errors="replace")


class _Photographs:
    """Headers and digests of photographs; what is digested is known to decode."""

    def __init__(self, paths: Sequence[Path], *, every: bool) -> None:
        self._digests: dict[Path, str] = {}
        self.headers = {path: self._check(path) if every else read_header(path) for path in paths}

    def digest(self, path: Path) -> str:
        if path not in self._digests:
            self._check(path)
        return self._digests[path]

    def _check(self, path: Path) -> Header:
        header, self._digests[path] = check_image(path)
        return header


def _pair(
    job: Job, normals: Mapping[Path, Header], masks: Mapping[Path, Header], notify: Notify
) -> list[Sample]:
    pairs, left_out = pair(normals, masks, count=job.count, seed=job.seed)
    if left_out:
        notify(f"masks left out, as no photograph has their shape: {_some(left_out)}")
    resized = sorted({mask for normal, mask in pairs if normals[normal][:2] != masks[mask][:2]})
    if resized:
        notify(f"masks resized to the size of their photograph: {_some(resized)}")
    return [
        Sample(index, normal, mask, normals[normal][:2], normals[normal].grey)
        for index, (normal, mask) in enumerate(pairs)
    ]


def _check_masks(samples: Sequence[Sample], spec: ModelSpec, notify: Notify) -> None:
    """Decode every mask the run will use: a bad one must not be found in the middle of the night."""
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
    names = ", ".join(f"`{readable(path)}`" for path in paths[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"


def _contents(files: Mapping[Path, Header], used: Collection[Path]) -> dict[Path, str]:
    return {path: sha256(path) if path in used else "" for path in files}


def _digest(headers: Mapping[Path, Header], contents: Mapping[Path, str]) -> str:
    """Digest of what decides the pairing (all names and sizes) and the pixels (the used files' contents)."""
    digest = hashlib.sha256()
    for path, header in headers.items():
        line = f"\0{header.width}\0{header.height}\0{contents[path]}\n"
        digest.update(os.fsencode(path.name) + line.encode())
    return digest.hexdigest()
