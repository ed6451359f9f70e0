"""Which labelled photographs a segmenter learns from and which it is tested on: what the generator never saw."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import DatasetError, InputError
from stage_rt.images import twins
from stage_rt.images.inputs import read_image
from stage_rt.images.layouts import Dataset, provenance_name
from stage_rt.images.masks import labelled
from stage_rt.images.showing import picture_digest, same_picture, showing_a_defect
from stage_rt.packs.real import names_of, not_good, real_dataset, sides_of
from stage_rt.progress import Progress, portion, silent
from stage_rt.spec import ModelSpec
from stage_rt.training.data import GOOD

FEWEST = 6
"""Labelled photographs a type must have: a third of fewer is one, and says nothing."""

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Split:
    """One object's photographs; ``types`` are in order, ``real`` and ``test`` map each to (photograph, mask) files.

    ``good`` are those the generator may paint on, without those that show a labelled defect's part or did by its
    training, ``test_good`` those that only test, without such ones. ``shown`` are numbers of the defects that the
    photographs of ``test`` show, and ``parts`` of the parts that those of ``test_good`` show: one may be photographed
    several times. ``defects`` says how many defects those of ``real`` show.
    """

    name: str
    types: list[str]
    good: list[Path]
    test_good: list[Path]
    real: dict[str, list[Pair]]
    test: dict[str, list[Pair]]
    shown: dict[str, list[int]]
    defects: dict[str, int]
    parts: list[int]

    def subjects(self) -> NDArray[np.intp]:
        """What each picture of the test shows, ``[N]``, by type and then the good ones."""
        return numbered(self.things())

    def things(self) -> list[str]:
        """The same as names, which are those of the same defect or part in another split too."""
        names = []
        for kind in self.types:
            names += _named(kind, [photo for photo, _ in self.test[kind]], self.shown[kind])
        return names + _named(GOOD, self.test_good, self.parts)

    def prompt(self, kind: str) -> str:
        """What a model that was trained on the object calls a type."""
        return f"{self.name}+{kind}"


def split(
    root: Path, model: ModelSpec, types: Sequence[str] | None = None, progress: Progress = silent
) -> Split:
    """The split that a model's training made with ``--hold-out``.

    Args:
        root: the object's folder, in a layout that `stage_rt.images.layouts` knows.
        model: what the engine was built from; its provenance lists the photographs held out.
        types: only these, or all that the model knows.
        progress: told the share of the photographs that are compared.

    Raises:
        DatasetError: the folder is not that of the training or was painted, has too few labelled photographs of a
            type or no good ones, has a photograph under two types, or shows the generator or the segmenter one of the
            test.
        InputError: the model was trained on every photograph, or does not know a type.
    """
    dataset = real_dataset(root)
    held_out = names_of(model, "held_out")
    if not held_out:
        raise InputError(
            "the engine's model saw every labelled photograph, so that none is left to test on: "
            f"train it with `stage-rt train {root} --hold-out 0.67`"
        )
    chosen = _types(dataset, model, types)
    real, test = _sides(root, dataset, chosen, model)
    _refuse_two_types({kind: [*real[kind], *test[kind]] for kind in chosen})
    shown, defects = _defects(real, test, portion(progress, 0.0, 0.3))
    left_out = not_good(dataset, held_out, portion(progress, 0.3, 0.7))
    good = [path for path in dataset.normals if path not in left_out]
    if not good:
        raise DatasetError(
            f"`{root}` has no good photographs in `train/good` that show no labelled part",
            "add some, as nothing can be painted on",
        )
    bad = set(showing_a_defect(dataset.tested, dataset, portion(progress, 0.7, 0.8)))
    tested = [path for path in dataset.tested if path not in bad]
    parts = twins.parts((read_image(path) for path in tested), portion(progress, 0.8, 1.0)).tolist()
    result = Split(dataset.name, chosen, good, tested, real, test, shown, defects, parts)
    refuse_tested(result, _learned(dataset, _types(dataset, model, None), held_out))
    return result


Sides = dict[str, list[Pair]]
"""Photographs and masks by type."""


def _sides(root: Path, dataset: Dataset, kinds: Sequence[str], model: ModelSpec) -> tuple[Sides, Sides]:
    """What is learned from and what is tested on."""
    real: Sides = {}
    test: Sides = {}
    for kind in kinds:
        pairs = dataset.defects[kind]
        if len(pairs) < FEWEST:
            raise DatasetError(
                f"{dataset.name}: type {kind!r} has {len(pairs)} labelled photographs, at least {FEWEST} are needed: "
                "leave it out with `--types`"
            )
        real[kind], test[kind] = sides_of(dataset, kind, model)
        if not test[kind] or not real[kind]:
            raise DatasetError(
                f"`{root}` is not what the model was trained on: of type {kind!r} "
                f"{len(test[kind])} photographs were held out and {len(real[kind])} not"
            )
    return real, test


def _refuse_two_types(pairs: Mapping[str, Iterable[Pair]]) -> None:
    """Under each of its types a photograph calls the defects of the other good surface."""
    seen: dict[str, tuple[str, Path]] = {}
    for kind, each in pairs.items():
        for photo, _ in each:
            other, twin = seen.setdefault(picture_digest(photo), (kind, photo))
            if other != kind:
                raise DatasetError(
                    f"`{twin}` and `{photo}` are one photograph with two types of defects",
                    "evaluate one of the types with `--types`, or take the photograph out of both",
                )


def _types(dataset: Dataset, model: ModelSpec, types: Sequence[str] | None) -> list[str]:
    known = [kind for kind in dataset.defects if f"{dataset.name}+{kind}" in model.prompts]
    if not known:
        raise DatasetError(
            f"the engine paints {', '.join(sorted(model.prompts))}, and no type of `{dataset.name}` is one of them: "
            "give the data set it was trained on"
        )
    for kind in types or ():
        if kind not in known:
            raise InputError(f"unknown type {kind!r}: use {', '.join(known)}")
    return [kind for kind in known if not types or kind in types]


def _learned(dataset: Dataset, kinds: Iterable[str], held_out: Collection[object]) -> Iterator[Path]:
    """The photographs of all types that the generator learned, whichever of them are evaluated, and good ones, of
    which its model does not list those it learned."""
    photos = {kind: [photo for photo, _ in dataset.defects[kind]] for kind in kinds} | {GOOD: dataset.normals}
    for kind, each in photos.items():
        for photo in each:
            if provenance_name(dataset.name, kind, photo) not in held_out:
                yield photo


def refuse_tested(parts: Split, learned: Iterable[Path]) -> None:
    """A photograph of the test must not be among those that anything learns from, under whatever name.

    Raises:
        DatasetError: it is.
    """
    tested = [photo for pairs in parts.test.values() for photo, _ in pairs] + parts.test_good
    if found := same_picture(tested, list(learned)):
        twin, path = next(iter(found.items()))
        raise DatasetError(f"`{path}` is to be learned from and is the test's `{twin}`: remove one of them")


def numbered(names: Iterable[str]) -> NDArray[np.intp]:
    """The names as numbers, in the order in which they first come."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def _named(kind: str, photos: Sequence[Path], shown: Sequence[int]) -> list[str]:
    """What each photograph shows, called after the first file that shows it."""
    first: dict[int, str] = {}
    for name, number in sorted(zip((photo.name for photo in photos), shown, strict=True)):
        first.setdefault(number, name)
    return [f"{kind}/{first[number]}" for number in shown]


def _defects(real: Sides, test: Sides, progress: Progress) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Which defect each photograph of the test shows, and how many those that are learned from do."""
    shown, count = {}, {}
    for number, kind in enumerate(real):
        part = portion(progress, number / len(real), (number + 1) / len(real))
        learned, shown[kind] = _numbers(real[kind], test[kind], part)
        count[kind] = len(set(learned))
    return shown, count


def _numbers(
    learned: Sequence[Pair], tested: Sequence[Pair], progress: Progress
) -> tuple[list[int], list[int]]:
    """Which defect each photograph shows; none of the test's may have been learned from another photograph."""
    pairs = (labelled(photo, mask) for photo, mask in (*learned, *tested))
    numbers: list[int] = twins.defects(pairs, progress).tolist()
    known = dict(zip(numbers[: len(learned)], learned, strict=True))
    shown = numbers[len(learned) :]
    for (photo, _), defect in zip(tested, shown, strict=True):
        if defect in known:
            raise DatasetError(
                f"`{photo}` of the test shows the same defect as `{known[defect][0]}`, which was learned from",
                "train again with `--hold-out`, which keeps all photographs of a defect on one side",
            )
    return numbers[: len(learned)], shown
