"""A batch on its way through a run.

The painting thread calls `begin` for one batch after the other; what that returns, the writer thread
(`stage_rt.run.writer`) calls while the next one is painted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.images.inputs import decoded_label, read_image
from stage_rt.images.labels import Figures
from stage_rt.images.regions import regions
from stage_rt.method import Method
from stage_rt.noise import reseeded, stream
from stage_rt.progress import Progress
from stage_rt.run import thumbnails
from stage_rt.run.sample import Sample
from stage_rt.run.writer import png, png_of
from stage_rt.spec import ModelSpec
from stage_rt.strokes import Painter, Photographs, Piece, Stroke, combined, divide, paint_pieces, pasted_into

PIXELS_HELD = 512_000_000
"""Photographs of a batch that are held in memory, up to so many pixels; others are read again whenever they are
needed. Those that are cut into regions are fewer (`stage_rt.run.plan.PIXELS_TOGETHER`)."""


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


def paint(
    engine: Painter, batch: Batch, method: Method, *, seed: int, size: int, progress: Progress
) -> Callable[[], list[Stroke]]:
    """`stage_rt.strokes.paint_pieces` for a batch of a run under ``seed``."""

    def streams(piece: Piece, attempt: int) -> tuple[int, int]:
        sample = batch.samples[piece.place]
        return reseeded(seed, len(sample.rejected)), stream(sample.index, piece.number, attempt)

    return paint_pieces(engine, batch.pieces, method, streams=streams, size=size, progress=progress)


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
        figures = [stroke.figures for stroke in done if stroke.figures is not None]
        complete = len(figures) == len(done)
        image = _picture(photo, pieces, done, model, method, composited) if complete else None
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


def _picture(
    photo: NDArray[np.uint8],
    pieces: Sequence[Piece],
    strokes: Sequence[Stroke],
    model: ModelSpec,
    method: Method,
    composited: bool,
) -> Image.Image:
    if composited:
        return Image.fromarray(pasted_into(photo, pieces, strokes, model, method))
    assert strokes[0].levels is not None
    return Image.fromarray(strokes[0].levels)
