"""What goes over HTTP: bodies that are asked for and given, and what they become."""

import base64
import binascii
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from stage_rt.errors import ImageError, InputError, MaskError, printable
from stage_rt.images.inputs import fit_mask, read_header, read_image
from stage_rt.images.masks import AS_IT_IS, read_mask
from stage_rt.images.objects import find_object
from stage_rt.method import RETRIES
from stage_rt.run.augment import mirrored_across
from stage_rt.run.job import resolve
from stage_rt.run.supply import Dice, placed
from stage_rt.run.writer import defect_type
from stage_rt.samplers import SAMPLERS
from stage_rt.serve.jobs import Night, Order
from stage_rt.serve.pairs import (
    IMAGE,
    MASK,
    Pair,
    Request,
    asked,
    opened_image,
    opened_label,
    opened_mask,
    pixels_of,
)
from stage_rt.serve.server import Server
from stage_rt.serve.shelf import Book

MOST_MASKS = 64
MOST_PAIRS = 100_000
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Steps = Annotated[
    int | None, Field(ge=1, le=1000, description="Network calls a pair takes; the model's own if null.")
]
File = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
Sentence = Annotated[str, BeforeValidator(printable)]
"""It may quote a path, which need not be text on the disk."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PairOrder(_Body):
    """A pair to be painted now: a picture, or a photograph of the gallery by its name, and a mask."""

    engine: str | None = Field(None, description="Its name; may be left out where one engine is served.")
    prompt: str
    image: File | None = Field(None, description="PNG, JPEG, BMP or TIFF.")
    photograph: str | None = Field(None, description="A name from `/v1/photographs`, in place of `image`.")
    mask: File = Field(description="A picture of the same size, white where the defect shall be.")
    seed: Seed = 0
    steps: Steps = None
    min_fill: float | None = Field(
        None, ge=0, le=1, description="A region painted less is painted again; the prompt's own if null."
    )
    retries: int = Field(RETRIES, ge=0, le=15)
    wait: bool = Field(True, description="Answer when it is painted; otherwise at once, with its id.")


class JobOrder(_Body):
    """A run of pairs of one type, painted when nobody waits for anything."""

    engine: str | None = None
    prompt: str
    masks: list[File] = Field(min_length=1, max_length=MOST_MASKS)
    photographs: list[str] | None = Field(
        None, description="Names of the gallery; all if null.", max_length=100_000
    )
    count: int = Field(ge=1, le=MOST_PAIRS)
    seed: Seed = 0
    steps: Steps = None
    vary: bool = Field(
        True, description="Move, turn, scale and join the masks instead of taking them as they are."
    )


class MaskOrder(_Body):
    """A mask like the real ones, for a photograph of the gallery."""

    photograph: str
    type: str = Field(description="Of defects, one of those under `masks` of `/v1/engines`.")
    seed: Seed = 0


class Verdict(_Body):
    """What a person says of a pair."""

    verdict: Literal["accepted", "rejected"]


class Token(_Body):
    """The server's token."""

    token: str


class Fault(BaseModel):
    """What is wrong, and what to do about it."""

    problem: Sentence
    remedy: Sentence | None = None


class Refusal(BaseModel):
    """Every answer that is none."""

    error: Fault


class PairState(BaseModel):
    """A pair; figures are there once it is done. ``image`` and ``mask`` are paths of this server.

    It is ``weak`` if a square of it was painted less than ``min_fill``.
    """

    id: str
    state: Literal["waiting", "painting", "done", "failed", "cancelled"]
    share: float
    engine: str
    prompt: str
    seed: int
    steps: int
    min_fill: float
    photograph: str | None = None
    fill: float | None = None
    leak: float | None = None
    contrast: float | None = None
    attempts: int | None = None
    weak: bool | None = None
    image: str | None = None
    mask: str | None = None
    verdict: Literal["accepted", "rejected"] | None = None
    error: Fault | None = None

    @classmethod
    def of(cls, pair: Pair) -> "PairState":
        """How a pair stands."""
        # It is set last, so what it tells of is there for whoever reads it first.
        state = pair.state
        request, result, error = pair.request, pair.result, pair.error
        figures: dict[str, Any] = {}
        if result and result.figures:
            figures = {name: round(getattr(result.figures, name), 4) for name in ("fill", "leak", "contrast")}
            figures |= {"attempts": result.attempts, "weak": result.weakest < request.method.min_fill}
            figures |= {name: f"/v1/pairs/{pair.id}/{name}.png" for name in ("image", "mask")}
        return cls(
            id=pair.id,
            state=state,
            share=pair.share,
            engine=request.engine,
            prompt=request.prompt,
            seed=request.seed,
            steps=request.method.steps,
            min_fill=request.method.min_fill,
            photograph=request.source,
            verdict=pair.verdict,
            error=Fault(problem=error.problem, remedy=error.remedy) if error else None,
            **figures,
        )


class JobState(BaseModel):
    """A job; ``done`` are the pairs that are there, ``report`` is the page of its run once that is there."""

    id: str
    state: Literal["waiting", "painting", "done", "failed", "cancelled"]
    share: float
    engine: str
    prompt: str
    count: int
    seed: int
    steps: int | None
    done: int
    failed: int
    left_out: int
    weak: int
    report: str | None
    error: str | None

    @classmethod
    def of(cls, night: Night) -> "JobState":
        """How a job stands."""
        order, counts = night.order, night.counts
        page = f"/v1/jobs/{order.id}/files/report/index.html"
        return cls(
            **order.model_dump(
                include={"id", "state", "engine", "prompt", "count", "seed", "steps", "error"}
            ),
            share=night.share,
            done=counts.pairs,
            failed=counts.failed,
            left_out=counts.left_out,
            weak=counts.weak,
            report=page if (night.run / "report" / "index.html").is_file() else None,
        )


