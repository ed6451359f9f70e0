"""Real photographs that go along with painted pairs: which train and which validate.

A segmenter is judged by photographs that neither it nor the generator learned from. So the sides are those of the
training with ``--hold-out`` whose engine is given; else defects are dealt out, as one may be photographed several
times. A pair that shows the training side what validates is left out.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stage_rt.errors import DatasetError, InputError
from stage_rt.files import sha256
from stage_rt.images.layouts import Dataset, as_text, datasets, provenance_name
from stage_rt.images.showing import defects_of, same_picture, showing_a_defect
from stage_rt.packs.picture import Side
from stage_rt.packs.runs import FinishedRun
from stage_rt.packs.split import alike, held_out
from stage_rt.progress import Progress, portion, silent
from stage_rt.run.night import TYPES
from stage_rt.run.sample import readable
from stage_rt.run.writer import GOOD, defect_type
from stage_rt.serve.kept import LIST
from stage_rt.spec import CLIENT_FILE, PACK_FILE, RUN_FILE, ModelSpec, PairRecord

SHOWN = "showing a labelled part"
LABELLED = "labelled as a photograph that validates"

_PAINTED = (RUN_FILE, f"{TYPES}/*/{RUN_FILE}", PACK_FILE, CLIENT_FILE, LIST)
"""Files that only folders of painted pairs have."""
_NAMED = 5
"""Photographs on both sides that are told by name."""


class Labelled(NamedTuple):
    """A photograph of a defect of a type, its mask, and the side that both stand on."""

    kind: str
    photo: Path
    mask: Path
    side: Side


@dataclass(frozen=True)
class Real:
    """The real photographs of a pack: those with a label, and ``good`` ones, which validate.

    ``normals`` are good photographs that may have been painted into. ``shown`` are the sha256 of those that show a
    part with a labelled defect, ``bad`` are those of the others that do. ``masks`` are
    types and names of the masks that validate, ``labels`` their sha256.
    """

    folder: Path
    labelled: list[Labelled]
    good: list[Path]
    bad: list[Path]
    normals: list[Path]
    shown: frozenset[str]
    masks: frozenset[tuple[str, str]]
    labels: frozenset[str]

    def __len__(self) -> int:
        return len(self.labelled) + len(self.good)

    @property
    def kinds(self) -> set[str]:
        """The defect types."""
        return {each.kind for each in self.labelled}

    def place(self, path: Path) -> str:
        """Where a file lies in the data set, as text."""
        return as_text(path.relative_to(self.folder).as_posix())

    def hides(self, run: FinishedRun, record: PairRecord) -> str | None:
        """Why a pair would show the training side what validates, if it does.

        A label that is made from one mask is known by what that held, others by the names of their masks.
        """
        if record.normal_sha256 in self.shown:
            return SHOWN
        names = record.label.split(" + ")
        if len(names) == 1 and run.spec.objects is None and record.label_sha256 is not None:
            return LABELLED if record.label_sha256 in self.labels else None
        return LABELLED if any((run.kind, name) in self.masks for name in names) else None

    def check(
        self, used: Collection[str | None], normals: Collection[Path], progress: Progress = silent
    ) -> None:
        """Refuse a photograph on both sides, whatever it is called and however it was saved.

        Args:
            used: sha256 of the photographs that were painted into.
            normals: good photographs that are trained on.
            progress: told the share of the photographs that is compared.

        Raises:
            DatasetError: one that is trained on, or was painted into, validates too.
        """
        tested = [each.photo for each in self.labelled if each.side == "val"]
        tested += [*self.good, *self.bad]
        both = {path: "was painted into" for path in tested if sha256(path) in used}
        learned = [each.photo for each in self.labelled if each.side == "train"]
        learned += [*normals, *(path for path in self.normals if sha256(path) in used)]
        twins = same_picture([path for path in tested if path not in both], learned, progress)
        both |= {path: f"is `{twin}`, which is to be learned from" for path, twin in twins.items()}
        if both:
            raise _on_both_sides(both)


def _on_both_sides(reasons: Mapping[Path, str]) -> DatasetError:
    """It is what validates that has to go: of others a run was made, which nobody could pack without them."""
    if len(reasons) == 1:
        ((path, reason),) = reasons.items()
        return DatasetError(f"`{path}` is to validate and {reason}", f"take `{path}` out of the data set")
    told = [f"`{path}` {reason}" for path, reason in reasons.items()][:_NAMED]
    if more := len(reasons) - len(told):
        told.append(f"and so on with {more} more")
    return DatasetError(
        f"{len(reasons)} photographs are to validate and may not ({'; '.join(told)})",
        "take them out of the data set, and leave those that are learned from",
    )


def real_datasets(root: Path) -> list[Dataset]:
    """The objects of ``root`` as `datasets` finds them, none of which stage-rt painted.

    Raises:
        DatasetError: nothing found, or the defects of one are painted.
    """
    found = datasets(root)
    for dataset in found:
        mark = next((path for mark in _PAINTED for path in dataset.folder.glob(mark)), None)
        if mark is not None:
            raise DatasetError(
                f"the defects in `{dataset.folder}` are painted, as its `{mark.relative_to(dataset.folder)}` tells",
                "give a data set of real ones",
            )
    return found


def real_dataset(root: Path) -> Dataset:
    """The one object of ``root``.

    Raises:
        DatasetError: as `real_datasets`, or there are several.
    """
    found = real_datasets(root)
    if len(found) != 1:
        names = ", ".join(dataset.name for dataset in found)
        raise DatasetError(f"`{root}` holds several objects ({names})", "give the folder of one")
    return found[0]


def by_model(root: Path, prompts: Collection[str], model: ModelSpec, progress: Progress = silent) -> Real:
    """The photographs of ``root`` on the sides of the training of ``model``: those held out validate.

    ``progress`` is told the share that is compared.

    Raises:
        DatasetError: as `by_defect`, or ``root`` is not what the model was trained on.
        InputError: the model held nothing out.
    """
    dataset, names = _object(root, prompts), names_of(model, "held_out")
    if not names:
        raise InputError(
            "the engine's model saw every labelled photograph, so that none is left to validate on",
            f"leave out `--engine`, or paint with a model from `stage-rt train {root} --hold-out 0.67`",
        )
    out = {photo for kind in dataset.defects for photo, _ in sides_of(dataset, kind, model).tested}
    if not out:
        raise DatasetError(
            f"`{root}` holds no photograph that the engine's model held out",
            "give the data set that it was trained on",
        )
    return _real(dataset, out, names, progress)


class Sides(NamedTuple):
    """Photographs of a type and their masks: those that a training ``learned``, and those that it held out."""

    learned: list[tuple[Path, Path]]
    tested: list[tuple[Path, Path]]


def sides_of(dataset: Dataset, kind: str, model: ModelSpec) -> Sides:
    """The labelled photographs of a type as the training of ``model`` split them.

    Raises:
        DatasetError: one came into the folder afterwards, and is on neither side.
    """
    held_out, known = names_of(model, "held_out"), names_of(model, "learned")
    sides = Sides([], [])
    for pair in dataset.defects[kind]:
        name = provenance_name(dataset.name, kind, pair[0])
        if name in held_out:
            sides.tested.append(pair)
        # Models of before do not list what they learned.
        elif not known or name in known:
            sides.learned.append(pair)
        else:
            raise DatasetError(
                f"`{pair[0]}` was not there when the model was trained",
                "take it away, or train again with `--hold-out`",
            )
    return sides


def names_of(model: ModelSpec, listed: str) -> frozenset[object]:
    """The photographs of a list in a model's provenance, as `provenance_name` has them; none where it has no list."""
    found = model.provenance.get(listed)
    return frozenset(found) if isinstance(found, list) else frozenset()


