"""Where pairs come from: every source but `procedural` paints under the same labels of the same
photographs, in a run's layout.
"""

import hashlib
import inspect
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import scipy
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage

from stage_rt.engine import Engine
from stage_rt.errors import InputError
from stage_rt.files import holds, sha256, write_atomic
from stage_rt.images.inputs import read_image
from stage_rt.images.masks import labelled
from stage_rt.progress import Progress, portion
from stage_rt.run.checks import Checks
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.run.plan import RULES, make_plan
from stage_rt.run.sample import Sample
from stage_rt.run.writer import pair_paths, png, png_of, write_pair
from stage_rt.spec import MANIFEST_FILE, RUN_FILE, RunSpec

from . import baselines, procedural, published
from .baselines import BASELINES
from .split import Split, refuse_tested

PROCEDURAL = "procedural"
SHIFTED = "ours-shifted"
SHIFT, SEEN = 20, 384
"""Pixels that the labels of the planted check lie beside the truth, of photographs whose longest side is so many at
most; segmenters see larger ones no larger, and there it is as much more."""

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours-1000": {"steps": None},
    "ours-10": {"steps": 10},
    "ours-whole": {"view": "whole"},
    "ours-once": {"min_fill": 0.0},
    SHIFTED: {},
    "realnet": {"sampler": "sdas", "steps": None, "min_fill": 0.0},
}
"""The engine's own pairs by name, and what of the job is another than the default.

``ours-once`` paints nothing again, ``ours-shifted`` is the check that a lying label is noticed, ``realnet`` the
picture that RealNet's SDAS (Zhang et al., CVPR 2024) makes, under the label.
"""

NAMES = (*OURS, *BASELINES, PROCEDURAL)


@dataclass(frozen=True)
class Order:
    """How many pairs a type are wanted, in how many network calls each, and the seed of labels and noise."""

    pairs: int
    steps: int
    seed: int

    def seed_of(self, kind: str) -> int:
        """A type's own seed: by the order's alone pair *k* of all types would have one photograph and noise."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {kind}".encode()).digest()[:4])


def job(split: Split, kind: str, order: Order, engine: Engine, **other: Any) -> Job:
    """The pairs of a type: labels made of those of the real photographs, on good ones.

    Raises:
        InputError: the sampler or the recipe cannot do that.
    """
    asked = Job(
        normals=split.good,
        masks=[mask for _, mask in split.real[kind]],
        prompt=split.prompt(kind),
        count=order.pairs,
        seed=order.seed_of(kind),
        composite=True,
        batch=max(engine.spec.batch),
        steps=order.steps,
        sampler=engine.spec.model.system,
        augment=True,
    )
    return replace(asked, **other)


Pairs = dict[str, list[tuple[Path, Path]]]
"""Files of images and masks by type."""


@dataclass(frozen=True)
class Sources:
    """All that paint one order: a source has a folder of its own in ``folder``, with a run for each type.

    ``engine`` is whose labels all sources but `procedural` get, and whose pairs ours are; ``recipe`` is a branch plan
    for those.
    """

    split: Split
    order: Order
    engine: Engine
    folder: Path
    recipe: str | None = None
    _labels: dict[tuple[str, int], bytes] = field(default_factory=dict, repr=False)
    _checks: Checks = field(default_factory=Checks, repr=False)

    def make(self, name: str, progress: Progress) -> Pairs:
        """The pairs of a source; those there are stay.

        Args:
            name: one of `NAMES`.
            progress: told the share that is done.

        Raises:
            InputError: the source is unknown or cannot be had here, or more pairs are there already.
            StageError: as `stage_rt.run.fill.fill`.
        """
        make, types = (self._ours if name in OURS else self._baseline), self.split.types
        return {
            kind: make(name, kind, portion(progress, number / len(types), (number + 1) / len(types)))
            for number, kind in enumerate(types)
        }

    def make_room(self, names: Iterable[str]) -> None:
        """Look at what is there of the sources before any of them is made.

        Raises:
            InputError: more pairs are there already.
        """
        for name in names:
            for kind in self.split.types if name in OURS else ():
                _make_room(self._run_of(name, kind), self.order)

    def _run_of(self, name: str, kind: str) -> Path:
        """The run of a source of ours."""
        return self.folder / f"{'ours' if name == SHIFTED else name}{self._suffix}" / kind

    @property
    def _suffix(self) -> str:
        return f"-{self.recipe}" if self.recipe else ""

    def _ours(self, name: str, kind: str, progress: Progress) -> list[tuple[Path, Path]]:
        run = self._run_of(name, kind)
        other = OURS[name] | ({"recipe": self.recipe} if self.recipe else {})
        fill(self.engine, job(self.split, kind, self.order, self.engine, **other), run, progress=progress)
        pairs = [
            (run / line["image"], run / line["mask"]) for line in _manifest(run) if line["status"] == "ok"
        ]
        if name == SHIFTED:
            return list(_shifted(pairs, self.folder / f"{SHIFTED}{self._suffix}" / f"{kind}-shifted"))
        return pairs

    def _baseline(self, name: str, kind: str, progress: Progress) -> list[tuple[Path, Path]]:
        """Pairs under the labels of our plan's samples, and what each was made of in ``manifest.jsonl``.

        A pair that was made of the same, and whose files are those that were written, is not made again.
        """
        paint, run, seed = _painter(name, kind), self.folder / name / kind, self.order.seed_of(kind)
        code = _code_of(name)
        wanted = job(self.split, kind, self.order, self.engine)
        plan = make_plan(self.engine.spec, wanted, lambda notice: None, checks=self._checks)
        known = _known(run)
        made, lines = [], []
        for done, sample in enumerate(plan.samples, start=1):
            paths = pair_paths(self.split.prompt(kind), sample.index)
            image, mask = run / paths[0], run / paths[1]
            rng = np.random.default_rng([seed, sample.index])
            photo = read_image(sample.normal)
            label = self._label(kind, sample, photo)
            other = read_image(self.split.good[int(rng.integers(len(self.split.good)))])
            line = {
                "index": sample.index,
                "image": paths[0],
                "mask": paths[1],
                "normal": sample.normal.name,
                "made_of": _made_of(name, code, seed, photo, label, other),
            }
            there = known.get(sample.index, {})
            digests = there.get("image_sha256"), there.get("mask_sha256")
            same = line.items() <= there.items()
            if not (same and holds(image, digests[0]) and holds(mask, digests[1])):
                painted, label = paint(photo, label, other, rng)
                picture = Image.fromarray(painted)
                picture = picture.convert("L") if sample.grey else picture
                digests = write_pair(run, paths, png(picture), png_of(label))
            made.append((image, mask))
            lines.append(line | {"image_sha256": digests[0], "mask_sha256": digests[1]})
            progress(done / len(plan.samples))
        # Those beyond an order of fewer are there for one of more.
        lines += [line for number, line in sorted(known.items()) if number >= len(lines)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomic(run / MANIFEST_FILE, text.encode())
        return made

    def _label(self, kind: str, sample: Sample, photo: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """A sample's label, made for the first source that asks and kept for the others."""
        key = kind, sample.index
        if key not in self._labels:
            self._labels[key] = png_of(sample.label(photo))
        return np.asarray(Image.open(io.BytesIO(self._labels[key]))) > 0


