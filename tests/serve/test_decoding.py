"""Pictures are decoded together as far as their pixels have room, whoever asks and whatever becomes of them."""

import asyncio
import base64
import io
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from closed_engine import closed_engine
from PIL import Image

from stage_rt.errors import ImageError, MaskError
from stage_rt.images import inputs
from stage_rt.serve import pairs
from stage_rt.serve.api import JobOrder, MaskOrder, PairOrder, like_the_real, order_of, request_of
from stage_rt.serve.http import application
from stage_rt.serve.metrics import Figures
from stage_rt.serve.pairs import Room
from stage_rt.serve.server import Server, Settings

PROMPT, PIXELS = "tile+crack", 160 * 120


@pytest.fixture
def serve(here, monkeypatch):
    """``serve(together)`` is a server that decodes so many of the photographs at once."""
    running = []

    def made(together):
        monkeypatch.setattr(pairs, "MOST_PIXELS", together * PIXELS)
        settings = Settings([here / "tiles"], here / "data", 2**30, here / "normals", here / "masks")
        running.append(Server(settings, tell=print, load=lambda _: closed_engine()))
        return running[-1]

    yield made
    for each in running:
        each.drain(20)


@pytest.fixture
def decoders(monkeypatch):
    """Decoders that wait for each other a moment; ``decoders.most`` were at work at once."""

    class Decoders:
        inside = most = 0

    whole, lock = inputs._whole, threading.Lock()

    @contextmanager
    def counted(*args):
        with lock:
            Decoders.inside += 1
            Decoders.most = max(Decoders.most, Decoders.inside)
        try:
            threading.Event().wait(0.05)
            with whole(*args) as image:
                yield image
        finally:
            with lock:
                Decoders.inside -= 1

    monkeypatch.setattr(inputs, "_whole", counted)
    return Decoders


def text_of(content):
    return base64.b64encode(content).decode()


def files(here):
    """A photograph and a mask that fits it, as they are sent."""
    return [text_of((here / name).read_bytes()) for name in ("normals/001.png", "masks/crack/002_mask.png")]


def asking(server):
    app = application(server, None, Figures(), logging.getLogger("test"))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


@pytest.mark.parametrize("together", [1, 2])
def test_whatever_is_decoded_takes_its_share_of_the_room(here, serve, decoders, together):
    server, (photo, mask) = serve(together), files(here)
    sent = [
        lambda: request_of(PairOrder(prompt=PROMPT, image=photo, mask=mask), server),
        lambda: request_of(PairOrder(prompt=PROMPT, photograph="001.png", mask=mask), server),
        lambda: order_of(JobOrder(prompt=PROMPT, masks=[mask, mask], count=1), server),
        lambda: like_the_real(MaskOrder(photograph="001.png", type="crack"), server),
    ]

    async def ask():
        async with asking(server) as http:
            kinds = ("/v1/photographs/001.png", "/v1/photographs/001.png/thumbnail")
            threads = (asyncio.to_thread(one) for one in sent * 2)
            _, answers = await asyncio.gather(
                asyncio.gather(*threads), asyncio.gather(*(http.get(path) for path in kinds * 2))
            )
            assert [answer.status_code for answer in answers] == [200] * 4

    asyncio.run(ask())
    assert decoders.most == together


def test_pictures_that_fail_or_that_nobody_waits_for_any_more_leave_their_room(here, serve):
    server, (photo, mask) = serve(1), files(here)
    content = (here / "normals/001.png").read_bytes()
    body = {"prompt": PROMPT, "image": photo, "mask": mask, "steps": 10, "wait": False}

    async def ask():
        async with asking(server) as http:
            damaged = [body | {"image": text_of(content[: len(content) // 2])}] * 4
            answers = await asyncio.gather(*(http.post("/v1/pairs", json=one) for one in damaged))
            assert {answer.status_code for answer in answers} == {422}
            assert "is truncated or damaged" in answers[0].text
            with server.decoding.taken(1):
                gone = [asyncio.create_task(http.post("/v1/pairs", json=body)) for _ in range(3)]
                await asyncio.sleep(0.3)
                assert server.waiting == 0
                for one in gone:
                    one.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
            answer = await asyncio.wait_for(http.post("/v1/pairs", json=body), 30)
            assert answer.status_code == 202

    asyncio.run(ask())
    assert server.decoding._left == PIXELS


def test_a_picture_larger_than_the_room_goes_alone_and_is_not_passed_for_ever(monkeypatch):
    monkeypatch.setattr(pairs, "MOST_PIXELS", 10)
    room, came, enough = Room(), threading.Event(), threading.Event()
    inside, beside, lock = 0, [], threading.Lock()

    def small():
        nonlocal inside
        while not enough.is_set():
            with room.taken(4):
                with lock:
                    inside += 1
                assert inside <= 2
                threading.Event().wait(0.002)
                with lock:
                    inside -= 1

    def large():
        for _ in range(20):
            with room.taken(64):
                beside.append(inside)
        came.set()

    with ThreadPoolExecutor(6) as threads:
        working = [threads.submit(small) for _ in range(5)]
        last = threads.submit(large)
        assert came.wait(60)
        enough.set()
        for one in [*working, last]:
            one.result(30)
    assert beside == [0] * 20


def test_what_is_too_large_or_no_picture_is_refused_by_its_header(here, serve, decoders):
    server, (photo, mask) = serve(1), files(here)
    large = io.BytesIO()
    Image.fromarray(np.zeros((121, 160), np.uint8)).save(large, "PNG")
    for order, error in (
        ({"image": text_of(large.getvalue()), "mask": mask}, ImageError),
        ({"image": photo, "mask": text_of(large.getvalue())}, MaskError),
        ({"image": photo, "mask": text_of(b"GIF89a")}, MaskError),
    ):
        with pytest.raises(error):
            request_of(PairOrder(prompt=PROMPT, **order), server)
    with pytest.raises(MaskError):
        order_of(JobOrder(prompt=PROMPT, masks=[text_of(large.getvalue())], count=1), server)
    assert decoders.most == 0
