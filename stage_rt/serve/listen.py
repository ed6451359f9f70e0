"""The server as a process: uvicorn, with an orderly end, and an end to its patience with slow requests."""

import asyncio
import logging
import os
import signal
import socket
import threading
from contextlib import suppress
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stage_rt.errors import DeviceLostError, printable
from stage_rt.serve.driver import ClosedError
from stage_rt.serve.http import application
from stage_rt.serve.metrics import Figures
from stage_rt.serve.server import Server

DRAIN = 60.0
"""Seconds that pairs in hand are given when the server is told to end."""
HEAD = 20.0
"""Seconds from a connection, or from the first byte of its next request, to the end of the request's head; and from
an answer that did not wait for its request's body to the end of that."""

UNREAD = 60
"""Seconds that a client may take nothing of what is sent to it, where the system can count them (Linux)."""


class Punctual(H11Protocol):
    """Closes a connection whose request's head is not whole in time, however often a byte of it comes.

    So it does where a request was answered before its body was whole, as one without a token is. uvicorn waits for
    ever: its own timer ends with the next byte, whatever that belongs to, and `stage_rt.serve.guard` sees a request
    when its head is whole, and until it is answered.
    """

    _late: asyncio.TimerHandle | None = None
    _awaited: type | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        super().on_response_complete()
        # Between two requests uvicorn's timer runs, until the first byte of the next one.
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._rest()

    def _watch(self) -> None:
        theirs = self.conn.their_state
        answered = theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE
        awaited = theirs if answered or theirs is h11.IDLE else None
        if awaited is self._awaited:
            return
        self._rest()
        self._awaited = awaited
        if awaited is not None:
            self._late = self.loop.call_later(HEAD, self.transport.close)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Draining(uvicorn.Server):
    """Ends when the server was drained; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server, self._told = server, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`."""
        if self._told:
            os._exit(128 + sig)
        self._told = True

        def drain() -> None:
            try:
                self._server.drain(DRAIN)
            finally:
                super(_Draining, self).handle_exit(signal.Signals(sig), frame)

        threading.Thread(target=drain, name="stage-rt-drain", daemon=True).start()


def drop_who_never_reads(sock: socket.socket) -> None:
    """Let the system end connections of a listening socket whose client's window stays shut for `UNREAD` seconds.

    A transport that is closed first sends what it holds, and such a client keeps it for ever (RFC 5482; tcp(7),
    TCP_USER_TIMEOUT, which counts probes of a shut window too). The window opens when the client has read a good part
    of what its own system holds for it.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Some containers' kernels know the name alone.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD)


def run(
    server: Server, sock: socket.socket, token: str | None, figures: Figures, log: logging.Logger
) -> None:
    """Serve until a signal, or until the device is lost; engines are warmed up meanwhile.

    Returns when everything was put aside.

    Raises:
        EngineError, DeviceError, BackendError: an engine cannot be used.
        DeviceLostError: the device answers this process no more; whatever keeps the server up starts another.
    """
    config = uvicorn.Config(
        application(server, token, figures, log),
        http=Punctual,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    running = _Draining(config, server)
    failures: list[BaseException] = []

    def end(error: BaseException, seconds: float) -> None:
        failures.append(error)
        try:
            server.drain(seconds)
        finally:
            running.should_exit = True

    def lost(error: DeviceLostError) -> None:
        threading.Thread(target=end, args=(error, DRAIN), name="stage-rt-lost", daemon=True).start()

    def start() -> None:
        try:
            server.start()
            if server.ready:
                log.info("ready")
        except ClosedError:
            pass
        except BaseException as error:
            log.error("the engines cannot be used: %s", printable(str(error)))
            end(error, 0)

    server.when_lost = lost
    drop_who_never_reads(sock)
    threading.Thread(target=start, name="stage-rt-start", daemon=True).start()
    running.run(sockets=[sock])
    if failures:
        raise failures[0]
