"""One pair that somebody waits for, from the picture that was sent to the PNG: painted as a run paints it."""

import io
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.engine import Engine
from stage_rt.errors import FailedSamplesError, ImageError, InputError, MaskError, StageError
from stage_rt.images.compose import pixels
from stage_rt.images.inputs import fit_mask, header_of, image_of
from stage_rt.images.luminance import tinted
from stage_rt.images.masks import mask_of
from stage_rt.images.regions import Region
from stage_rt.method import RETRIES, Method
from stage_rt.noise import region_of
from stage_rt.progress import Progress
from stage_rt.run.job import Job
from stage_rt.run.sample import Sample
from stage_rt.run.workers import Batch, Result, finish, paint
from stage_rt.serve.executor import Wish
from stage_rt.strokes import divide

MOST_PIXELS = 16_000_000
"""Of a picture that is painted while somebody waits, of all that are decoded at once and of all that are finished."""
IMAGE, MASK = Path("image"), Path("mask")
"""What errors call what was sent."""
PREVIEW_SIDE = 512

State = Literal["waiting", "painting", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A pair as it is asked for, checked and decoded.

    ``photo`` uint8 ``[H, W, 3]``, ``label`` bool ``[H, W]``; ``grey`` is whether the picture has one channel. The
    rest is as in `stage_rt.run.job.Job`; None is the model's own. ``source`` is the photograph's name, if it has one.
    """

    engine: str
    prompt: str
    photo: NDArray[np.uint8]
    label: NDArray[np.bool_]
    grey: bool
    seed: int
    method: Method
    source: str | None = None


@dataclass
class Pair:
    """What became of a request; ``version`` grows with every change, for those who watch.

    ``preview`` is a JPEG of what is foreseen, ``result`` is there once it is done, ``error`` where it failed.
    """

    id: str
    request: Request
    wish: Wish = field(default_factory=Wish)
    state: State = "waiting"
    share: float = 0.0
    preview: bytes | None = None
    result: Result | None = None
    error: StageError | None = None
    verdict: Literal["accepted", "rejected"] | None = None
    version: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def size(self) -> int:
        """Bytes of what it came to."""
        files = (self.result.image, self.result.label, self.result.thumbnail) if self.result else ()
        return sum(len(file) for file in (self.preview, *files) if file)

    def change(self, **fields: object) -> None:
        """Set some fields in the order in which they are given, then let it be seen: a state comes last."""
        for name, value in fields.items():
            setattr(self, name, value)
        self.version += 1
        if self.state in ("done", "failed", "cancelled"):
            self.ended.set()


class Room:
    """Where pictures are, while something takes memory by their pixels: `MOST_PIXELS` at once, the others wait.

    Decoding takes some 22 bytes a pixel, finishing a pair 70. A picture that is larger goes alone.
    """

    def __init__(self) -> None:
        self._door, self._changed, self._left = threading.Lock(), threading.Condition(), MOST_PIXELS

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """A block in which a picture of so many pixels is decoded, or finished."""
        pixels = min(pixels, MOST_PIXELS)
        # One waits here and the others behind it, so that small pictures do not pass a large one for ever.
        with self._door, self._changed:
            self._changed.wait_for(lambda: pixels <= self._left)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify()


def opened_image(content: bytes) -> tuple[NDArray[np.uint8], bool]:
    """A picture that was sent, uint8 ``[H, W, 3]``, and whether it is grey.

    Raises:
        ImageError: as `stage_rt.images.inputs.read_image`, or it has more than `MOST_PIXELS`.
    """
    header = header_of(content, IMAGE)
    check_pixels(header.width, header.height, ImageError)
    return image_of(content, IMAGE), header.grey


def opened_label(content: bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask that was sent, at the (width, height) of its picture.

    Raises:
        MaskError: as `opened_mask`, or it does not fit the picture.
    """
    return fit_mask(opened_mask(content), size, MASK)


def opened_mask(content: bytes) -> NDArray[np.bool_]:
    """A mask that was sent, at its own size.

    Raises:
        MaskError: as `stage_rt.images.masks.read_mask`, or it has more than `MOST_PIXELS`.
    """
    pixels_of(content, MASK, MaskError)
    return mask_of(content, MASK).label


def pixels_of(content: bytes, name: Path, error: type[InputError]) -> int:
    """How many pixels a picture that was sent will have once it is decoded.

    Raises:
        InputError (as ``error``): as `stage_rt.images.inputs.read_header`, or more than `MOST_PIXELS`.
    """
    header = header_of(content, name, error)
    check_pixels(header.width, header.height, error)
    return header.width * header.height


def painted(engine: Engine, request: Request, *, size: int, progress: Progress, room: Room) -> Result:
    """Paint a pair as `stage_rt.run.workers` paints sample 0 of a run of that seed, ``size`` regions at a time.

    It is finished in ``room``.

    Raises:
        FailedSamplesError: it came out non-finite.
        CancelledError, LateError, ClosedError, BackendError: it could not be painted.
    """
    model = engine.spec.model
    height, width = request.label.shape
    sample = Sample(0, IMAGE, MASK, (width, height), request.grey)
    pieces = divide([request.photo], [request.label], model, request.method)
    batch = Batch([sample], [request.photo], [request.label], pieces)
    strokes = paint(engine, batch, request.method, seed=request.seed, size=size, progress=progress)
    with room.taken(height * width):
        (result,) = finish(batch, strokes(), model, request.method, composited=True)
    if result.image is None:
        raise FailedSamplesError("the pair came out non-finite", "try another seed or an fp32 engine")
    return result


class Preview:
    """Pastes decoded estimates into the picture and shows them; ``show`` is given a JPEG."""

    def __init__(self, request: Request, regions: list[Region], show: Callable[[bytes], None]) -> None:
        self._label, self._regions, self._show = request.label, regions, show
        self._factor = max(math.ceil(max(request.label.shape) / PREVIEW_SIDE), 1)
        self._photo, self._picture = request.photo, request.photo.copy()

    def __call__(self, stream: int, image: NDArray[np.float32]) -> None:
        """An estimate ``[c, S, S]`` of the region whose number is in that of its stream."""
        region = self._regions[region_of(stream)]
        rows, columns = region.window
        size = (columns.stop - columns.start, rows.stop - rows.start)
        seen = np.asarray(Image.fromarray(pixels(image)).resize(size, Image.Resampling.BILINEAR))
        if len(image) == 1:
            seen = tinted(self._photo[region.window], seen)
        window = self._picture[region.window]
        window[region.own] = seen[region.own]
        buffer = io.BytesIO()
        Image.fromarray(self._picture).reduce(self._factor).save(buffer, "JPEG", quality=85)
        self._show(buffer.getvalue())


def check_pixels(width: int, height: int, error: type[InputError]) -> None:
    """Refuse a picture of more than `MOST_PIXELS`.

    Raises:
        InputError (as ``error``): it is larger.
    """
    if width * height > MOST_PIXELS:
        raise error(
            f"the picture has {width}x{height} pixels and at most {MOST_PIXELS // 10**6} million are painted "
            "while somebody waits",
            "cut out the part, or order a run",
        )


def asked(
    prompt: str, seed: int, steps: int | None, min_fill: float | None = None, retries: int = RETRIES
) -> Job:
    """The job of one pair, of which only the method counts."""
    return Job((), (), prompt, 1, seed, True, 1, steps=steps, min_fill=min_fill, retries=retries)
