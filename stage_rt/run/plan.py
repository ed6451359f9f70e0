"""A job as a list of samples, with every file checked before anything is written."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stage_rt.errors import ImageError, InputError, MaskError
from stage_rt.files import identity, sha256
from stage_rt.images.inputs import (
    Header,
    check_image,
    fit_mask,
    read_header,
    same_aspect,
)
from stage_rt.images.masks import Reading, read_mask
from stage_rt.method import Method
from stage_rt.progress import Progress, counted, portion, silent
from stage_rt.run.augment import augmented
from stage_rt.run.checks import Checks, Identity
from stage_rt.run.job import Job, resolve
from stage_rt.run.pairing import pair
from stage_rt.run.sample import Sample, Samples, Sight, listed, readable
from stage_rt.spec import EngineSpec, RegionView, RunSpec

RULES = 3
"""Number of the rules by which photographs and masks are paired, labels made of masks (`stage_rt.run.supply`) and
paint pasted (`stage_rt.images.compose`). Whoever changes what they come to raises it: a run is finished by the rules
it was begun by."""

PIXELS_TOGETHER = 128_000_000
"""Photographs that are cut into regions are held in memory for as long as their batch takes, up to so many pixels."""

COVERING = 0.9
"""Share of a photograph beyond which a label is told of: an inverted mask labels nearly everything."""

TWELVE_BITS = 4095
"""Highest value of cameras of 12 bits, whose files have 16: a sixteenth of what is white there."""

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a run: its samples in order, and ``spec``, which is written down.

    ``together`` samples are read, painted and written at a time. ``digests`` are the sha256 of all files that are
    used, ``normals`` those of all photographs, used or not. ``notices`` is what was told of the files, ``masks`` are
    all that were given.
    """

    method: Method
    samples: Samples
    together: int
    spec: RunSpec
    digests: Mapping[Path, str]
    normals: Mapping[Path, str] = field(default_factory=dict)
    notices: Sequence[str] = ()
    masks: Sequence[Path] = ()

    def given(self) -> dict[str, dict[str, str | None]]:
        """All photographs and masks by their names, with the sha256 of those of which it is known."""
        files = {"normals": list(self.normals), "masks": list(self.masks)}
        known = {**self.digests, **self.normals}
        return {kind: {readable(path): known.get(path) for path in paths} for kind, paths in files.items()}

    def digests_of(self, samples: Iterable[Sample]) -> dict[Path, str]:
        """Those of the files of some samples, for whoever paints them."""
        return {path: self.digests[path] for sample in samples for path in sample.files}

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


def make_plan(
    engine: EngineSpec, job: Job, notify: Notify, progress: Progress = silent, checks: Checks | None = None
) -> Plan:
    """Check every file of ``job`` and pair them.

    Every photograph is decoded here, used or not, as all of them become part of the data set; none is if ``checks``
    remember it. ``notify`` gets one sentence per thing the user should know, ``progress`` the share of the files
    that was checked.

    Raises:
        InputError, PromptError, DatasetError, ImageError, MaskError: the job cannot be done.
    """
    method, checks, notices = resolve(job, engine.model), checks or Checks(), list[str]()
    notify = _noted(notify, notices)
    if job.view is not None and (method.region is None) != (engine.model.region is None):
        trained = "squares around defects" if engine.model.region else "whole photographs"
        notify(f"the model was trained on {trained}, so `--view {job.view}` may paint worse")
    photographs = {
        path: _photograph(checks, path) for path in counted(job.normals, portion(progress, 0.0, 0.7))
    }
    _check_range([brightest for *_, brightest in photographs.values() if brightest is not None], notify)
    normals = {path: header for path, (header, *_) in photographs.items()}
    masks = {
        path: _header(checks, path, MaskError) for path in counted(job.masks, portion(progress, 0.7, 0.75))
    }
    sight = Sight(engine.model, method.region)
    labels = _Labels(sight, job.reading, checks)
    samples = _pair(job, normals, masks, labels, notify, portion(progress, 0.75, 0.8))
    if job.augment:
        shown = portion(progress, 0.8, 0.85)
        samples = augmented(samples, job, masks, labels.shows, sight, checks, shown)
    elif job.objects:
        raise InputError("masks of the object only serve labels that are moved", "add `--augment-masks`")
    used = _Used.of(samples)
    _check_masks(masks, used, job.reading, checks, notify, portion(progress, 0.85, 1.0))
    contents = {path: digest for path, (_, digest, _) in photographs.items()}
    digests = {path: contents[path] for path in used.normals} | {
        path: checks.of(path, "sha256", sha256) for path in used.label_files
    }
    objects = {path: _header(checks, path) for path in job.objects}
    spec = _described(engine, job, method, normals, masks, objects)
    together = _together(normals.values(), job.batch, method.region)
    return Plan(method, samples, together, spec, digests, contents, notices, job.masks)


