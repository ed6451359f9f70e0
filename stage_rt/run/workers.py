"""A batch on its way through a run.

The painting thread calls `begin` for one batch after the other; what that returns, the writer thread
(`stage_rt.run.writer`) calls while the next one is painted.
"""

from collections import deque
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

PIXELS_HELD = 512_000_000
"""Photographs of a batch that are held in memory, up to so many pixels; others are read again whenever they are
needed. Those that are cut into regions are fewer (`stage_rt.run.plan.PIXELS_TOGETHER`)."""

FIRST_ATTEMPT = 0.8
"""Share of a batch's progress that its first attempt is; every further one is that share of what is left."""

Levels = NDArray[np.uint8]
"""A painted region, uint8 ``[S, S, 3]``."""


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


class Loaded(Painter, Protocol):
    """A `Painter` that holds what has to be given back."""

    def close(self) -> None:
        """Give it back, and keep what was compiled for the next time; the painter cannot be used afterwards."""


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


class Photographs(Protocol):
    """The photographs of a batch, uint8 ``[H, W, 3]``, by their places in it."""

    def __getitem__(self, place: int, /) -> NDArray[np.uint8]:
        """One of them, which need not be in memory before or afterwards."""


@dataclass(frozen=True)
class Piece:
    """Region ``number`` of the sample at ``place`` in the batch.

    ``mask`` float32 ``[1, h, w]`` is what is painted of its latent and ``cells`` its label's part of that.
    """

    photos: Photographs
    place: int
    number: int
    region: Region
    mask: NDArray[np.float32]
    cells: NDArray[np.float32]

    @property
    def photo(self) -> NDArray[np.uint8]:
        """What it shows, uint8 ``[h, w, 3]``."""
        return self.photos[self.place][self.region.window]


@dataclass(frozen=True)
class Batch:
    """Samples, their photographs uint8 ``[H, W, 3]`` and labels bool ``[H, W]``, and the regions to be painted."""

    samples: Sequence[Sample]
    photos: Photographs
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
    photos = _Files(samples, digests)
    labels = [sample.label(photos[place], digests) for place, sample in enumerate(samples)]
    return Batch(samples, photos, labels, divide(photos, labels, model, method))


class _Files:
    """Photographs that are read when they are asked for; the first stay, up to `PIXELS_HELD`."""

    def __init__(self, samples: Sequence[Sample], digests: Mapping[Path, str]) -> None:
        self._samples, self._digests = samples, digests
        self._held: dict[int, NDArray[np.uint8]] = {}
        self._room = PIXELS_HELD

    def __getitem__(self, place: int, /) -> NDArray[np.uint8]:
        """See `Photographs`.

        Raises:
            ImageError: the file has changed since it was checked.
        """
        if place in self._held:
            return self._held[place]
        normal = self._samples[place].normal
        photo = read_image(normal, self._digests[normal])
        size = photo.shape[0] * photo.shape[1]
        if size <= self._room:
            self._held[place] = photo
            self._room -= size
        return photo


def divide(
    photos: Photographs,
    labels: Sequence[NDArray[np.bool_]],
    model: ModelSpec,
    method: Method,
) -> list[Piece]:
    """The regions of photographs uint8 ``[H, W, 3]`` under labels bool ``[H, W]``, as the networks see them.

    They are told of labels that are wider by the method's outset. With a rim the cells around are painted too:
    adapters are told of the label alone, so that what they make of those cells is how a defect ends there.
    """
    pieces = []
    for place, label in enumerate(labels):
        for number, region in enumerate(regions(label, method.region)):
            outset = method.outset * max(region.label.shape) / model.image_size
            cells = latent_mask(widened(region.label, outset), model)
            mask = grown(cells) if method.rim else cells
            pieces.append(Piece(photos, place, number, region, mask, cells))
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
        return lambda: _strokes(batch, engine.spec.model, everything, painted())
    left = 1.0

    def attempt(places: Sequence[int], number: int) -> list[Stroke]:
        nonlocal left
        share = portion(progress, 1 - left, 1 - left * (1 - FIRST_ATTEMPT))
        left *= 1 - FIRST_ATTEMPT
        painted = _attempt(engine, batch, method, seed, size, places, number, share)
        return _strokes(batch, engine.spec.model, places, painted())

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
) -> Callable[[], list[Levels | None]]:
    """Paint the regions at ``places``; returns what waits for the last of them, for None where one is not finite.

    Numbers of networks, of four bytes and more, are in memory for two calls of them at a time and no longer.
    """
    levels: list[Levels | None] = []
    waiting: deque[Painted] = deque()
    for start in range(0, len(places), size):
        pieces = [batch.pieces[place] for place in places[start : start + size]]
        seeds = [reseeded(seed, len(batch.samples[piece.place].rejected)) for piece in pieces]
        streams = [stream(batch.samples[piece.place].index, piece.number, number) for piece in pieces]
        waiting.append(
            engine.paint(
                np.stack([network_image(piece.photo, engine.spec.model) for piece in pieces]),
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
        if len(waiting) > 1:
            # A device is at work on the later ones meanwhile.
            levels += _levels(waiting.popleft())
    return lambda: levels + [one for painted in waiting for one in _levels(painted)]


def _levels(painted: Painted) -> list[Levels | None]:
    """Wait for pictures, in grey levels."""
    return [
        pixels(image) if usable else None
        for image, usable in zip(painted.images, painted.finite, strict=True)
    ]


def _strokes(
    batch: Batch, model: ModelSpec, places: Sequence[int], painted: Sequence[Levels | None]
) -> list[Stroke]:
    """Measure what was painted."""
    return [
        _stroke(batch.pieces[place], levels, model) for place, levels in zip(places, painted, strict=True)
    ]


def _stroke(piece: Piece, levels: Levels | None, model: ModelSpec) -> Stroke:
    if levels is None:
        return Stroke(None, None)
    photo, region = piece.photo, piece.region
    figures = measure(photo, levels, region.label, model.latent_size, model.image_channels)
    figures = figures._replace(label_pixels=int(region.own.sum()))
    before = pixels(network_image(photo, model))
    return Stroke(levels, figures, round_trip(before, levels, piece.mask[0] > 0))


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
        photo = batch.photos[place]
        draw = partial(_composited, photo, model, method) if composited else _decoded
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
            thumbnail=thumbnails.draw(photo, image, label, box) if image else None,
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