def not_good(dataset: Dataset, held_out: Collection[object], progress: Progress = silent) -> set[Path]:
    """Good photographs to learn from that show a part with a labelled defect: those that a training ``held_out``, by
    their names, and those that do, whenever they came into the folder."""
    shown = showing_a_defect(dataset.normals, dataset, progress)
    named = [path for path in dataset.normals if provenance_name(dataset.name, GOOD, path) in held_out]
    return {*shown, *named}


def by_defect(
    root: Path, prompts: Collection[str], share: float, seed: int, progress: Progress = silent
) -> Real:
    """The photographs of ``root``, of which about ``share`` of every type train and the others validate.

    All photographs of one defect are on one side (`stage_rt.images.twins`), in whatever format and under whatever
    type they were saved. ``progress`` is told the share that is compared.

    Raises:
        DatasetError: ``root`` is no data set of the object of ``prompts`` with labelled photographs of one of their
            types, or was painted.
        InputError: they show one defect, so that none would be left for the other side.
        ImageError, MaskError: a file is unusable.
    """
    dataset = _object(root, prompts)
    photos = {
        provenance_name(dataset.name, kind, photo): (kind, photo)
        for kind, pairs in dataset.defects.items()
        for photo, _ in pairs
    }
    first = _first(dataset, portion(progress, 0.0, 0.7)) if 0 < share < 1 else {name: name for name in photos}
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, (kind, _) in photos.items():
        counts[first[name]][kind] += 1
    if len(counts) == 1 and 0 < share < 1:
        raise InputError(
            f"the labelled photographs of `{root}` show one defect, which a split would put on both sides",
            "label another, or leave out `--real`",
        )
    out = held_out(counts, share, seed)
    tested = {photo for name, (_, photo) in photos.items() if first[name] in out}
    return _real(dataset, tested, (), portion(progress, 0.7, 1.0))


