"""Samples whose labels are made from masks: which are joined, and the object that each has to stay inside."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import MaskError
from stage_rt.images.inputs import Header, fit_mask, same_aspect
from stage_rt.images.masks import Reading, read_mask
from stage_rt.progress import Progress, counted, portion, silent
from stage_rt.run.checks import Checks
from stage_rt.run.job import Job
from stage_rt.run.pairing import Shows
from stage_rt.run.sample import Placing, Sample, Samples, Sight, readable
from stage_rt.run.supply import NOWHERE, Ends, ends, opposite, partners


def augmented(
    samples: Samples,
    job: Job,
    masks: Mapping[Path, Header],
    shows: Shows,
    sight: Sight,
    checks: Checks,
    progress: Progress = silent,
) -> Samples:
    """The samples with labels made from their masks; masks are joined with others of the same shape.

    ``shows`` says which masks the networks are shown as they are, and ``sight`` which labels. ``progress`` is told
    the share of the files that was looked at.

    Raises:
        MaskError: the mask of a photograph's object is missing, unusable or black.
    """
    objects = _Objects(job.objects, checks)
    across = mirrored_across(counted(masks, portion(progress, 0.0, 0.3)), job.reading, checks)
    alike: dict[tuple[int, int], list[Path]] = {sample.size: [] for sample in samples}
    for path, header in counted(masks.items(), portion(progress, 0.3, 0.7)):
        # One mask after the other, as each is decoded once for all sizes.
        for size, fitting in alike.items():
            if same_aspect(header[:2], size) and shows(path, header[:2], size):
                fitting.append(path)
    counts = np.array([len(alike[sample.size]) for sample in samples])
    others = partners(job.seed, np.arange(len(samples), dtype=np.uint32), counts)
    used = dict.fromkeys((sample.normal, sample.size) for sample in samples)
    for normal, size in counted(used, portion(progress, 0.7, 1.0)):
        objects.check(normal, size)

    def made(number: int) -> Sample:
        sample, other = samples[number], int(others[number])
        joined = None if other < 0 else alike[sample.size][other]
        return replace(sample, placing=Placing(job.seed, joined, objects.of(sample.normal), across, sight))

    return Samples(made, samples.numbers)


def mirrored_across(masks: Iterable[Path], reading: Reading, checks: Checks) -> tuple[bool, bool]:
    """Whether labels may be mirrored to the opposite border of rows and of columns: some masks lie at each."""

    def found(path: Path) -> Ends:
        try:
            return ends(read_mask(path, reading).label)
        except MaskError:
            # Told when it is used.
            return NOWHERE

    return opposite(checks.of(path, repr(("ends", reading)), found) for path in masks)


class _Objects:
    """Masks of the object in each photograph, or one for all."""

    def __init__(self, paths: Sequence[Path], checks: Checks) -> None:
        self._only = paths[0] if len(paths) == 1 else None
        self._by_stem = {path.stem.removesuffix("_mask"): path for path in paths}
        self._checks = checks

    def of(self, normal: Path) -> Path | None:
        """The mask of a photograph's object, if any is known."""
        if not self._by_stem:
            return None
        path = self._only or self._by_stem.get(normal.stem)
        if path is None:
            raise MaskError(
                f"`{readable(normal)}` has no mask of its object",
                f"add `{normal.stem}.png` to the folder of objects",
            )
        return path

    def check(self, normal: Path, size: tuple[int, int]) -> None:
        """See that it shows the object at the photograph's (width, height)."""
        path = self.of(normal)
        if path is None:
            return
        try:
            self._checks.of(path, f"object at {size}", lambda path: bool(_fitted(path, size).any()))
        except MaskError as error:
            raise MaskError(
                f"the object's mask leaves no place in photograph `{readable(normal)}`: {error}"
            ) from error


def _fitted(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    return fit_mask(read_mask(path).label, size, path)
