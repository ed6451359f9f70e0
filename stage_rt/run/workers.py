"""A batch on its way through a run.

The painting thread calls `begin` for one batch after the other; what that returns, the writer thread
(`stage_rt.run.writer`) calls while the next one is painted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.executor import Painted
from stage_rt.images.compose import pasted, pixels
from stage_rt.images.inputs import decoded_label, grown, latent_mask, network_image, read_image, widened
from stage_rt.images.labels import Figures, measure, round_trip
from stage_rt.images.regions import Region, regions
from stage_rt.names import SamplerName
from stage_rt.noise import PhiloxNoise, reseeded, stream
from stage_rt.progress import Progress, portion
from stage_rt.recipe import Recipe
from stage_rt.run import thumbnails
from stage_rt.run.job import Method
from stage_rt.run.quality import Stroke, combined, refill
from stage_rt.run.sample import Sample
from stage_rt.run.writer import png, png_of
from stage_rt.spec import EngineSpec, ModelSpec

FIRST_ATTEMPT = 0.8
"""Share of a batch's progress that its first attempt is; every further one is that share of what is left."""


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
        labels: NDArray[np.float32] | None = None,
    ) -> Painted:
        """Images ``[B, c, S, S]`` in [-1, 1] with a defect inside their latent masks ``[B, 1, h, w]``.

        ``labels`` are the masks that adapters are handed, if others.
        """


@dataclass(frozen=True)
class Task:
    """Samples that go through a run together, and all that a painter has to know of them.

    ``wanted`` are the indices of those that are missing. ``size`` regions are painted at a time, under ``seed``;
    ``composited`` is as in `finish`. ``digests`` are the sha256 that their files had when they were checked.
    """

    samples: Sequence[Sample]
    wanted: frozenset[int]
    method: Method
    seed: int
    size: int
    composited: bool
    digests: Mapping[Path, str]