def _object(root: Path, prompts: Collection[str]) -> Dataset:
    dataset = real_dataset(root)
    for prompt in sorted(prompts):
        name = prompt.rpartition("+")[0]
        if name not in ("", dataset.name):
            raise DatasetError(
                f"`{root}` is called {dataset.name!r}, and the runs painted {prompt!r}",
                f"give the data set of that object, or call its folder {name!r}",
            )
    kinds = {defect_type(prompt) for prompt in prompts}
    if not dataset.defects.keys() & kinds:
        raise DatasetError(
            f"`{root}` has no labelled photographs of what the runs painted ({', '.join(sorted(kinds))})",
            "give the data set that their model was trained on",
        )
    for kind in dataset.defects:
        if not kind.isprintable():
            raise DatasetError(
                f"`{root}`: {kind!r} cannot be the name of a class", "rename the type's folder"
            )
    return dataset


def _first(dataset: Dataset, progress: Progress) -> dict[str, str]:
    """The name of every labelled photograph by the first of all that show the same defect."""
    return alike(
        (provenance_name(dataset.name, kind, photo), str(number))
        for kind, numbers in defects_of(dataset, progress).items()
        for (photo, _), number in zip(dataset.defects[kind], numbers.tolist(), strict=True)
    )


def _real(dataset: Dataset, out: Collection[Path], held_out: Collection[object], progress: Progress) -> Real:
    bad = showing_a_defect(dataset.tested, dataset, portion(progress, 0.0, 0.4))
    shown = not_good(dataset, held_out, portion(progress, 0.4, 1.0))
    found = [
        Labelled(kind, photo, mask, "val" if photo in out else "train")
        for kind, pairs in dataset.defects.items()
        for photo, mask in pairs
    ]
    tested = [each for each in found if each.side == "val"]
    return Real(
        folder=dataset.folder,
        labelled=found,
        good=[path for path in dataset.tested if path not in bad],
        bad=bad,
        normals=dataset.normals,
        shown=frozenset(map(sha256, shown)),
        masks=frozenset((each.kind, readable(each.mask)) for each in tested),
        labels=frozenset(sha256(each.mask) for each in tested),
    )
