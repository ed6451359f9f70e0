"""How long a connection is borne with that does not say what it wants."""

import asyncio
import logging
import signal
import socket
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
import uvicorn

from stage_rt.errors import EngineError
from stage_rt.serve import listen

PATIENCE = 0.6
CHUNK = 2**16
LARGE = 1024 * CHUNK
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HALF = GET[:20]
REFUSED = b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"


async def app(scope, receive, send):
    """Answers when it has the body, and takes its time; at once what is refused; at length what is large."""
    if scope["path"] == "/large":
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]}
        )
        for left in range(LARGE // CHUNK)[::-1]:
            await send({"type": "http.response.body", "body": b"x" * CHUNK, "more_body": left > 0})
        return
    if scope["path"] != "/refused":
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(2 * PATIENCE)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def connect(monkeypatch):
    monkeypatch.setattr(listen, "HEAD", PATIENCE)
    config = uvicorn.Config(app, http=listen.Punctual, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(listen, "UNREAD", 1)
        listen.drop_who_never_reads(listening)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield lambda: closing(socket.create_connection(listening.getsockname(), timeout=30))
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def seconds_to_its_end(connection, dribble=b""):
    """Until the other side has closed, while a byte is sent every tenth of a second."""
    began = time.monotonic()
    connection.settimeout(0.1)
    while True:
        try:
            if not connection.recv(100):
                return time.monotonic() - began
        except TimeoutError:
            connection.sendall(dribble[:1])
            dribble = dribble[1:]
        except ConnectionResetError:
            return time.monotonic() - began


def answer(connection):
    connection.settimeout(30)
    received = b""
    while not received.endswith(b"ok"):
        received += connection.recv(1000)
    return received


@pytest.mark.parametrize(("sent", "dribble"), [(b"", b""), (HALF, b""), (HALF, b"x" * 1000)])
def test_a_head_that_does_not_come_closes_the_connection(connect, sent, dribble):
    with connect() as connection:
        connection.sendall(sent)
        assert PATIENCE - 0.2 < seconds_to_its_end(connection, dribble) < 20


def test_a_slow_body_and_a_slow_answer_are_waited_for(connect):
    with connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        for _ in range(9):
            time.sleep(PATIENCE / 6)
            connection.sendall(b"x")
        assert answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("dribble", [b"", b"x" * 1000])
def test_a_body_that_has_been_answered_already_is_not_waited_for(connect, dribble):
    with connect() as connection:
        connection.sendall(REFUSED)
        assert answer(connection).startswith(b"HTTP/1.1 200")
        assert PATIENCE - 0.2 < seconds_to_its_end(connection, dribble) < 20


def test_the_request_after_an_answer_that_came_early_has_its_own_time(connect):
    with connect() as connection:
        connection.sendall(REFUSED)
        assert answer(connection).startswith(b"HTTP/1.1 200")
        time.sleep(PATIENCE / 2)
        connection.sendall(b"x" * 1000)
        time.sleep(0.8 * PATIENCE)
        connection.sendall(GET)
        assert answer(connection).startswith(b"HTTP/1.1 200")


def test_the_next_request_of_a_connection_has_the_same_time(connect):
    with connect() as connection:
        for _ in range(2):
            connection.sendall(GET)
            assert answer(connection).startswith(b"HTTP/1.1 200")
            time.sleep(1.5 * PATIENCE)
        connection.sendall(HALF)
        assert PATIENCE - 0.2 < seconds_to_its_end(connection) < 20


def received(connection):
    """How many bytes come until the other side has closed."""
    count = 0
    while True:
        try:
            count += len(got := connection.recv(CHUNK))
        except ConnectionResetError:
            return count
        if not got:
            return count


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system does not count such seconds")
def test_who_takes_nothing_of_an_answer_is_let_go_and_who_takes_it_slowly_has_it(connect):
    with connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(4)
        assert received(connection) < LARGE
    with connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        for _ in range(8):
            connection.recv(CHUNK)
            time.sleep(PATIENCE / 2)
        assert received(connection) > LARGE - 16 * CHUNK


def test_a_server_that_cannot_be_drained_ends_all_the_same(monkeypatch):
    raised = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: raised.set())

    def drain(seconds):
        raise RuntimeError("the device failed")

    running = listen._Draining(uvicorn.Config(app), SimpleNamespace(drain=drain))
    running.handle_exit(signal.SIGTERM, None)
    assert raised.wait(10)
    assert running.should_exit


def test_engines_that_cannot_be_used_end_it_with_their_error(monkeypatch):
    drained = []

    def start():
        time.sleep(0.2)
        raise EngineError("the engine is broken")

    monkeypatch.setattr(listen, "application", lambda *_: app)
    server = SimpleNamespace(start=start, drain=drained.append)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(EngineError, match="the engine is broken"),
    ):
        listen.run(server, listening, None, None, logging.Logger("none"))
    assert drained == [0]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system does not count such seconds")
def test_a_server_drops_who_never_reads(monkeypatch):
    monkeypatch.setattr(listen._Draining, "run", lambda self, sockets: None)
    monkeypatch.setattr(listen, "application", lambda *_: app)
    server = SimpleNamespace(start=lambda: None, ready=False)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listen.run(server, listening, None, None, logging.Logger("none"))
        told = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert told == 1000 * listen.UNREAD
