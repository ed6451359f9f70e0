"""Photographs, latent masks and prompt names of an MVTec-layout folder, in memory as tensors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage_rt.errors import DatasetError
from stage_rt.images.inputs import fit_mask, latent_mask, network_image, read_header, read_image, read_mask
from stage_rt.images.layouts import Dataset, datasets
from stage_rt.spec import ModelSpec

GOOD = "good"

GOOD_SHARE = 1 / 4
"""Share of good parts in what is drawn; most of a photograph with a defect is good surface too."""


@dataclass(frozen=True)
class Examples:
    """Training data; sample ``n`` shows ``names[prompt[n]]``.

    ``images`` is uint8 ``[N, c, S, S]``, ``masks`` is bool ``[N, 1, h, w]`` (all false for good parts),
    ``prompt`` is int64 ``[N]``. ``names[0]`` is ``good``; the others are ``<object>+<defect type>``.
    """

    images: Tensor
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
    """Whether the first ``probe`` photographs of a dataset have no colour in them."""
    paths = [*dataset.normals, *(image for pairs in dataset.defects.values() for image, _ in pairs)]
    return all(read_header(path).grey or _without_colour(read_image(path)) for path in paths[:probe])


def _without_colour(pixels: NDArray[np.uint8]) -> bool:
    return bool((pixels[..., :1] == pixels).all())


def load(found: list[Dataset], spec: ModelSpec) -> Examples:
    """Read and preprocess every photograph exactly as the runtime does.

    Raises:
        DatasetError: an object has no good photograph or no labelled defect.
        ImageError, MaskError: a file is unusable.
    """
    images: list[NDArray[np.float32]] = []
    masks: list[NDArray[np.float32]] = []
    prompt: list[int] = []
    names = [GOOD]
    empty = np.zeros((1, spec.latent_size, spec.latent_size), dtype=np.float32)
    for dataset in found:
        for path in dataset.normals:
            images.append(network_image(read_image(path), spec))
            masks.append(empty)
            prompt.append(0)
        for kind, pairs in dataset.defects.items():
            names.append(f"{dataset.name}+{kind}")
            for image, mask in pairs:
                photo = read_image(image)
                label = fit_mask(read_mask(mask), (photo.shape[1], photo.shape[0]), mask)
                images.append(network_image(photo, spec))
                masks.append(latent_mask(label, spec))
                prompt.append(len(names) - 1)
    pixels = np.stack(images)
    return Examples(
        images=torch.from_numpy(np.rint((pixels + 1) * 127.5).clip(0, 255).astype(np.uint8)),
        masks=torch.from_numpy(np.stack(masks) > 0),
        prompt=torch.tensor(prompt),
        names=names,
    )


def find(root: Path) -> list[Dataset]:
    """The objects of ``root`` that can be trained on.

    Raises:
        DatasetError: nothing found, or an object without good photographs or labelled defects.
    """
    found = datasets(root)
    for dataset in found:
        if not dataset.normals:
            raise DatasetError(f"`{root}`: object {dataset.name!r} has no good photographs in `train/good`")
        if not any(dataset.defects.values()):
            raise DatasetError(
                f"`{root}`: object {dataset.name!r} has no labelled defects in `test/<type>` with masks in "
                "`ground_truth/<type>`"
            )
    return found
