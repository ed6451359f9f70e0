"""Regions of photographs, painted, measured, and painted again where too little of a label was."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stage_rt.executor import Painted
from stage_rt.images.compose import pasted, pixels
from stage_rt.images.inputs import grown, latent_mask, network_image, widened
from stage_rt.images.labels import Figures, measure, round_trip
from stage_rt.images.regions import Region, regions
from stage_rt.method import Method
from stage_rt.names import SamplerName
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress, portion
from stage_rt.recipe import Recipe
from stage_rt.spec import EngineSpec, ModelSpec

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


class Stroke(NamedTuple):
    """A painted region: uint8 ``[S, S, 3]`` and its figures, both None if it is not finite.

    ``round_trip`` is how much the networks changed it where nothing is painted (`stage_rt.images.labels`),
    ``attempts`` how often it was painted.
    """

    levels: NDArray[np.uint8] | None
    figures: Figures | None
    round_trip: float = 0.0
    attempts: int = 1

    @property
    def fill(self) -> float:
        """The share of the label that was painted; below every share where nothing usable was."""
        return -1.0 if self.figures is None else self.figures.fill


Attempt = Callable[[Sequence[int], int], Sequence[Stroke]]
"""Paints some regions of a batch, by their place in it, from the streams of attempt ``n``."""


Streams = Callable[[Piece, int], tuple[int, int]]
"""Seed and stream of the noise of a piece in attempt ``n``."""


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


def paint_pieces(
    engine: Painter,
    pieces: Sequence[Piece],
    method: Method,
    *,
    streams: Streams,
    size: int,
    progress: Progress,
) -> Callable[[], list[Stroke]]:
    """Paint the regions of photographs, ``size`` at a time, each from noise as ``streams`` says.

    Returns what waits for the strokes, one a region: a device may still be at work on them, unless some had to be
    measured because weak ones are painted again.
    """
    if not method.retries:
        everything = range(len(pieces))
        painted = _attempt(engine, pieces, method, streams, size, everything, 0, progress)
        return lambda: _strokes(pieces, engine.spec.model, everything, painted())
    left = 1.0

    def attempt(places: Sequence[int], number: int) -> list[Stroke]:
        nonlocal left
        share = portion(progress, 1 - left, 1 - left * (1 - FIRST_ATTEMPT))
        left *= 1 - FIRST_ATTEMPT
        painted = _attempt(engine, pieces, method, streams, size, places, number, share)
        return _strokes(pieces, engine.spec.model, places, painted())

    strokes = refill(attempt, len(pieces), min_fill=method.min_fill, retries=method.retries)
    progress(1.0)
    return lambda: strokes


def refill(paint: Attempt, count: int, *, min_fill: float, retries: int) -> list[Stroke]:
    """Paint ``count`` regions, and those below ``min_fill`` up to ``retries`` times again; the best of each stays."""
    best = list(paint(range(count), 0))
    for attempt in range(1, retries + 1):
        weak = [place for place, stroke in enumerate(best) if stroke.fill < min_fill]
        if not weak:
            break
        for place, stroke in zip(weak, paint(weak, attempt), strict=True):
            kept = max(best[place], stroke, key=lambda stroke: stroke.fill)
            best[place] = kept._replace(attempts=attempt + 1)
    return best


def _attempt(
    engine: Painter,
    pieces: Sequence[Piece],
    method: Method,
    streams: Streams,
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
        called = [pieces[place] for place in places[start : start + size]]
        noise = [streams(piece, number) for piece in called]
        waiting.append(
            engine.paint(
                np.stack([network_image(piece.photo, engine.spec.model) for piece in called]),
                np.stack([piece.mask for piece in called]),
                labels=np.stack([piece.cells for piece in called]) if method.rim else None,
                prompt=method.prompt,
                noise=PhiloxNoise(*zip(*noise, strict=True)),
                sampler=method.sampler,
                recipe=method.recipe,
                steps=method.steps,
                progress=portion(progress, start / len(places), (start + len(called)) / len(places)),
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
    pieces: Sequence[Piece], model: ModelSpec, places: Sequence[int], painted: Sequence[Levels | None]
) -> list[Stroke]:
    """Measure what was painted."""
    return [_stroke(pieces[place], levels, model) for place, levels in zip(places, painted, strict=True)]


def _stroke(piece: Piece, levels: Levels | None, model: ModelSpec) -> Stroke:
    if levels is None:
        return Stroke(None, None)
    photo, region = piece.photo, piece.region
    figures = measure(photo, levels, region.label, model.latent_size, model.image_channels)
    figures = figures._replace(label_pixels=int(region.own.sum()))
    before = pixels(network_image(photo, model))
    return Stroke(levels, figures, round_trip(before, levels, piece.mask[0] > 0))


def pasted_into(
    photo: NDArray[np.uint8],
    pieces: Sequence[Piece],
    strokes: Sequence[Stroke],
    model: ModelSpec,
    method: Method,
) -> NDArray[np.uint8]:
    """A photograph uint8 ``[H, W, 3]`` with the strokes of its regions, all of them finite, in it."""
    levels = [stroke.levels for stroke in strokes if stroke.levels is not None]
    own, exact = [piece.region for piece in pieces], method.region is not None
    return pasted(photo, own, levels, exact=exact, rim=method.rim, channels=model.image_channels)


def combined(figures: Sequence[Figures]) -> Figures:
    """The figures of a pair from those of its regions: means over its labelled pixels, and the worst leak."""
    sizes = np.array([one.label_pixels for one in figures], dtype=np.float64)
    weights = sizes / sizes.sum() if sizes.any() else np.full(len(figures), 1 / len(figures))

    def mean(name: str) -> float:
        return float(weights @ [getattr(one, name) for one in figures])

    return Figures(
        fill=mean("fill"),
        leak=max(one.leak for one in figures),
        contrast=mean("contrast"),
        threshold=mean("threshold"),
        label_pixels=int(sizes.sum()),
    )
