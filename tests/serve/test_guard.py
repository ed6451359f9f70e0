"""What is refused before anybody looks at it."""

import asyncio
import logging
import time

import pytest

from stage_rt.serve import guard
from stage_rt.serve.guard import Guard, is_loopback, same

TOKEN = "a secret of the line"


async def app(scope, receive, send):
    """Answers when it has the body."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def guarded(inner=app, token=TOKEN):
    return Guard(inner, token, logging.Logger("none"), lambda status: None)


async def asked(guard, path, parts, pause=0.0, **headers):
    """What is answered to a POST of so many bytes a part."""
    sent, left = [], list(parts)

    async def receive():
        await asyncio.sleep(pause)
        body = b"x" * left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    shown = {"host": "localhost", "authorization": f"Bearer {TOKEN}"} | headers
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in shown.items()],
    }
    await guard(scope, receive, send)
    return sent


def status(path, parts, pause=0.0, token=TOKEN, **headers):
    """Of the answer to a POST of so many bytes a part."""
    return asyncio.run(asked(guarded(token=token), path, parts, pause, **headers))[0]["status"]


def test_who_has_shown_no_token_may_send_little():
    assert status("/v1/session", [4096]) == 200
    assert status("/v1/session", [4000, 97]) == 413
    assert status("/v1/session", [1], content_length="4097") == 413
    assert status("/v1/pairs", [4000, 97], content_length="4097") == 200


def test_a_body_has_an_end_however_steadily_it_comes(monkeypatch):
    monkeypatch.setattr(guard, "LONGEST", 0.3)
    began = time.monotonic()
    assert status("/v1/pairs", [1] * 100, pause=0.02) == 408
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("parts", [[600, 600, 1], [600]])
def test_bodies_that_are_not_answered_yet_have_an_end_together(monkeypatch, parts):
    monkeypatch.setattr(guard, "ALL_BYTES", 1200)

    async def slow(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/v1/pairs":
            await asyncio.sleep(0.5)
        await app(scope, lambda: asyncio.sleep(0, {}), send)

    async def together():
        door = guarded(slow)
        # One that is being read, and one that was read and is being worked at.
        held = asyncio.create_task(asked(door, "/v1/jobs", [300, 1, 1, 1, 1], 0.1))
        held_too = asyncio.create_task(asked(door, "/v1/pairs", [500]))
        await asyncio.sleep(0.2)
        refused = await asked(door, "/v1/masks", parts)
        assert refused[0]["status"] == 503
        assert (b"connection", b"close") in refused[0]["headers"]
        assert b"as much of others' requests as it may" in refused[1]["body"]
        assert (await asked(door, "/v1/engines", [0]))[0]["status"] == 200
        assert [sent[0]["status"] for sent in await asyncio.gather(held, held_too)] == [200, 200]
        return (await asked(door, "/v1/masks", [600, 600]))[0]["status"]

    assert asyncio.run(together()) == 200


def test_secrets_are_compared_whatever_they_are_made_of():
    assert same("ü", "ü")
    assert not same("\ud800", TOKEN)


@pytest.mark.parametrize(
    ("address", "host", "local"),
    [
        ("localhost", "localhost:8080", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.2:8080", True),
        ("::1", "[::1]:8080", True),
        ("192.168.0.1", "192.168.0.1:8080", False),
        ("127.0.0.1.example", "127.0.0.1.example:8080", False),
    ],
)
def test_what_is_listened_at_without_a_token_is_answered_there(address, host, local):
    assert is_loopback(address) is local
    assert status("/v1/engines", [0], token=None, host=host) == (200 if local else 421)
