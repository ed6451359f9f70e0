"""A batch on its way through a run.

The painting thread calls `prepare` and `paint`, one batch after the other; the writer thread (`stage_rt.run.writer`)
calls `finish` for a batch while the next one is painted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.executor import Painted
from stage_rt.images.compose import composite, pixels
from stage_rt.images.inputs import latent_mask, network_image, network_mask, read_image
from stage_rt.images.labels import Figures, measure
from stage_rt.names import SamplerName
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress
from stage_rt.recipe import Recipe
from stage_rt.run.job import Method
from stage_rt.run.plan import Sample
from stage_rt.spec import EngineSpec, ModelSpec


class Painter(Protocol):
    """The part of `stage_rt.engine.Engine` a run needs."""

    @property
    def spec(self) -> EngineSpec:
        """What the engine was compiled for."""

    def paint(
        self,
        images: NDArray[np.float32],
        masks: NDArray[np.float32],
        *,
        prompt: str,
        noise: PhiloxNoise,
        sampler: SamplerName,
        recipe: Recipe,
        steps: int,
        progress: Progress,
    ) -> Painted:
        """Images ``[B, c, S, S]`` in [-1, 1] with a defect inside their latent masks ``[B, 1, h, w]``."""


@dataclass(frozen=True)
class Batch:
    """Samples, photographs uint8 ``[H, W, 3]``, labels bool ``[H, W]`` and latent masks float32 ``[B, 1, h, w]``."""

    samples: Sequence[Sample]
    photos: list[NDArray[np.uint8]]
    labels: list[NDArray[np.bool_]]
    masks: NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """A painted sample, ready to be written; ``image`` and ``figures`` are None when it is not finite."""

    sample: Sample
    image: Image.Image | None
    figures: Figures | None
    label: NDArray[np.bool_]
    latent_mask_cells: int


def prepare(samples: Sequence[Sample], model: ModelSpec) -> Batch:
    """Read the files of ``samples``.

    Raises:
        ImageError, MaskError: one has changed since it was checked.
    """
    labels = [sample.label() for sample in samples]
    return Batch(
        samples=samples,
        photos=[read_image(sample.normal) for sample in samples],
        labels=labels,
        masks=np.stack([latent_mask(label, model) for label in labels]),
    )


def paint(engine: Painter, batch: Batch, method: Method, seed: int, progress: Progress) -> Painted:
    """Paint a batch; a device may still be at work on what is returned."""
    return engine.paint(
        np.stack([network_image(photo, engine.spec.model) for photo in batch.photos]),
        batch.masks,
        prompt=method.prompt,
        noise=PhiloxNoise([seed] * len(batch.samples), [sample.index for sample in batch.samples]),
        sampler=method.sampler,
        recipe=method.recipe,
        steps=method.steps,
        progress=progress,
    )


def finish(batch: Batch, painted: Painted, model: ModelSpec, *, composited: bool) -> Iterator[Result]:
    """Wait for a batch's images and make each ready to be written.

    ``composited``: put the paint into the photograph, at its size; otherwise the decoded image is the result.
    """
    images, finite = painted.images, painted.finite
    for n, sample in enumerate(batch.samples):
        image, figures = None, None
        label = batch.labels[n] if composited else network_mask(batch.labels[n], model)
        if finite[n]:
            levels = pixels(images[n])
            figures = measure(batch.photos[n], levels, batch.labels[n], model.latent_size)
            image = Image.fromarray(composite(batch.photos[n], levels, label) if composited else levels)
            image = image.convert("L") if sample.grey else image
        yield Result(sample, image, figures, label, int(batch.masks[n].sum()))
