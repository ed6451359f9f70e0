"""Photographs or crops, latent masks and prompt names of an MVTec-layout folder, in memory as tensors."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from stage_rt.errors import DatasetError
from stage_rt.images.inputs import (
    fit_mask,
    latent_mask,
    network_image,
    network_mask,
    read_header,
    read_image,
)
from stage_rt.images.layouts import Dataset
from stage_rt.images.masks import read_mask
from stage_rt.packs.real import real_datasets
from stage_rt.progress import Progress, silent
from stage_rt.run.plan import COVERING, Notify, cover_nearly_all
from stage_rt.run.sample import listed
from stage_rt.spec import LONGEST_PROMPT, ModelSpec, PromptName, RegionView

from . import crops

GOOD = "good"

GOOD_SHARE = 1 / 4
"""Share of good parts in what is drawn; most of a photograph with a defect is good surface too."""

NEARLY_BLACK = 16
"""Highest value of 8 bits that a camera of 12 bits leaves in files of 16."""

FEW = 8
"""Labelled photographs of a type below which a training tells that there are few."""

_LIGHT_SEED = 77
"""What the seed of the light is beyond that of places, so that neither is drawn after the other."""

_PROMPT = TypeAdapter[str](PromptName)


@dataclass(frozen=True)
class Examples:
    """Training data; sample ``n`` shows ``names[prompt[n]]``.

    ``images`` is uint8 ``[N, c, S, S]``, ``labels`` is bool ``[N, S, S]`` and ``masks``, the latent cells they touch,
    bool ``[N, 1, h, w]``; both are all false for good parts. ``prompt`` is int64 ``[N]``. ``names[0]`` is ``good``,
    the others are ``<object>+<defect type>``.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    prompt: Tensor
    names: list[str]

    def draw(self, count: int, generator: torch.Generator, *, prompt: int | None = None) -> Tensor:
        """Indices of ``count`` samples of ``prompt``, int64; of good parts and every prompt without it.

        Then a name is drawn first, uniformly but for the good parts, so that rare defect types are seen as
        often as common ones.
        """
        if prompt is None:
            names = torch.randint(1, len(self.names), (count,), generator=generator)
            names[torch.rand(count, generator=generator) < GOOD_SHARE] = 0
        else:
            names = torch.full((count,), prompt)
        picks = [torch.nonzero(self.prompt == name).flatten() for name in names.tolist()]
        return torch.stack([pick[int(torch.randint(len(pick), (1,), generator=generator))] for pick in picks])


def is_grey(dataset: Dataset, probe: int = 16) -> bool:
    """Whether the first ``probe`` good photographs of a dataset, and as many of every type, have no colour in them.

    Rust on bare steel is where the only colour is.
    """
    kinds = [dataset.normals, *([image for image, _ in pairs] for pairs in dataset.defects.values())]
    paths = [path for kind in kinds for path in kind[:probe]]
    return all(read_header(path).grey or _without_colour(read_image(path)) for path in paths)


def _without_colour(pixels: NDArray[np.uint8]) -> bool:
    return bool((pixels[..., :1] == pixels).all())