@dataclass(frozen=True)
class Piece:
    """Region ``number`` of the sample at ``place`` in the batch.

    ``photo`` uint8 ``[h, w, 3]`` is what it shows, ``image`` float32 ``[c, S, S]`` the same for the network, ``mask``
    float32 ``[1, h, w]`` what is painted of its latent and ``cells`` its label's part of that.
    """

    place: int
    number: int
    region: Region
    photo: NDArray[np.uint8]
    image: NDArray[np.float32]
    mask: NDArray[np.float32]
    cells: NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Samples, their photographs uint8 ``[H, W, 3]`` and labels bool ``[H, W]``, and the regions to be painted."""

    samples: Sequence[Sample]
    photos: list[NDArray[np.uint8]]
    labels: list[NDArray[np.bool_]]
    pieces: list[Piece]


@dataclass(frozen=True)
class Result:
    """A painted sample, ready to be written; ``image`` and ``figures`` are None when it is not finite.

    ``image`` and ``label``, 0 and 255, are PNG files, ``box`` and ``thumbnail`` are of `stage_rt.run.thumbnails`.
    ``weakest`` is the fill of the region that was painted least, ``attempts`` of the one that took most,
    ``round_trip`` the median of all.
    """

    index: int
    image: bytes | None
    figures: Figures | None
    label: bytes
    latent_mask_cells: int
    regions: int
    attempts: int
    weakest: float
    round_trip: float
    box: thumbnails.Box
    thumbnail: bytes | None


def begin(engine: Painter, task: Task, progress: Progress) -> Callable[[], Iterator[Result]]:
    """Paint a task; returns what waits for the pictures and makes one after the other ready to be written.

    Raises:
        ImageError, MaskError: a file has changed since it was checked.
        BackendError: the inference library failed.
    """
    model, method = engine.spec.model, task.method
    batch = prepare(task.samples, model, method, task.digests)
    strokes = paint(engine, batch, method, seed=task.seed, size=task.size, progress=progress)
    return lambda: finish(batch, strokes(), model, method, composited=task.composited)


def prepare(
    samples: Sequence[Sample], model: ModelSpec, method: Method, digests: Mapping[Path, str]
) -> Batch:
    """Read the files of ``samples``, whose sha256 were ``digests``, and cut their regions.

    Raises:
        ImageError, MaskError: one has changed since it was checked.
    """
    photos = [read_image(sample.normal, digests[sample.normal]) for sample in samples]
    labels = [sample.label(photo, digests) for sample, photo in zip(samples, photos, strict=True)]
    return Batch(samples, photos, labels, divide(photos, labels, model, method))


def divide(
    photos: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.bool_]],
    model: ModelSpec,
    method: Method,
) -> list[Piece]:
    """The regions of photographs uint8 ``[H, W, 3]`` under labels bool ``[H, W]``, as the networks see them.

    They are told of labels that are wider by the method's outset. With a rim the cells around are painted too:
    adapters are told of the label alone, so that what they make of those cells is how a defect ends there.
    """
    pieces = []
    for place, (photo, label) in enumerate(zip(photos, labels, strict=True)):
        for number, region in enumerate(regions(label, method.region)):
            cut = photo[region.window]
            outset = method.outset * max(region.label.shape) / model.image_size
            told = widened(region.label, outset)
            image, cells = network_image(cut, model), latent_mask(told, model)
            mask = grown(cells) if method.rim else cells
            pieces.append(Piece(place, number, region, cut, image, mask, cells))
    return pieces


def paint(
    engine: Painter, batch: Batch, method: Method, *, seed: int, size: int, progress: Progress
) -> Callable[[], list[Stroke]]:
    """Paint the regions of a batch, ``size`` at a time.

    Returns what waits for the strokes, one a region: a device may still be at work on them, unless some had to be
    measured because weak ones are painted again.
    """
    if not method.retries:
        everything = range(len(batch.pieces))
        painted = _attempt(engine, batch, method, seed, size, everything, 0, progress)
        return lambda: _strokes(batch, engine.spec.model, everything, painted)
    left = 1.0

    def attempt(places: Sequence[int], number: int) -> list[Stroke]:
        nonlocal left
        share = portion(progress, 1 - left, 1 - left * (1 - FIRST_ATTEMPT))
        left *= 1 - FIRST_ATTEMPT
        painted = _attempt(engine, batch, method, seed, size, places, number, share)
        return _strokes(batch, engine.spec.model, places, painted)

    strokes = refill(attempt, len(batch.pieces), min_fill=method.min_fill, retries=method.retries)
    progress(1.0)
    return lambda: strokes


def _attempt(
    engine: Painter,
    batch: Batch,
    method: Method,
    seed: int,
    size: int,
    places: Sequence[int],
    number: int,
    progress: Progress,
) -> list[Painted]:
    painted = []
    for start in range(0, len(places), size):
        pieces = [batch.pieces[place] for place in places[start : start + size]]
        seeds = [reseeded(seed, len(batch.samples[piece.place].rejected)) for piece in pieces]
        streams = [stream(batch.samples[piece.place].index, piece.number, number) for piece in pieces]
        painted.append(
            engine.paint(
                np.stack([piece.image for piece in pieces]),
                np.stack([piece.mask for piece in pieces]),
                labels=np.stack([piece.cells for piece in pieces]) if method.rim else None,
                prompt=method.prompt,
                noise=PhiloxNoise(seeds, streams),
                sampler=method.sampler,
                recipe=method.recipe,
                steps=method.steps,
                progress=portion(progress, start / len(places), (start + len(pieces)) / len(places)),
            )
        )
    return painted


def _strokes(
    batch: Batch, model: ModelSpec, places: Sequence[int], painted: Sequence[Painted]
) -> list[Stroke]:
    """Wait for what was painted, and measure it."""
    images = (image for part in painted for image in part.images)
    finite = (whole for part in painted for whole in part.finite)
    return [
        _stroke(batch.pieces[place], image, bool(usable), model)
        for place, image, usable in zip(places, images, finite, strict=True)
    ]


def _stroke(piece: Piece, image: NDArray[np.float32], usable: bool, model: ModelSpec) -> Stroke:
    if not usable:
        return Stroke(None, None)
    levels = pixels(image)
    region = piece.region
    figures = measure(piece.photo, levels, region.label, model.latent_size, model.image_channels)
    figures = figures._replace(label_pixels=int(region.own.sum()))
    return Stroke(levels, figures, round_trip(pixels(piece.image), levels, piece.mask[0] > 0))


def finish(
    batch: Batch, strokes: Sequence[Stroke], model: ModelSpec, method: Method, *, composited: bool
) -> Iterator[Result]:
    """Make each sample of a painted batch ready to be written.

    ``composited``: put the paint into the photograph, at its size; otherwise the decoded image of the one region is
    the result.
    """
    for place, sample in enumerate(batch.samples):
        mine = [n for n, piece in enumerate(batch.pieces) if piece.place == place]
        pieces, done = [batch.pieces[n] for n in mine], [strokes[n] for n in mine]
        label = batch.labels[place] if composited else decoded_label(batch.labels[place], model)
        draw = partial(_composited, batch.photos[place], model, method) if composited else _decoded
        figures = [stroke.figures for stroke in done if stroke.figures is not None]
        complete = len(figures) == len(done)
        image = draw(pieces, done) if complete else None
        if image and sample.grey:
            image = image.convert("L")
        seen = [piece.region for piece in pieces] if composited else regions(label, None)
        box = thumbnails.square_around(thumbnails.largest(label, seen))
        yield Result(
            sample.index,
            png(image) if image else None,
            combined(figures)._replace(label_pixels=int(label.sum())) if complete else None,
            png_of(label),
            latent_mask_cells=int(sum(piece.cells.sum() for piece in pieces)),
            regions=len(pieces),
            attempts=max(stroke.attempts for stroke in done),
            weakest=min(stroke.fill for stroke in done),
            round_trip=median(stroke.round_trip for stroke in done),
            box=box,
            thumbnail=thumbnails.draw(batch.photos[place], image, label, box) if image else None,
        )


def _composited(
    photo: NDArray[np.uint8],
    model: ModelSpec,
    method: Method,
    pieces: Sequence[Piece],
    strokes: Sequence[Stroke],
) -> Image.Image:
    levels = [stroke.levels for stroke in strokes if stroke.levels is not None]
    own, exact = [piece.region for piece in pieces], method.region is not None
    return Image.fromarray(
        pasted(photo, own, levels, exact=exact, rim=method.rim, channels=model.image_channels)
    )


def _decoded(pieces: Sequence[Piece], strokes: Sequence[Stroke]) -> Image.Image:
    assert strokes[0].levels is not None
    return Image.fromarray(strokes[0].levels)