def _described(
    engine: EngineSpec,
    job: Job,
    method: Method,
    normals: Mapping[Path, Header],
    masks: Mapping[Path, Header],
    objects: Mapping[Path, Header],
) -> RunSpec:
    """What ``run.json`` will hold."""
    return RunSpec(
        rules=RULES,
        engine=engine.graphs_fingerprint,
        dtype=engine.dtype,
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
        rim=method.rim,
        outset=method.outset,
        retries=method.retries,
        strict=job.strict,
        normals=files_digest(normals),
        augment=job.augment,
        mask_class=job.reading.value,
        mask_threshold=job.reading.threshold,
        objects=files_digest(objects) if objects else None,
        masks=files_digest(masks),
    )


def _noted(notify: Notify, notices: list[str]) -> Notify:
    """``notify`` that keeps what it tells."""

    def noted(notice: str) -> None:
        notices.append(notice)
        notify(notice)

    return noted


def _photograph(checks: Checks, path: Path) -> tuple[Header, str, int | None]:
    """Header and sha256 of a photograph that decodes, and the highest of its 16-bit values."""
    header, digest, brightest = checks.of(path, "photograph and highest value", check_image)
    return Header(*header), digest, brightest


def _check_range(brightest: Sequence[int], notify: Notify) -> None:
    """Tell of photographs of 16 bits, by their highest values, that hold numbers of a camera of 12."""
    if brightest and max(brightest) <= TWELVE_BITS:
        notify(
            f"the photographs of 16 bits are nearly black, as none has a value above {max(brightest)} of 65535: "
            "multiply what a camera of 12 bits wrote by 16"
        )


def _header(checks: Checks, path: Path, error: type[InputError] = ImageError) -> Header:
    return Header(*checks.of(path, "header", lambda path: read_header(path, error)))