class PromptState(BaseModel):
    """What an engine can paint."""

    name: str
    type: str
    min_fill: float | None


class EngineState(BaseModel):
    """An engine; ``masks`` are the types that masks like the real ones can be had of."""

    name: str
    prompts: list[PromptState]
    image_size: int
    steps: tuple[int, int]
    own_steps: int
    slots: int
    loaded: bool
    masks: list[str]

    @classmethod
    def of(cls, book: Book, server: Server) -> "EngineState":
        """How an engine stands."""
        model, stage = book.spec.model, SAMPLERS["stage"]
        prompts = [
            PromptState(
                name=name,
                type=defect_type(name),
                min_fill=model.defaults[name].min_fill if name in model.defaults else None,
            )
            for name in sorted(model.prompts)
        ]
        return cls(
            name=book.name,
            prompts=prompts,
            image_size=model.image_size,
            steps=stage.range(model.recipe),
            own_steps=stage.steps(model.recipe),
            slots=book.slots,
            loaded=book.name in server.shelf.loaded,
            masks=sorted({one.type for one in prompts} & set(server.masks)),
        )


class PhotographState(BaseModel):
    """A photograph of the gallery."""

    name: str
    width: int
    height: int


def photographs(server: Server) -> list[PhotographState]:
    """All photographs that can be used, with their sizes."""
    headers = server.gallery.headers()
    return [PhotographState(name=name, width=one.width, height=one.height) for name, one in headers.items()]


def request_of(order: PairOrder, server: Server) -> Request:
    """A pair's order, checked and decoded.

    Raises:
        InputError, PromptError, GoneError, ImageError, MaskError: it cannot be painted.
    """
    book = server.shelf.book(_engine(order.engine, server), order.prompt)
    job = asked(order.prompt, order.seed, order.steps, order.min_fill, order.retries)
    method = resolve(job, book.spec.model)
    if (order.image is None) == (order.photograph is None):
        raise InputError("give either `image` or `photograph`")
    content = (
        _decoded("image", order.image)
        if order.image is not None
        else server.gallery.read(order.photograph or "", Path.read_bytes)
    )
    mask = _decoded("mask", order.mask)
    # One after the other, but let in together: a picture would be held while its mask waits.
    pixels = max(pixels_of(content, IMAGE, ImageError), pixels_of(mask, MASK, MaskError))
    with server.decoding.taken(pixels):
        photo, grey = opened_image(content)
        label = opened_label(mask, (photo.shape[1], photo.shape[0]))
    return Request(book.name, order.prompt, photo, label, grey, order.seed, method, order.photograph)


def order_of(order: JobOrder, server: Server) -> tuple[Order, list[bytes]]:
    """A job's order, whose method and masks were checked, and the masks.

    Raises:
        InputError, PromptError, GoneError, ImageError, MaskError: it cannot be painted.
    """
    book = server.shelf.book(_engine(order.engine, server), order.prompt)
    resolve(asked(order.prompt, order.seed, order.steps), book.spec.model)
    gallery, names = server.gallery, order.photographs
    headers = (
        gallery.headers() if names is None else {name: gallery.read(name, read_header) for name in names}
    )
    if not headers:
        raise InputError("there are no photographs to paint into", "start the server with `--normals`")
    sizes = {(one.width, one.height) for one in headers.values()}
    masks = [_decoded("masks", mask) for mask in order.masks]
    for mask in masks:
        with server.decoding.taken(pixels_of(mask, MASK, MaskError)):
            _check_fits(mask, sizes)
    fields = order.model_dump(include={"prompt", "count", "seed", "steps", "vary"})
    return Order(id="", engine=book.name, photographs=names or list(headers), **fields), masks


def _check_fits(mask: bytes, sizes: Set[tuple[int, int]]) -> None:
    """See that a mask fits photographs of some (width, height): a run pairs it with those and no others."""
    label = opened_mask(mask)
    for size in sizes:
        with suppress(MaskError):
            fit_mask(label, size, MASK)
            return
    # Says why not.
    fit_mask(label, min(sizes), MASK)


def like_the_real(order: MaskOrder, server: Server) -> NDArray[np.bool_]:
    """A label bool ``[H, W]`` made from a real mask for a photograph, as `stage_rt.run.supply` makes those of a run.

    Raises:
        InputError, GoneError, ImageError, MaskError: there is no such photograph or no mask of that type.
    """
    paths = server.masks.get(order.type)
    if paths is None:
        raise InputError(f"there are no masks of type {order.type!r}", "start the server with `--masks`")
    dice = Dice(order.seed, 0)
    path = paths[min(int(dice() * len(paths)), len(paths) - 1)]
    with opened(order.photograph, server) as photo:
        label = fit_mask(read_mask(path).label, (photo.shape[1], photo.shape[0]), path)
        return placed(label, find_object(photo), dice, mirrored_across(paths, AS_IT_IS, server.checks))


@contextmanager
def opened(name: str, server: Server) -> Iterator[NDArray[np.uint8]]:
    """A photograph of the gallery, uint8 ``[H, W, 3]``, in a block in which it counts as one that is decoded.

    Raises:
        InputError, GoneError, ImageError: as `stage_rt.serve.gallery.Gallery.read`.
    """
    header = server.gallery.read(name, read_header)
    with server.decoding.taken(header.width * header.height):
        yield server.gallery.read(name, read_image)


def _engine(name: str | None, server: Server) -> str:
    if name is not None:
        return name
    if len(server.shelf.books) > 1:
        raise InputError("several engines are served", f"name one of {', '.join(server.shelf.books)}")
    return next(iter(server.shelf.books))


def _decoded(field: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"`{field}` is not base64") from None