def load(
    found: list[Dataset],
    spec: ModelSpec,
    *,
    seed: int,
    turn: bool,
    notify: Notify,
    progress: Progress = silent,
) -> Examples:
    """Read and preprocess every photograph as the runtime does: whole, or as crops if the model has a region view.

    ``seed`` decides where the crops are; ``turn``: they may be turned by quarters. ``notify`` gets one sentence per
    thing that the user should know, ``progress`` the share of the photographs that was read.

    Raises:
        ImageError, MaskError: a file is unusable.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.bool_]] = []
    masks: list[NDArray[np.bool_]] = []
    prompt: list[int] = []
    names = [GOOD]
    files = sum(len(d.normals) + sum(map(len, d.defects.values())) for d in found)
    files_read = _Read(files, progress)
    for dataset in found:
        views = (
            _Crops(dataset, spec.region, seed, files_read, turn=turn)
            if spec.region
            else _Whole(dataset, files_read)
        )
        for kind in dataset.defects:
            names.append(f"{dataset.name}+{kind}")
            for photo, label in views.defects(kind):
                files_read.go_on()
                images.append(_levels(photo, spec))
                masks.append(latent_mask(label, spec) > 0)
                labels.append(_visible(label, masks[-1], spec))
                prompt.append(len(names) - 1)
        for photo in views.good():
            files_read.go_on()
            images.append(_levels(photo, spec))
            labels.append(np.zeros((spec.image_size, spec.image_size), dtype=np.bool_))
            masks.append(np.zeros((1, spec.latent_size, spec.latent_size), dtype=np.bool_))
            prompt.append(0)
    progress(1.0)
    files_read.tell(notify)
    return Examples(
        images=torch.from_numpy(np.stack(images)),
        labels=torch.from_numpy(np.stack(labels)),
        masks=torch.from_numpy(np.stack(masks)),
        prompt=torch.tensor(prompt),
        names=names,
    )


def _levels(photo: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = (
        np.rint((network_image(photo, spec) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    )
    return levels


def _visible(label: NDArray[np.bool_], cells: NDArray[np.bool_], spec: ModelSpec) -> NDArray[np.bool_]:
    """A label at the size of the images; its latent cells, where it is too thin for one pixel of theirs."""
    small = network_mask(label, spec)
    return (
        small
        if small.any()
        else np.kron(cells[0], np.ones((spec.image_size // spec.latent_size,) * 2, dtype=np.bool_))
    )


class _Read:
    """So many ``files`` as they are opened, with ``progress``, and what a user should know of them."""

    def __init__(self, files: int, progress: Progress) -> None:
        self._files, self._progress, self._opened = files, progress, 0
        self._brightest = 0
        self._shaded: list[Path] = []
        self._covering: list[Path] = []

    def go_on(self) -> None:
        """Let ``progress`` end the work: the crops of one large photograph may take minutes."""
        self._progress((self._opened - 1) / self._files)

    def photograph(self, path: Path) -> NDArray[np.uint8]:
        """uint8 ``[H, W, 3]``."""
        self._opened += 1
        self.go_on()
        photo = read_image(path)
        self._brightest = max(self._brightest, int(photo.max()))
        return photo

    def labelled(self, image: Path, mask: Path) -> crops.Crop:
        """As `stage_rt.images.masks.labelled`."""
        photo = self.photograph(image)
        label, shaded = read_mask(mask)
        self._shaded += [mask] * shaded
        self._covering += [mask] * bool(label.mean() > COVERING)
        return photo, fit_mask(label, (photo.shape[1], photo.shape[0]), mask)

    def tell(self, notify: Notify) -> None:
        """Say what a run says of photographs and masks that it is given (`stage_rt.run.plan`)."""
        if self._brightest <= NEARLY_BLACK:
            notify(
                f"the photographs are nearly black, as none has a value above {self._brightest} of 255: "
                "multiply what a camera of 12 bits wrote by 16"
            )
        if self._shaded:
            notify(
                f"masks in shades of grey, labelled from half of their brightest on: {listed(self._shaded)}"
            )
        if self._covering:
            notify(cover_nearly_all(self._covering))


class _Whole:
    """Every photograph as it is."""

    def __init__(self, dataset: Dataset, read: _Read) -> None:
        self._dataset, self._read = dataset, read

    def defects(self, kind: str) -> Iterator[crops.Crop]:
        for image, mask in self._dataset.defects[kind]:
            yield self._read.labelled(image, mask)

    def good(self) -> Iterator[NDArray[np.uint8]]:
        return map(self._read.photograph, self._dataset.normals)


class _Crops:
    """Crops around the defects, and of the good photographs at the same sizes."""

    def __init__(self, dataset: Dataset, view: RegionView, seed: int, read: _Read, *, turn: bool) -> None:
        self._dataset, self._view, self._turn, self._read = dataset, view, turn, read
        self._rng, self._light = np.random.default_rng(seed), np.random.default_rng(seed + _LIGHT_SEED)
        self._sides: list[int] = []

    def defects(self, kind: str) -> Iterator[crops.Crop]:
        pairs = self._dataset.defects[kind]
        count = crops.crops_a_region(len(pairs))
        for image, mask in pairs:
            for photo, label, side in crops.around_defects(
                *self._read.labelled(image, mask), self._view, count, self._rng, turn=self._turn
            ):
                self._sides.append(side)
                yield crops.lit(photo, self._light), label

    def good(self) -> Iterator[NDArray[np.uint8]]:
        count = crops.crops_a_region(len(self._dataset.normals))
        for path in self._dataset.normals:
            side, photograph = int(self._rng.choice(self._sides)), self._read.photograph(path)
            for photo, _ in crops.of_surface(photograph, side, count, self._rng, turn=self._turn):
                yield crops.lit(photo, self._light)


def find(root: Path) -> list[Dataset]:
    """The objects of ``root`` that can be trained on.

    Raises:
        DatasetError: nothing found, painted defects, an object without good photographs or labelled defects, or names
            that prompts cannot have.
    """
    found = real_datasets(root)
    _require_names(root, found)
    for dataset in found:
        if not dataset.normals:
            raise DatasetError(f"`{root}`: object {dataset.name!r} has no good photographs in `train/good`")
        if not any(dataset.defects.values()):
            raise DatasetError(
                f"`{root}`: object {dataset.name!r} has no labelled defects in `test/<type>` with masks in "
                "`ground_truth/<type>`"
            )
    return found


def tell_few(found: list[Dataset], notify: Notify) -> None:
    """Say of which types there is little to learn from."""
    few = [
        f"{dataset.name}+{kind} ({len(pairs)})"
        for dataset in found
        for kind, pairs in dataset.defects.items()
        if len(pairs) < FEW
    ]
    if few:
        notify(
            f"types with fewer than {FEW} labelled photographs to learn from: {', '.join(few)}; "
            "label more of them if there are more"
        )


def _require_names(root: Path, found: list[Dataset]) -> None:
    name, count = Counter(dataset.name for dataset in found).most_common(1)[0]
    if count > 1:
        raise DatasetError(
            f"`{root}` leads to {count} objects called {name!r}, whose prompts would be the same",
            "rename their folders",
        )
    for prompt in (f"{dataset.name}+{kind}" for dataset in found for kind in dataset.defects):
        try:
            _PROMPT.validate_python(prompt)
        except ValidationError:
            raise DatasetError(
                f"`{root}`: no prompt can be called {prompt!r}, after the folders of an object and a type",
                f"rename them to at most {LONGEST_PROMPT} characters of UTF-8 without `\\`",
            ) from None