def _together(normals: Iterable[Header], batch: int, view: RegionView | None) -> int:
    """``batch``, or as many as `PIXELS_TOGETHER` allow of photographs that are cut into regions.

    The largest of all that are given counts, as a run that grows may come to it.
    """
    largest = max(header.width * header.height for header in normals)
    return batch if view is None else min(max(PIXELS_TOGETHER // largest, 1), batch)


@dataclass
class _Used:
    """What samples are made from: photographs, masks with the sizes they are used at, files that decide labels."""

    normals: set[Path]
    masks: dict[Path, set[tuple[int, int]]]
    label_files: set[Path]

    @classmethod
    def of(cls, samples: Samples) -> "_Used":
        used = cls(set(), defaultdict(set), set())
        for sample in samples:
            used.normals.add(sample.normal)
            used.label_files.update(sample.label_files)
            for mask in sample.masks:
                used.masks[mask].add(sample.size)
        return used


class _Labels:
    """Whether a mask shows anything in the latent of a photograph of some size; it is decoded if that is in doubt."""

    def __init__(self, sight: Sight, reading: Reading, checks: Checks) -> None:
        self._sight, self._reading, self._checks = sight, reading, checks
        self.shows = cache(self._shows)
        # Of the mask in hand, which is asked of several sizes, for as long as its file is the same.
        self._label = lru_cache(maxsize=1)(self._read)

    def _shows(self, mask: Path, drawn: tuple[int, int], size: tuple[int, int]) -> bool:
        model, view = self._sight
        if model.recipe.mask_rule == "cover" and self._stays(mask, drawn, size):
            return True
        question = f"shows at {size} to {model.latent_size} {model.recipe.mask_rule}"
        asked = (question, view, self._reading)
        return self._checks.of(mask, repr(asked), lambda mask: self._seen(mask, size))

    def _stays(self, mask: Path, drawn: tuple[int, int], size: tuple[int, int]) -> bool:
        """Whether it is certain, without a look at that size, that something of the label is left there."""
        if size[0] >= drawn[0] and size[1] >= drawn[1]:
            return True
        side = self._checks.of(mask, repr(("largest square", self._reading)), self._square)
        # Nearest pixels are so far apart that one of them is in it, wherever rounding puts them.
        return all(side > before / after + 1 for before, after in zip(drawn, size, strict=True))

    def _square(self, mask: Path) -> int:
        """The side of the largest square in a label, in pixels."""
        label = self._label(mask, identity(mask))
        if label is None:
            return 0
        [box] = ndimage.find_objects(label.astype(np.uint8))
        inside = ndimage.distance_transform_cdt(np.pad(label[box], 1), "chessboard")
        return 2 * int(inside.max()) - 1

    def _seen(self, mask: Path, size: tuple[int, int]) -> bool:
        whole = self._label(mask, identity(mask))
        if whole is None:
            return True
        try:
            label = fit_mask(whole, size, mask)
        except MaskError:
            return False
        return self._sight.shows(label)

    def _read(self, mask: Path, _: Identity | None) -> NDArray[np.bool_] | None:
        """The label of a mask; None where it has none, which is told when it is used."""
        try:
            return read_mask(mask, self._reading).label
        except MaskError:
            return None


def _pair(
    job: Job,
    normals: Mapping[Path, Header],
    masks: Mapping[Path, Header],
    labels: _Labels,
    notify: Notify,
    progress: Progress,
) -> Samples:
    chosen, left_out = pair(
        normals, masks, count=job.count, seed=job.seed, shows=labels.shows, progress=progress
    )
    sizes = {header[:2] for header in normals.values()}
    vanished = [mask for mask in left_out if any(same_aspect(masks[mask][:2], size) for size in sizes)]
    if other := [mask for mask in left_out if mask not in vanished]:
        notify(f"masks left out, as no photograph has their shape: {listed(other)}")
    if vanished:
        notify(f"masks left out, as nothing of some defect would be seen by the networks: {listed(vanished)}")
    of_normals, of_masks = list(normals.items()), list(masks)
    used = {
        (of_normals[normal][1][:2], of_masks[mask]) for normal, mask in np.unique(chosen, axis=0).tolist()
    }
    resized = sorted({mask for size, mask in used if size != masks[mask][:2]})
    if resized:
        notify(f"masks resized to the size of their photograph: {listed(resized)}")

    def made(number: int) -> Sample:
        normal, mask = chosen[number].tolist()
        path, header = of_normals[normal]
        return Sample(number, path, of_masks[mask], header[:2], header.grey, job.reading)

    return Samples(made, range(job.count))


def _check_masks(
    masks: Iterable[Path],
    used: _Used,
    reading: Reading,
    checks: Checks,
    notify: Notify,
    progress: Progress,
) -> None:
    """Decode every mask: a bad one must not be found in the middle of the night, nor when the run is to grow."""
    shaded, covering = [], []
    unused: dict[Path, set[tuple[int, int]]] = {mask: set() for mask in masks}
    for mask, sizes in counted((unused | used.masks).items(), progress):
        asked = repr(("mask", reading, sorted(sizes)))
        in_shades, share = checks.of(mask, asked, partial(_mask_at, reading=reading, sizes=sizes))
        shaded += [mask] * in_shades
        covering += [mask] * (share > COVERING)
    if shaded:
        notify(
            f"masks in shades of grey, labelled from half of their brightest on: {listed(shaded)}; "
            "`--mask-threshold` sets another"
        )
    if covering:
        notify(cover_nearly_all(covering))


def cover_nearly_all(masks: Sequence[Path]) -> str:
    """What is told of masks that label more than `COVERING`."""
    return (
        f"masks that label more than {COVERING:.0%} of the photograph: {listed(masks)}; "
        "if they are inverted, make the defect white"
    )


def _mask_at(mask: Path, reading: Reading, sizes: Collection[tuple[int, int]]) -> tuple[bool, float]:
    """Whether a mask is in shades of grey, and the share that is labelled, something of it at each of ``sizes``."""
    label, in_shades = read_mask(mask, reading)
    for size in sorted(sizes):
        fit_mask(label, size, mask)
    return in_shades, float(label.mean())


def files_digest(headers: Mapping[Path, Header]) -> str:
    """Digest of what decides the pairing: the names and sizes of all files, used or not."""
    digest = hashlib.sha256()
    for path, header in headers.items():
        digest.update(os.fsencode(path.name) + f"\0{header.width}\0{header.height}\n".encode())
    return digest.hexdigest()
