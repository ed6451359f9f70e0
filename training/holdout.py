"""Which labelled photographs a training does not see, so that what it makes can be judged by them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import DatasetError
from stage_rt.images.layouts import Dataset, provenance_name
from stage_rt.images.showing import defects_of, showing_a_defect
from stage_rt.progress import Progress, portion, silent

from .data import GOOD

FAR = 1 / 4
"""Share of the smaller side, in photographs, by which what is drawn in turn may miss what is wanted."""


def hold_out(
    found: list[Dataset], share: float, seed: int, progress: Progress = silent
) -> tuple[list[Dataset], list[str]]:
    """The data sets without about ``share`` of every type's labelled photographs, and the names of those kept out.

    All photographs of one defect are on one side (`stage_rt.images.twins`), and so is a photograph that stands under
    several types; at least one defect of each type is on either. A photograph among the good ones that shows a part
    with a labelled defect is kept out too: it shows the test, or calls a defect good. All of those are compared with
    all labelled ones, and labelled ones of a type with one another, about 1 ms a pair; ``progress`` is told how far
    that is, and may end it, before every photograph.

    Raises:
        DatasetError: a type has a single defect, or other types have brought all of its photographs to one side.
    """
    if not share:
        return found, []
    rng, kept, names = np.random.default_rng(seed), [], []
    for number, dataset in enumerate(found):
        part = portion(progress, number / len(found), (number + 1) / len(found))
        shown, rest = defects_of(dataset, portion(part, 0.0, 0.5)), {}
        out = _chosen(dataset.name, shown, share, rng)
        for kind, pairs in dataset.defects.items():
            sides = [defect in out for defect in shown[kind].tolist()]
            rest[kind] = [pair for pair, is_out in zip(pairs, sides, strict=True) if not is_out]
            names += [
                provenance_name(dataset.name, kind, image)
                for (image, _), is_out in zip(pairs, sides, strict=True)
                if is_out
            ]
        good = showing_a_defect(dataset.normals, dataset, portion(part, 0.5, 1.0))
        names += [provenance_name(dataset.name, GOOD, path) for path in good]
        normals = [path for path in dataset.normals if path not in good]
        kept.append(replace(dataset, defects=rest, normals=normals))
    return kept, names


def learned(found: Iterable[Dataset]) -> list[str]:
    """The names of all labelled photographs of the data sets."""
    return [
        provenance_name(dataset.name, kind, image)
        for dataset in found
        for kind, pairs in dataset.defects.items()
        for image, _ in pairs
    ]


def _chosen(
    name: str, shown: Mapping[str, NDArray[np.intp]], share: float, rng: np.random.Generator
) -> set[int]:
    """Numbers of the defects of a data set that are kept out."""
    out, seen = set[int](), set[int]()
    for kind in _in_turn(shown):
        present = set(shown[kind].tolist())
        out |= _about(share * len(shown[kind]), shown[kind], out & present, (seen - out) & present, rng)
        seen |= present
        if len(present) == 1:
            raise DatasetError(
                f"{name}: type {kind!r} has a single labelled defect, so that none can be held out: "
                "leave `--hold-out` out or add another"
            )
        if not present & out or present <= out:
            raise DatasetError(
                f"{name}: type {kind!r} shares its photographs with types that have all of them on one side",
                "try another `--seed`, or leave the type out",
            )
    return out


def _in_turn(shown: Mapping[str, NDArray[np.intp]]) -> list[str]:
    """The types in the order in which they choose: where they share defects those with the fewest first."""
    each = {kind: set(numbers.tolist()) for kind, numbers in shown.items()}
    if len(set().union(*each.values())) == sum(map(len, each.values())):
        return list(each)
    return sorted(each, key=lambda kind: len(each[kind]))


def _about(
    wanted: float,
    shown: NDArray[np.intp],
    out: Collection[int],
    kept: Collection[int],
    rng: np.random.Generator,
) -> set[int]:
    """Numbers of defects that about ``wanted`` photographs show, those ``out`` among them and those ``kept`` not.

    Neither none nor all, where that can be. Defects drawn in turn may come to far from what is wanted, as where one
    is on most photographs: then the largest are drawn first, if that comes nearer.
    """
    numbers, counts = np.unique(shown, return_counts=True)
    sizes: dict[int, int] = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    free = [n for n in rng.permutation(numbers).tolist() if n not in out and n not in kept]

    def missed(chosen: set[int]) -> float:
        return abs(sum(sizes[n] for n in chosen) - wanted)

    def drawn(order: list[int]) -> set[int]:
        chosen = set(out)
        for number in order:
            chosen = min(chosen, chosen | {number}, key=missed)
        if order and not chosen:
            return {min(order, key=lambda n: missed({n}))}
        if order and len(chosen) == len(sizes):
            return chosen - {min(order, key=lambda n: missed(chosen - {n}))}
        return chosen

    in_turn = drawn(free if kept else free[:-1])
    if missed(in_turn) <= FAR * min(wanted, len(shown) - wanted):
        return in_turn
    return min(in_turn, drawn(sorted(free, key=lambda n: -sizes[n])), key=missed)
