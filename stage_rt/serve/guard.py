"""What every request passes before it is looked at: an id, who may ask, and how large and how slow it may be."""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from stage_rt.errors import printable, unforeseen

MOST_BYTES = 64 * 2**20
"""Of a body."""
ALL_BYTES = 256 * 2**20
"""Of the bodies of all requests that are not answered yet; a pair that is waited for holds its own."""
FEW_BYTES = 4 * 2**10
"""Of a body of somebody who needs no token."""
SLOWEST, LONGEST = 20.0, 600.0
"""Seconds between two parts of a body, and for all of it."""
COOKIE = "stage-rt"
OPEN = ("/healthz", "/readyz", "/", "/favicon.ico", "/v1/session")
"""What is answered without a token, beside the page's own files."""
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_LOCAL = r"localhost|127(?:\.\d{1,3}){3}"
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"SAMEORIGIN",
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class _Refused(BaseException):
    """An answer; no `Exception`, so that no handler inside takes it for a body that cannot be read."""

    def __init__(self, status: int, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem)
        self.status, self.problem, self.remedy = status, problem, remedy


class Guard:
    """An ASGI application in front of another.

    Args:
        app: the other.
        token: what a client has to show, as ``Authorization: Bearer`` or as the cookie of `cookie`; None on loopback.
        log: gets a line a request, with its id.
        refused: is told the status of what is refused here.
    """

    def __init__(
        self, app: App, token: str | None, log: logging.Logger, refused: Callable[[int], None]
    ) -> None:
        self._app, self._token, self._log, self._refused = app, token, log, refused
        self._held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in reversed(scope["headers"])}
        name = headers.get(b"x-request-id", b"").decode("latin-1")
        name = name if _ID.fullmatch(name) else secrets.token_hex(8)
        began, status = time.monotonic(), 0
        body = _Body(FEW_BYTES if _open(scope["path"]) else MOST_BYTES, receive, self._hold)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {**_HEADERS, b"x-request-id": name.encode()}
                message["headers"] = [*message.get("headers", []), *own.items()]
            await send(message)

        try:
            self._check(scope, headers)
            body.announced(headers.get(b"content-length", b"0"))
            await self._app(scope, body.receive, sending)
        except _Refused as refusal:
            self._refused(refusal.status)
            if not status:
                await _answer(refusal, sending)
        except Exception as error:
            # Starlette raises again what `stage_rt.serve.http` has answered, and uvicorn would print its traceback.
            self._log.error("%s failed: %s", name, printable(unforeseen(error)))
        finally:
            self._held -= body.size
            path = printable(scope["path"])[:200]
            seconds = time.monotonic() - began
            self._log.info("%s %s %s %d %.3f s", name, scope["method"], path, status, seconds)

    def _check(self, scope: Message, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._token is None and not re.fullmatch(rf"(?:{_LOCAL}|\[::1\])(?::\d+)?", host):
            # A page of another site whose name was made to lead here would have that name.
            raise _Refused(421, "this server is asked under another name", "ask for `localhost`")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
            raise _Refused(403, "a page of another site may not ask this server")
        if self._token is None or _open(scope["path"]):
            return
        shown = headers.get(b"authorization", b"").decode("latin-1").partition("Bearer ")[2]
        cookies = headers.get(b"cookie", b"").decode("latin-1")
        kept = re.search(rf"(?:^|;\s*){COOKIE}=([0-9a-f]+)", cookies)
        if not (same(shown, self._token) or (kept and same(kept[1], cookie(self._token)))):
            raise _Refused(401, "this server asks for its token", "send `Authorization: Bearer TOKEN`")

    def _hold(self, size: int) -> None:
        """So many bytes more are in memory."""
        if self._held + size > ALL_BYTES:
            raise _Refused(503, "the server holds as much of others' requests as it may", "try again later")
        self._held += size


class _Body:
    """The body of a request: ``most`` bytes of it, which have to come in time.

    ``hold`` is told of every byte that came, `size` of them in all, and refuses what is too much for the server.
    """

    def __init__(self, most: int, receive: Receive, hold: Callable[[int], None]) -> None:
        self._receive, self._hold = receive, hold
        self._most, self._complete, self._end = most, False, time.monotonic() + LONGEST
        self.size = 0

    def announced(self, length: bytes) -> None:
        """Refuse what says of itself that it is too large."""
        if not length.isdigit() or int(length) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """See ASGI."""
        if self._complete:
            return await self._receive()
        left = self._end - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), min(SLOWEST, left))
        except TimeoutError:
            late = f"nothing of the body came for {SLOWEST:.0f} s"
            if left < SLOWEST:
                late = f"the body did not come within {LONGEST:.0f} s"
            raise _Refused(408, late) from None
        came = len(message.get("body", b""))
        self._hold(came)
        self.size += came
        self._complete = not message.get("more_body", False)
        if self.size > self._most:
            raise self._too_large()
        return message

    def _too_large(self) -> _Refused:
        few = self._most < 2**20
        size = f"{self._most // 2**10} KiB" if few else f"{self._most // 2**20} MiB"
        return _Refused(413, f"the body is larger than {size}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can ask under an address."""
    return bool(re.fullmatch(rf"{_LOCAL}|::1", host))


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell."""
    # JSON can hold halves of characters, which are no Unicode.
    return hmac.compare_digest(*(text.encode(errors="surrogatepass") for text in (one, other)))


def cookie(token: str) -> str:
    """What a browser keeps of a token."""
    return hashlib.sha256(b"stage-rt " + token.encode()).hexdigest()


def fault(problem: str, remedy: str | None = None) -> dict[str, Any]:
    """The body of every answer that is none."""
    # Either may quote a path, which need not be text on the disk.
    return {"error": {"problem": printable(problem), "remedy": remedy and printable(remedy)}}


def _open(path: str) -> bool:
    return path in OPEN or path.startswith("/page/")


async def _answer(refusal: _Refused, send: Send) -> None:
    body = json.dumps(fault(refusal.problem, refusal.remedy)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status in (408, 413, 503):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