def _make_room(run: Path, order: Order) -> None:
    """Remove our pairs whose labels or paint are by the rules of another release, beside which no other source's of
    today can be held; refuse fewer than there are."""
    try:
        there = RunSpec.model_validate_json((run / RUN_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        # A run that is damaged is told of when it is filled.
        return
    if there.rules != RULES:
        _remove(run)
    elif there.count > order.pairs:
        raise InputError(
            f"`{run}` holds {there.count} pairs already",
            f"give `--pairs {there.count}` or more, or another `-o`",
        )


def _remove(run: Path) -> None:
    """Empty the folder of a run, of which the description goes last: what is cut off goes on."""
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != RUN_FILE:
            path.unlink()
    (run / RUN_FILE).unlink()


def _manifest(run: Path) -> Iterator[dict[str, Any]]:
    for line in (run / MANIFEST_FILE).read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _known(run: Path) -> dict[int, dict[str, Any]]:
    """Lines of a baseline's manifest, by their numbers; none of a damaged one, whose pairs are made again."""
    try:
        return {line["index"]: line for line in _manifest(run)}
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return {}


def _shifted(pairs: list[tuple[Path, Path]], folder: Path) -> Iterator[tuple[Path, Path]]:
    """The same images, each with its label moved along both axes (`SHIFT`), towards the middle."""
    for image, mask in pairs:
        moved = folder / mask.name
        write_atomic(moved, png_of(_moved_inwards(np.asarray(Image.open(mask)) > 0)))
        yield image, moved


def _moved_inwards(label: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A label nearer to the middle along both axes, so that it stays in the picture."""
    middle = [places.mean() for places in np.nonzero(label)]
    far = round(SHIFT * max(1.0, max(label.shape) / SEEN))
    way = [far if place < side / 2 else -far for place, side in zip(middle, label.shape, strict=True)]
    return np.asarray(ndimage.shift(label, way, order=0))


def _made_of(name: str, code: str, seed: int, *arrays: NDArray[Any]) -> str:
    """Digest of all that a baseline is handed, and of what paints it."""
    content = hashlib.sha256(json.dumps([name, code, seed, *(array.shape for array in arrays)]).encode())
    for array in arrays:
        content.update(array.tobytes())
    return content.hexdigest()


Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def _painter(name: str, kind: str) -> Callable[..., Pair]:
    if name == PROCEDURAL:
        return procedural.painter(kind)
    if name not in BASELINES:
        raise InputError(f"unknown source {name!r}: use {', '.join(NAMES)} or `NAME=DIR` of a published run")

    def paint(
        photo: NDArray[np.uint8], label: NDArray[np.bool_], other: NDArray[np.uint8], rng: np.random.Generator
    ) -> Pair:
        return BASELINES[name](photo, label, other, rng), label

    return paint


def _code_of(name: str) -> str:
    """Digest of the code that paints a baseline: what another version of it painted is another source's."""
    if name == PROCEDURAL:
        files, versions = [Path(inspect.getfile(procedural))], [procedural.release()]
    else:
        files = sorted(Path(inspect.getfile(baselines)).parent.glob("*.py"))
        versions = [cv2.__version__, PIL.__version__, scipy.__version__]
    return json.dumps([*(sha256(path) for path in files), *versions, np.__version__])


def check(name: str, outside: Mapping[str, Path], split: Split) -> None:
    """Whether a source can be had, before an hour went into the others.

    Raises:
        InputError, DatasetError: it cannot.
    """
    if name in outside:
        pairs = [pair for found in of_others(name, outside[name], split).values() for pair in found]
        for image, mask in pairs:
            labelled(image, mask)
        refuse_tested(split, (image for image, _ in pairs))
    elif name not in OURS:
        _painter(name, split.types[0])


def of_others(name: str, folder: Path, split: Split, most: int | None = None) -> Pairs:
    """Pairs that somebody published, up to ``most`` a type (`stage_rt.quality.published`)."""
    return {kind: published.pairs(name, folder, split.name, kind)[:most] for kind in split.types}
