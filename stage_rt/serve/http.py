"""The server over HTTP: the API under ``/v1``, the page, and what a machine watches it by."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from stage_rt import __version__
from stage_rt.errors import DeviceLostError, InputError, StageError, printable
from stage_rt.run.thumbnails import SIDE
from stage_rt.run.writer import png, png_of
from stage_rt.serve import api, news
from stage_rt.serve.driver import ClosedError, LateError
from stage_rt.serve.gallery import GoneError
from stage_rt.serve.guard import COOKIE, Guard, cookie, fault, same
from stage_rt.serve.jobs import Night
from stage_rt.serve.metrics import Figures
from stage_rt.serve.pairs import Pair
from stage_rt.serve.server import Server
from stage_rt.serve.shelf import BusyError

PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
}
_DESCRIBED = "see `/openapi.json`, which describes every request"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
Name = Annotated[str, InPath(max_length=1024)]
"""Of a pair, a job or a photograph, each byte of which may be told by four characters."""


class NotFoundError(InputError):
    """There is no such thing, or not any more."""


def application(server: Server, token: str | None, figures: Figures, log: logging.Logger) -> Guard:
    """The ASGI application of a server."""
    app = FastAPI(
        title="stage-rt",
        version=__version__,
        summary="Paints realistic defects into photographs, inside a mask.",
        description="Beyond the mask, or beyond a narrow feather around it where a model paints photographs whole or "
        "lets defects fade out, pictures keep the photograph's own pixels.",
        docs_url=None,
        redoc_url=None,
        responses={404: {"model": api.Refusal}, 422: {"model": api.Refusal}},
    )
    _faults(app, figures, log)
    _watched(app, server, figures)
    _given(app, server)
    _pairs(app, server)
    _jobs(app, server)
    _page(app, token)
    return Guard(app, token, log, figures.refused)


def _faults(app: FastAPI, figures: Figures, log: logging.Logger) -> None:
    def told(status: int, problem: str, remedy: str | None = None, **headers: str) -> JSONResponse:
        figures.refused(status)
        return JSONResponse(fault(problem, remedy), status, headers)

    @app.exception_handler(StageError)
    async def _stage(request: Request, error: StageError) -> JSONResponse:
        if isinstance(error, BusyError):
            answer = told(429, error.problem, error.remedy)
            answer.headers["retry-after"] = str(error.seconds)
            return answer
        kinds = (
            ((NotFoundError, GoneError), 404),
            (InputError, 422),
            (LateError, 504),
            ((ClosedError, DeviceLostError), 503),
        )
        status = next((status for some, status in kinds if isinstance(error, some)), 500)
        return told(status, error.problem, error.remedy)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = printable(".".join(str(part) for part in first["loc"]))[:100]
        if first["type"] == "missing":
            return told(422, f"`{where}` is missing", "add it")
        return told(422, f"`{where}` is not valid ({printable(first['msg'])[:200]})", _DESCRIBED)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code in (404, 405):
            asked = printable(f"{request.method} {request.url.path}")[:200]
            return told(error.status_code, f"there is no `{asked}`", _DESCRIBED, **headers)
        return told(error.status_code, str(error.detail), **headers)

    @app.exception_handler(OSError)
    async def _disk(request: Request, error: OSError) -> JSONResponse:
        log.error("the disk failed: %s", error)
        return told(507, f"the server's disk failed ({error.strerror})", "see its log")

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
        # `stage_rt.serve.guard` logs it.
        return told(500, "the server failed", "see its log")


def _watched(app: FastAPI, server: Server, figures: Figures) -> None:
    figures.look(lambda: server.waiting, server.driver.depth)

    @app.get("/healthz", summary="Whether the process lives.")
    async def healthz() -> dict[str, str]:
        return {"state": "alive"}

    @app.get("/readyz", summary="Whether engines are warm and orders are accepted.")
    async def readyz() -> Response:
        if server.lost is not None:
            return JSONResponse({"state": "failed"} | fault(server.lost.problem, server.lost.remedy), 503)
        ready = server.ready and server.driver.alive
        state = "ready" if ready else "draining" if server.draining else "warming up"
        return JSONResponse({"state": state}, 200 if ready else 503)

    @app.get("/metrics", summary="Figures for Prometheus.")
    async def metrics() -> Response:
        return Response(figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _given(app: FastAPI, server: Server) -> None:
    @app.get("/v1/engines", summary="What can be painted.")
    async def engines() -> list[api.EngineState]:
        return [api.EngineState.of(book, server) for book in server.shelf.books.values()]

    @app.get("/v1/photographs", summary="The gallery of good photographs.")
    def photographs() -> list[api.PhotographState]:
        return api.photographs(server)

    @app.get("/v1/photographs/{name}", summary="A photograph as PNG.", response_class=_Png)
    def photograph(name: Name) -> Response:
        with api.opened(_known(name, server), server) as picture:
            return _Png(png(Image.fromarray(picture)), headers=_kept())

    @app.get("/v1/photographs/{name}/thumbnail", summary="A small one.", response_class=_Png)
    def thumbnail(name: Name) -> Response:
        with api.opened(_known(name, server), server) as photo:
            picture = Image.fromarray(photo)
            picture.thumbnail((2 * SIDE, 2 * SIDE))
            return _Png(png(picture), headers=_kept())

    @app.post("/v1/masks", summary="A mask like the real ones, as PNG.", response_class=_Png)
    def mask(order: api.MaskOrder) -> Response:
        return _Png(png_of(api.like_the_real(order, server)))


def _pairs(app: FastAPI, server: Server) -> None:
    def known(name: str) -> Pair:
        pair = server.pair(name)
        if pair is None:
            raise NotFoundError(f"there is no pair {name!r}", "it may be over for long: order it again")
        return pair

    @app.post(
        "/v1/pairs",
        summary="Paint a pair.",
        response_model=api.PairState,
        responses={202: {"model": api.PairState}, 429: {"model": api.Refusal}, 503: {"model": api.Refusal}},
    )
    async def paint(
        order: api.PairOrder, request: Request, accept: Annotated[str, Header(max_length=1000)] = ""
    ) -> Response:
        # Ordered on a thread too: who keeps a pair writes it with the server's lock in hand.
        pair = await run_in_threadpool(lambda: server.order(api.request_of(order, server)))
        if not order.wait:
            return _state(pair, 202)
        await _end(pair, request, server)
        return _answer(pair, accept)

    @app.get("/v1/pairs/{name}", summary="How a pair stands.")
    async def pair(name: Name) -> api.PairState:
        return api.PairState.of(known(name))

    @app.get("/v1/pairs/{name}/image.png", summary="The picture.", response_class=_Png)
    async def image(name: Name) -> Response:
        return _Png(_done(known(name)).image, headers=_kept())

    @app.get("/v1/pairs/{name}/mask.png", summary="The label.", response_class=_Png)
    async def label(name: Name) -> Response:
        return _Png(_done(known(name)).label, headers=_kept())

    @app.get("/v1/pairs/{name}/events", summary="How it goes, as server-sent events.", response_class=_Events)
    async def events(name: Name) -> Response:
        return _Events(news.of_pair(known(name)))

    @app.post("/v1/pairs/{name}/verdict", summary="Keep it or not.")
    def verdict(name: Name, said: api.Verdict) -> api.PairState:
        found = known(name)
        server.judge(found, accepted=said.verdict == "accepted")
        return api.PairState.of(found)

    @app.delete("/v1/pairs/{name}", summary="Stop painting it.", status_code=202)
    def cancel(name: Name) -> api.PairState:
        found = known(name)
        server.cancel(found)
        return api.PairState.of(found)


def _jobs(app: FastAPI, server: Server) -> None:
    def known(name: str) -> Night:
        night = server.jobs.jobs.get(name)
        if night is None:
            raise NotFoundError(f"there is no job {name!r}")
        return night

    @app.post("/v1/jobs", summary="Order a run.", status_code=202, responses={503: {"model": api.Refusal}})
    def order(order: api.JobOrder) -> api.JobState:
        server.check_open()
        return api.JobState.of(server.jobs.add(*api.order_of(order, server)))

    @app.get("/v1/jobs", summary="All jobs, the latest first.")
    def jobs() -> list[api.JobState]:
        return [api.JobState.of(night) for _, night in sorted(server.jobs.jobs.items(), reverse=True)]

    @app.get("/v1/jobs/{name}", summary="How a job stands.")
    def job(name: Name) -> api.JobState:
        return api.JobState.of(known(name))

    @app.get("/v1/jobs/{name}/events", summary="How it goes, as server-sent events.", response_class=_Events)
    async def events(name: Name) -> Response:
        return _Events(news.of_job(known(name), server))

    @app.delete("/v1/jobs/{name}", summary="Paint no more of it.", status_code=202)
    def cancel(name: Name) -> api.JobState:
        known(name)
        server.jobs.cancel(name)
        return api.JobState.of(known(name))

    @app.get("/v1/jobs/{name}/files/{path:path}", summary="A file of its run, as its report's page.")
    def files(name: Name, path: Annotated[str, InPath(max_length=1000)]) -> Response:
        folder, content = known(name).run, None
        # A report is replaced as a whole, while somebody looks at it too.
        with suppress(FileNotFoundError):
            found = _listed(folder, path)
            content = found.read_bytes() if found and found.suffix in _TYPES else None
        if content is None:
            raise NotFoundError("there is no such file in the run")
        return Response(content, media_type=_TYPES[Path(path).suffix])


def _page(app: FastAPI, token: str | None) -> None:
    files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in _TYPES}
    policy = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-cache"}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(files["index.html"], media_type=_TYPES[".html"], headers=policy)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        # Browsers ask for it on pages that name none, as the report's.
        return Response(status_code=204)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in files:
            raise NotFoundError("there is no such file")
        return Response(files[name], media_type=_TYPES[Path(name).suffix], headers=policy)

    @app.post("/v1/session", summary="Show the token once; a browser keeps a cookie.", status_code=204)
    async def session(shown: api.Token) -> Response:
        if token is not None and not same(shown.token, token):
            raise HTTPException(401, "this is not the server's token")
        answer = Response(status_code=204)
        if token is not None:
            answer.set_cookie(COOKIE, cookie(token), httponly=True, samesite="strict")
        return answer


class _Png(Response):
    media_type = "image/png"


class _Events(StreamingResponse):
    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], status_code: int = 200) -> None:
        super().__init__(content, status_code, {"cache-control": "no-store", "x-accel-buffering": "no"})


async def _end(pair: Pair, request: Request, server: Server) -> None:
    """Wait until a pair is over, which is cancelled if nobody waits for the answer."""
    while not pair.ended.is_set():
        if await request.is_disconnected():
            await run_in_threadpool(server.cancel, pair)
        await asyncio.sleep(news.LOOK)


def _answer(pair: Pair, accept: str) -> Response:
    """A pair that is over, as PNG if that is accepted."""
    if pair.error is not None:
        # What is raised gets a traceback, whose frames hold what was sent; the pair's own stays without.
        raise copy(pair.error)
    if pair.result is None or pair.result.image is None or "image/png" not in accept:
        return _state(pair, 200)
    state = api.PairState.of(pair).model_dump(include={"id", "fill", "leak", "attempts"})
    return _Png(pair.result.image, headers={f"stage-{name}": str(value) for name, value in state.items()})


def _state(pair: Pair, status: int) -> JSONResponse:
    headers = {"location": f"/v1/pairs/{pair.id}"}
    return JSONResponse(api.PairState.of(pair).model_dump(), status, headers)


def _done(pair: Pair) -> Any:
    if pair.result is None:
        raise NotFoundError("the pair is not painted yet", "wait for it")
    return pair.result


def _known(name: str, server: Server) -> str:
    try:
        server.gallery.path(name)
    except InputError as error:
        raise NotFoundError(error.problem) from None
    return name


def _kept() -> dict[str, str]:
    return {"cache-control": "private, max-age=3600"}


def _listed(folder: Path, path: str) -> Path | None:
    """The file of a path, found step by step among what a folder lists: no name of a client's becomes a path."""
    for name in path.split("/"):
        if not folder.is_dir():
            return None
        with os.scandir(folder) as entries:
            found = next((one for one in entries if one.name == name and not one.is_symlink()), None)
        if found is None or name.startswith("."):
            return None
        folder = Path(found.path)
    return folder if folder.is_file() else None
