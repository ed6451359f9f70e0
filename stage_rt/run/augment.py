"""Samples whose labels are made from masks: which are joined, and the object that each has to stay inside."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from stage_rt.errors import MaskError
from stage_rt.images.inputs import Header, fit_mask, same_aspect
from stage_rt.images.masks import read_mask
from stage_rt.run.job import Job
from stage_rt.run.sample import Placing, Sample, readable
from stage_rt.run.supply import partner


def augmented(samples: Sequence[Sample], job: Job, masks: Mapping[Path, Header]) -> list[Sample]:
    """The samples with labels made from their masks; masks are joined with others of the same shape.

    Raises:
        MaskError: the mask of a photograph's object is missing, unusable or black.
    """
    objects = _Objects(job.objects)

    @cache
    def alike(size: tuple[int, int]) -> list[Path]:
        return [path for path, header in masks.items() if same_aspect(header[:2], size)]

    placings = []
    for sample in samples:
        others = alike(sample.size)
        chosen = partner(job.seed, sample.index, len(others))
        joined = None if chosen is None else others[chosen]
        placings.append(Placing(job.seed, joined, objects.of(sample.normal, sample.size)))
    return [replace(sample, placing=placing) for sample, placing in zip(samples, placings, strict=True)]


class _Objects:
    """Masks of the object in each photograph, or one for all; each was found to show it at the photograph's size."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._only = paths[0] if len(paths) == 1 else None
        self._by_stem = {path.stem.removesuffix("_mask"): path for path in paths}
        self._checked: set[tuple[Path, tuple[int, int]]] = set()

    def of(self, normal: Path, size: tuple[int, int]) -> Path | None:
        if not self._by_stem:
            return None
        path = self._only or self._by_stem.get(normal.stem)
        if path is None:
            raise MaskError(
                f"`{readable(normal)}` has no mask of its object",
                f"add `{normal.stem}.png` to the folder of objects",
            )
        if (path, size) not in self._checked:
            try:
                fit_mask(read_mask(path).label, size, path)
            except MaskError as error:
                raise MaskError(
                    f"the object's mask leaves no place in photograph `{readable(normal)}`: {error}"
                ) from error
            self._checked.add((path, size))
        return path
