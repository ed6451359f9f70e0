"""The server without HTTP: pairs, jobs that outlive it, a queue that ends, and engines that take turns in memory."""

import asyncio
import base64
import errno
import io
import itertools
import json
import logging
import os
import re
import socket
import threading
import time
import weakref
from dataclasses import replace

import httpx
import numpy as np
import pytest
from closed_engine import SlowBackend, closed_engine, engine_folder
from fake_engine import contents, manifest, opened
from PIL import Image

from stage_rt import strokes
from stage_rt.errors import (
    BackendError,
    DatasetError,
    DeviceLostError,
    DeviceMemoryError,
    InputError,
    MaskError,
    PromptError,
    StageError,
)
from stage_rt.files import remember, write_atomic
from stage_rt.images.masks import read_mask
from stage_rt.images.regions import regions
from stage_rt.noise import stream
from stage_rt.run.fill import fill
from stage_rt.run.job import Job, resolve
from stage_rt.run.ledger import line_of, read_line
from stage_rt.run.metrics import Counts, Outcome
from stage_rt.run.workers import finish
from stage_rt.serve import listen
from stage_rt.serve import pairs as pairs_
from stage_rt.serve.api import JobOrder, JobState, order_of
from stage_rt.serve.driver import ClosedError, Driver
from stage_rt.serve.executor import CancelledError, Terms, Wish
from stage_rt.serve.http import application
from stage_rt.serve.jobs import Order
from stage_rt.serve.metrics import Figures
from stage_rt.serve.pairs import Preview, Request, asked, opened_image, opened_label
from stage_rt.serve.scheduling import Priority
from stage_rt.serve.server import HANDS, QUEUE, Server, Settings
from stage_rt.serve.shelf import BusyError, Shelf
from stage_rt.spec import UNET

PROMPT = "tile+crack"


@pytest.fixture
def serve(here):
    """``serve(delay)`` is a started server over the folder ``data``; it is drained in the end."""
    running = []

    def started(delay=0.0, load=None):
        settings = Settings([here / "tiles"], here / "data", 2**30, here / "normals", here / "masks")
        told = []
        made = Server(settings, tell=told.append, load=load or (lambda _: closed_engine(SlowBackend(delay))))
        made.told = told
        made.start()
        running.append(made)
        return made

    yield started
    for each in running:
        if not each.draining:
            each.drain(20)


def request(here, seed=3, prompt=PROMPT, steps=None):
    photo, grey = opened_image((here / "normals" / "001.png").read_bytes())
    label = opened_label((here / "masks" / "crack" / "002_mask.png").read_bytes(), photo.shape[1::-1])
    method = resolve(asked(prompt, seed, steps, None, 5), closed_engine().spec.model)
    return Request("tiles", prompt, photo, label, grey, seed, method, "001.png")


def order(count=6, seed=5, vary=True):
    return Order(
        id="",
        engine="tiles",
        prompt=PROMPT,
        photographs=["000.png", "002.png"],
        count=count,
        seed=seed,
        vary=vary,
    )


def masks(here):
    return [path.read_bytes() for path in sorted((here / "masks" / "crack").iterdir())[:2]]


def run_alone(here, folder, count, seed=5, vary=True):
    """What the run layer makes of `order` by itself."""
    normals = [here / "normals" / name for name in ("000.png", "002.png")]
    copies = here / "copies"
    copies.mkdir(exist_ok=True)
    for number, mask in enumerate(masks(here)):
        (copies / f"{number:03d}_mask.png").write_bytes(mask)
    job = Job(normals, sorted(copies.iterdir()), PROMPT, count, seed, True, 4, augment=vary)
    fill(closed_engine(), job, folder)
    return contents(folder)


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pair_has_the_bytes_of_the_first_one_of_a_run_of_its_seed(here, serve):
    server = serve()
    pair = server.order(request(here))
    assert pair.ended.wait(30)
    assert (pair.state, pair.share, pair.error) == ("done", 1.0, None)
    job = Job([here / "normals/001.png"], [here / "masks/crack/002_mask.png"], PROMPT, 1, 3, True, 4)
    fill(closed_engine(), job, here / "run")
    assert pair.result.image == (here / "run/test/crack/000000.png").read_bytes()
    assert pair.result.label == (here / "run/ground_truth/crack/000000_mask.png").read_bytes()
    assert pair.result.figures.fill == pytest.approx(manifest(here / "run")[0]["fill"], abs=1e-4)
    preview = Image.open(io.BytesIO(pair.preview))
    assert preview.size == (160, 120)
    assert server.pair(pair.id) is pair


@pytest.mark.parametrize(("channels", "colour"), [(1, (175, 75, 35)), (3, (100, 100, 100))])
def test_a_preview_of_a_grey_model_keeps_the_photographs_colour(here, channels, colour):
    photo = np.empty((32, 32, 3), np.uint8)
    photo[:] = 200, 100, 60
    label = np.zeros((32, 32), bool)
    label[8:24, 8:24] = True
    shown = []
    preview = Preview(
        replace(request(here), photo=photo, label=label), regions(label, view=None), shown.append
    )
    preview(stream(0), np.full((channels, 32, 32), 100 / 127.5 - 1, np.float32))
    picture = np.asarray(opened(io.BytesIO(shown[0])), dtype=int)
    # JPEG moves colours near an outline.
    assert np.abs(np.median(picture[12:20, 12:20], axis=(0, 1)) - colour).max() <= 8
    assert np.abs(np.median(picture[:4, :4], axis=(0, 1)) - photo[0, 0]).max() <= 8


def test_the_queue_ends_and_says_when_to_come_again(here, serve):
    server, go = serve(), threading.Event()
    threading.Thread(target=server.driver.call, args=(go.wait,)).start()
    pairs = [server.order(request(here, seed, steps=12)) for seed in range(QUEUE)]
    with pytest.raises(BusyError, match=f"{QUEUE} pairs are waiting already: try again in 10 s"):
        server.order(request(here))
    assert server.waiting == QUEUE
    server.cancel(pairs[-1])
    go.set()
    for pair in pairs:
        assert pair.ended.wait(60)
    assert [pair.state for pair in pairs] == ["done"] * (QUEUE - 1) + ["cancelled"]
    assert len({pair.result.image for pair in pairs[:-1]}) == QUEUE - 1
    assert server.order(request(here)).ended.wait(30)


def test_pairs_that_are_cancelled_give_their_places_to_others_at_once(here, serve):
    server, go = serve(), threading.Event()
    threading.Thread(target=server.driver.call, args=(go.wait,)).start()
    pairs = [server.order(request(here, seed, steps=12)) for seed in range(QUEUE)]
    waiting = pairs[HANDS:]
    try:
        for _ in range(2):
            for pair in waiting:
                server.cancel(pair)
        assert {pair.state for pair in waiting} == {"cancelled"}
        assert all(pair.ended.is_set() and pair.request.photo.size == 0 for pair in waiting)
        assert server.waiting == HANDS
        # Nor is their end the pace of those that are painted.
        assert not server._ends
        again = [server.order(request(here, seed, steps=12)) for seed in range(len(waiting))]
        with pytest.raises(BusyError):
            server.order(request(here))
    finally:
        go.set()
    for pair in (*pairs, *again):
        assert pair.ended.wait(60)
    assert [pair.state for pair in (*pairs[:HANDS], *again)] == ["done"] * QUEUE
    wait_until(lambda: not server.waiting)


@pytest.mark.parametrize("together", [1, 2])
def test_pairs_are_finished_together_as_far_as_their_pixels_have_room(here, serve, monkeypatch, together):
    inside, most, lock = 0, 0, threading.Lock()

    def counted(*args, **options):
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
        time.sleep(0.1)
        yield from finish(*args, **options)
        with lock:
            inside -= 1

    monkeypatch.setattr("stage_rt.serve.pairs.finish", counted)
    monkeypatch.setattr("stage_rt.serve.pairs.MOST_PIXELS", together * 160 * 120)
    server = serve()
    pairs = [server.order(request(here, seed, steps=10)) for seed in range(6)]
    for pair in pairs:
        assert pair.ended.wait(30)
    assert [pair.state for pair in pairs] == ["done"] * 6
    assert most == together


def test_what_is_over_is_forgotten_by_number_and_size(here, serve, monkeypatch):
    server, seen = serve(), []
    for remembered, size, left in ((3, 10**9, [4, 5, 6]), (256, 200_000, [10, 11]), (256, 1, [])):
        monkeypatch.setattr("stage_rt.serve.server.REMEMBERED", remembered)
        monkeypatch.setattr("stage_rt.serve.server.REMEMBERED_BYTES", size)
        for _ in range(7 if remembered == 3 else 5):
            seen.append(server.order(request(here, len(seen), steps=10)))
            assert seen[-1].ended.wait(30)
            wait_until(lambda: not server.waiting)
        assert seen[-1].request.photo.size == 0
        assert 67_000 < seen[-1].size < 100_000
        assert [n for n, pair in enumerate(seen) if server.pair(pair.id)] == left


def test_a_pair_that_fails_says_why_and_the_next_is_painted(here, serve):
    class Failing(SlowBackend):
        broken = False

        def run(self, graph, **inputs):
            if self.broken:
                raise BackendError("the library failed")
            return super().run(graph, **inputs)

    backend = Failing()
    server = serve(load=lambda _: closed_engine(backend))
    backend.broken = True
    sent = request(here)
    photograph = weakref.ref(sent.photo)
    pair = server.order(sent)
    del sent
    assert pair.ended.wait(30)
    assert (pair.state, str(pair.error)) == ("failed", "the library failed")
    wait_until(lambda: photograph() is None, 10)
    backend.broken = False
    pair = server.order(request(here))
    assert pair.ended.wait(30)
    assert pair.state == "done"


class Failing(SlowBackend):
    """Networks that raise ``error`` in every call, if it is one."""

    error = None

    def run(self, graph, **inputs):
        if self.error:
            raise self.error
        return super().run(graph, **inputs)


def answered(server, method, path, body=None):
    """The status and the JSON of an answer over HTTP."""
    app = application(server, None, Figures(), logging.Logger("none"))

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            return await http.request(method, path, json=body)

    answer = asyncio.run(ask())
    return answer.status_code, answer.json()


def test_a_device_that_is_lost_is_told_by_readiness_the_log_and_whoever_orders(here, serve):
    backend = Failing()
    server = serve(load=lambda _: closed_engine(backend))
    mask = base64.b64encode(masks(here)[0]).decode()
    pair_order = {"prompt": PROMPT, "photograph": "001.png", "mask": mask}
    backend.error = BackendError("the library failed")
    assert answered(server, "POST", "/v1/pairs", pair_order)[0] == 500
    assert answered(server, "GET", "/readyz") == (200, {"state": "ready"})
    backend.error = DeviceLostError("CUDA failed: an illegal access", "start it again")
    told = {"error": {"problem": "CUDA failed: an illegal access", "remedy": "start it again"}}
    night, other = (server.jobs.add(order(2), masks(here)) for _ in range(2))
    wait_until(lambda: other.order.state == "failed")
    assert answered(server, "GET", "/readyz") == (503, {"state": "failed"} | told)
    # Whoever comes now is not even tried.
    backend.error = None
    assert answered(server, "POST", "/v1/pairs", pair_order) == (503, told)
    job_order = {"prompt": PROMPT, "masks": [mask], "count": 1}
    assert answered(server, "POST", "/v1/jobs", job_order) == (503, told)
    assert list(server.jobs.jobs) == [night.order.id, other.order.id]
    assert server.told == ["nothing more is painted: CUDA failed: an illegal access: start it again"]
    server.drain(20)
    again = serve().jobs.jobs[other.order.id]
    wait_until(lambda: again.order.state == "done")


def test_a_device_that_is_lost_ends_the_server_once_everyone_is_answered(here):
    backend, raised = Failing(), []
    settings = Settings([here / "tiles"], here / "data", 2**30, here / "normals", here / "masks")
    server = Server(settings, tell=raised.append, load=lambda _: closed_engine(backend))

    def run(listening):
        try:
            listen.run(server, listening, None, Figures(), logging.Logger("none"))
        except DeviceLostError as error:
            raised.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        running = threading.Thread(target=run, args=(listening,))
        running.start()
        wait_until(lambda: server.ready)
        backend.error = DeviceLostError("CUDA failed: an illegal access", "start it again")
        body = {"prompt": PROMPT, "photograph": "001.png", "mask": base64.b64encode(masks(here)[0]).decode()}
        answer = httpx.post(f"http://{host}:{port}/v1/pairs", json=body, timeout=30)
        told = {"problem": "CUDA failed: an illegal access", "remedy": "start it again"}
        assert (answer.status_code, answer.json()["error"]) == (503, told)
        running.join(30)
    assert not running.is_alive()
    told = "CUDA failed: an illegal access: start it again"
    assert [str(one) for one in raised] == [f"nothing more is painted: {told}", told]
    assert not server.driver.alive


def test_a_device_that_is_lost_in_a_step_keeps_nothing_of_what_was_sent(here, serve):
    class Lost(SlowBackend):
        lost = False

        def run(self, graph, **inputs):
            if self.lost and graph == UNET:
                raise DeviceLostError("CUDA failed: an illegal access", "start it again")
            return super().run(graph, **inputs)

    backend = Lost()
    server = serve(load=lambda _: closed_engine(backend))
    backend.lost = True
    sent = request(here)
    photograph = weakref.ref(sent.photo)
    pair = server.order(sent)
    del sent
    assert pair.ended.wait(30)
    assert (pair.state, str(pair.error)) == ("failed", "CUDA failed: an illegal access: start it again")
    with pytest.raises(DeviceLostError, match="CUDA failed: an illegal access: start it again"):
        server.order(request(here))
    wait_until(lambda: photograph() is None, 10)


def test_engines_that_fail_when_they_are_closed_hold_up_no_end(here):
    class Failing(SlowBackend):
        closed = 0

        def close(self):
            Failing.closed += 1
            raise BackendError("the device failed")

    engine_folder(here / "more" / "others")
    settings = Settings([here / "tiles", here / "more" / "others"], here / "data", 2**30)
    told = []
    server = Server(settings, tell=told.append, load=lambda _: closed_engine(Failing()))
    server.start()
    server.drain(0)
    assert told == ["the engines could not be closed: the device failed"]
    assert Failing.closed == 2
    assert not server.driver.alive


def test_a_pair_is_judged_once_and_kept_as_a_data_set(here, serve):
    server = serve()
    pairs = [server.order(request(here, seed)) for seed in range(3)]
    for pair in pairs:
        assert pair.ended.wait(30)
    assert server.judge(pairs[0], accepted=True) == "tiles/test/crack/000000.png"
    assert server.judge(pairs[1], accepted=False) is None
    assert server.judge(pairs[2], accepted=True) == "tiles/test/crack/000001.png"
    with pytest.raises(InputError, match="the pair was accepted already"):
        server.judge(pairs[0], accepted=False)
    kept = here / "data/accepted/tiles"
    assert (kept / "test/crack/000001.png").read_bytes() == pairs[2].result.image
    assert opened(kept / "ground_truth/crack/000000_mask.png").mode == "L"
    lines = [json.loads(line) for line in (kept / "accepted.jsonl").read_text().splitlines()]
    assert [(line["id"], line["seed"], line["photograph"]) for line in lines] == [
        (pairs[0].id, 0, "001.png"),
        (pairs[2].id, 2, "001.png"),
    ]


def test_an_order_that_waits_for_a_verdict_to_be_written_holds_up_nobody(here, serve):
    server = serve()
    app = application(server, None, Figures(), logging.Logger("none"))
    mask = base64.b64encode((here / "masks/crack/002_mask.png").read_bytes()).decode()
    body = {"prompt": PROMPT, "photograph": "001.png", "mask": mask, "steps": 10, "wait": False}

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            order = asyncio.create_task(http.post("/v1/pairs", json=body))
            await asyncio.sleep(0.3)
            assert (await http.get("/healthz")).status_code == 200
            assert server._lock.locked()
            return (await order).status_code

    server._lock.acquire()
    threading.Timer(1.0, server._lock.release).start()
    assert asyncio.run(ask()) == 202


def test_what_nobody_foresaw_is_answered_like_any_failure_and_logged_in_one_line(
    here, serve, monkeypatch, caplog
):
    def broken(*_):
        raise RuntimeError("a fault\nof two lines")

    monkeypatch.setattr("stage_rt.serve.api.EngineState.of", broken)
    app = application(serve(), None, Figures(), logging.getLogger("test"))

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            return await http.get("/v1/engines", headers={"x-request-id": "mine"})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    assert answer.json() == {"error": {"problem": "the server failed", "remedy": "see its log"}}
    errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    (told,) = errors
    assert re.fullmatch(r"mine failed: RuntimeError: a fault \(in `serve/http\.py`, line \d+\)", told)


def test_a_job_is_a_run_with_the_bytes_of_one_of_the_command_line(here, serve):
    server = serve()
    night = server.jobs.add(order(), masks(here))
    beside = [server.order(request(here, seed)) for seed in range(4)]
    wait_until(lambda: night.order.state == "done")
    assert contents(night.run) == run_alone(here, here / "alone", 6)
    assert (night.share, night.counts.done, night.counts.pairs) == (1.0, 6, 6)
    for pair in beside:
        assert pair.ended.wait(30)
        assert pair.state == "done"
    assert server.told == []


def test_a_job_that_was_cut_off_goes_on_in_the_next_server(here, serve):
    first = serve(0.01)
    night, later = first.jobs.add(order(), masks(here)), first.jobs.add(order(2, seed=8), masks(here))
    wait_until(lambda: night.counts.done)
    first.drain(20)
    assert night.counts.done < 6
    with pytest.raises(ClosedError, match="the server is going down"):
        first.order(request(here))
    second = serve()
    wait_until(lambda: all(one.order.state == "done" for one in second.jobs.jobs.values()))
    assert list(second.jobs.jobs) == [night.order.id, later.order.id]
    assert contents(night.run) == run_alone(here, here / "alone", 6)
    third = serve()
    assert [(one.order.state, one.share) for one in third.jobs.jobs.values()] == [("done", 1.0)] * 2


def test_jobs_are_cancelled_and_refused(here, serve):
    server = serve(0.02)
    painting, waiting = (server.jobs.add(order(50, seed=n), masks(here)) for n in range(2))
    server.jobs.cancel(waiting.order.id)
    assert waiting.order.state == "cancelled"
    wait_until(lambda: painting.order.state == "painting")
    server.jobs.cancel(painting.order.id)
    wait_until(lambda: painting.order.state == "cancelled")
    with pytest.raises(InputError, match=r"there is no photograph '../x' in the gallery"):
        server.jobs.add(order().model_copy(update={"photographs": ["../x"]}), masks(here))
    with pytest.raises(PromptError, match="unknown prompt 'tile'"):
        server.jobs.add(order().model_copy(update={"prompt": "tile"}), masks(here))
    assert len(list((here / "data/jobs").iterdir())) == 2


def test_a_job_takes_masks_that_fit_some_photographs_and_decodes_each_once(here, serve, monkeypatch):
    for number in range(4):
        Image.new("RGB", (160, 160 + number), (90, 90, 90)).save(here / f"normals/square{number}.png")
    square = here / "square.png"
    Image.fromarray(np.pad(np.full((9, 9), 255, np.uint8), ((40, 111), (40, 111)))).save(square)
    decoded, mask_of = [], pairs_.mask_of
    monkeypatch.setattr(pairs_, "mask_of", lambda content, name: decoded.append(1) or mask_of(content, name))
    server = serve()

    def ordered(*contents):
        texts = [base64.b64encode(content).decode() for content in contents]
        return order_of(JobOrder(prompt=PROMPT, masks=texts, count=8, vary=False), server)

    night = server.jobs.add(*ordered(*masks(here), square.read_bytes()))
    assert len(decoded) == 3
    assert over(server, night).state == "done"
    assert all(
        (line["label"] == "002_mask.png") == line["normal"].startswith("square")
        for line in manifest(night.run)
    )
    Image.new("L", (300, 100), 255).save(square)
    with pytest.raises(MaskError, match="`mask` is 300x100 but its photograph is 160x120"):
        ordered(square.read_bytes())


def said(night):
    return json.loads((night.folder / "job.json").read_text())["state"]


def test_a_job_that_is_cancelled_stays_so_whatever_comes_before_that_is_noticed(here, serve, monkeypatch):
    began, go = threading.Event(), threading.Event()

    def fill(engine, job, folder, **told):
        began.set()
        assert go.wait(30)
        raise BusyError("there is no memory", 1)

    monkeypatch.setattr("stage_rt.serve.jobs.fill", fill)
    server = serve()
    night = server.jobs.add(order(), masks(here))
    assert began.wait(30)
    server.jobs.cancel(night.order.id)
    assert (night.order.state, said(night)) == ("cancelled", "cancelled")
    threading.Timer(0.2, go.set).start()
    server.drain(20)
    assert (night.order.state, said(night)) == ("cancelled", "cancelled")


def test_a_job_is_put_aside_while_its_files_are_checked(here, serve, monkeypatch):
    began = threading.Event()

    def fill(engine, job, folder, *, checking, **told):
        for number in range(1000):
            began.set()
            checking(number / 1000)
            time.sleep(0.01)

    monkeypatch.setattr("stage_rt.serve.jobs.fill", fill)
    server = serve()
    night = server.jobs.add(order(), masks(here))
    assert began.wait(30)
    time.sleep(0.05)
    server.drain(20)
    assert (night.order.state, said(night)) == ("painting", "waiting")


def test_of_a_job_that_could_not_be_written_nothing_stays(here, serve, monkeypatch):
    server = serve()

    def full(path, content):
        if path.name == "job.json":
            raise OSError("the disk is full")
        write_atomic(path, content)

    monkeypatch.setattr("stage_rt.serve.jobs.write_atomic", full)
    with pytest.raises(OSError, match="full"):
        server.jobs.add(order(), masks(here))
    assert list((here / "data/jobs").iterdir()) == []
    assert not server.jobs.jobs


def test_a_job_whose_photograph_is_gone_fails_and_a_folder_that_is_none_is_left(here, serve):
    first = serve(0.02)
    night = first.jobs.add(order(50), masks(here))
    wait_until(lambda: night.counts.done)
    first.drain(20)
    (here / "normals/002.png").unlink()
    (here / "data/jobs/20260101000000-000000").mkdir()
    (here / "data/jobs/20260101000000-000001").mkdir()
    (here / "data/jobs/20260101000000-000001/job.json").write_text("{}")
    second = serve()
    wait_until(lambda: second.jobs.jobs[night.order.id].order.state == "failed")
    assert "no photograph '002.png'" in second.jobs.jobs[night.order.id].order.error
    assert list(second.jobs.jobs) == [night.order.id]
    assert len(second.told) == 1
    assert "is no job" in second.told[0]


def test_the_night_leaves_the_memory_to_whoever_waits_for_another_engine_and_goes_on_later(here, monkeypatch):
    monkeypatch.setattr("stage_rt.serve.jobs.WAIT", 0.1)
    folders = [here / "tiles", engine_folder(here / "bricks")]
    settings = Settings(folders, here / "data", 25, here / "normals")
    server = Server(settings, tell=print, load=lambda _: closed_engine(SlowBackend(0.005)))
    server.shelf.books = {name: book._replace(bytes=20) for name, book in server.shelf.books.items()}
    try:
        server.start()
        night = server.jobs.add(order(12), masks(here))
        for done in (1, 5):
            wait_until(lambda done=done: night.counts.done >= done)
            pairs = [server.order(replace(request(here, seed), engine="bricks")) for seed in range(3)]
            for pair in pairs:
                assert pair.ended.wait(30)
            assert [(pair.state, pair.error) for pair in pairs] == [("done", None)] * 3
            assert (night.order.state, said(night)) != ("cancelled", "cancelled")
        wait_until(lambda: night.order.state == "done")
        assert contents(night.run) == run_alone(here, here / "alone", 12)
    finally:
        server.drain(20)


def test_a_job_comes_to_its_end_though_there_is_always_somebody_who_needs_its_memory(here, monkeypatch):
    monkeypatch.setattr("stage_rt.serve.jobs.WAIT", 0.05)
    monkeypatch.setattr("stage_rt.serve.jobs.PATIENCE", 0.3)
    folders = [here / "tiles", engine_folder(here / "bricks")]
    settings = Settings(folders, here / "data", 25, here / "normals")
    server = Server(settings, tell=print, load=lambda _: closed_engine(SlowBackend(0.002)))
    server.shelf.books = {name: book._replace(bytes=20) for name, book in server.shelf.books.items()}
    pairs, over = [], threading.Event()

    def ask(seed):
        while not over.is_set():
            pairs.append(server.order(replace(request(here, seed, steps=10), engine="bricks")))
            assert pairs[-1].ended.wait(60)

    clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    try:
        server.start()
        for one in clients:
            one.start()
        wait_until(lambda: len(pairs) > 8)
        night = server.jobs.add(order(12), masks(here))
        wait_until(lambda: night.order.state == "done")
        assert contents(night.run) == run_alone(here, here / "alone", 12)
    finally:
        over.set()
        for one in clients:
            one.join(60)
        server.drain(20)
    assert {(pair.state, pair.error) for pair in pairs} == {("done", None)}


def test_a_job_that_is_cancelled_while_it_leaves_is_painted_no_more(here, serve, monkeypatch):
    began, go = threading.Event(), threading.Event()

    def fill(engine, job, folder, **told):
        began.set()
        assert go.wait(30)
        raise CancelledError("the request was cancelled")

    monkeypatch.setattr("stage_rt.serve.jobs.fill", fill)
    server = serve()
    night = server.jobs.add(order(), masks(here))
    assert began.wait(30)
    night.wish.cancel()
    server.jobs.cancel(night.order.id)
    go.set()
    later = server.jobs.add(order(), masks(here))
    wait_until(lambda: later.order.state == "painting")
    assert (night.order.state, said(night)) == ("cancelled", "cancelled")


def over(server, night):
    """The order of a job that is over."""
    jobs = server.jobs.jobs
    wait_until(lambda: jobs[night.order.id].order.state in ("done", "failed", "cancelled"))
    return jobs[night.order.id].order


def test_a_job_that_a_full_disk_ended_goes_on_at_the_next_start(here, serve, monkeypatch):
    sync, calls = os.fsync, itertools.count()

    def full(descriptor):
        if next(calls) == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    server = serve()
    monkeypatch.setattr("os.fsync", full)
    night = server.jobs.add(order(12), masks(here))
    assert "No space left" in over(server, night).error
    assert (night.order.state, said(night)) == ("failed", "waiting")
    monkeypatch.setattr("os.fsync", sync)
    server.drain(20)
    assert over(serve(), night).state == "done"
    assert contents(night.run) == run_alone(here, here / "alone", 12)


def test_a_job_outlives_starts_without_what_it_needs(here, serve):
    first = serve(0.05)
    night, later = first.jobs.add(order(3), masks(here)), first.jobs.add(order(2), masks(here))
    first.drain(20)
    (here / "normals/002.png").rename(here / "002.png")
    without = serve()
    assert "no photograph '002.png'" in over(without, night).error
    assert (over(without, later).state, said(night)) == ("failed", "waiting")
    # It is not to come back either.
    without.jobs.cancel(later.order.id)
    assert said(later) == "cancelled"
    without.drain(20)
    (here / "002.png").rename(here / "normals/002.png")
    last = serve()
    assert (over(last, night).state, over(last, later).state) == ("done", "cancelled")


def test_a_job_says_of_its_samples_what_became_of_them_after_a_restart_too(here, serve, monkeypatch):
    stroke = strokes._stroke

    def failing(piece, levels, model):
        return stroke(piece, levels if piece.place != 1 else None, model)

    monkeypatch.setattr("stage_rt.strokes._stroke", failing)
    server = serve()
    night = server.jobs.add(order(12), masks(here))
    over(server, night)
    server.drain(20)
    told = JobState.of(night)
    there = len(list((night.run / "test/crack").glob("*.png")))
    assert 0 < there < 12
    assert (told.state, told.done, told.failed) == ("done", there, 12 - there)
    with (night.run / "manifest.jsonl").open("a") as file:
        file.write('{"index": 3')
    (after,) = serve().jobs.jobs.values()
    assert JobState.of(after) == told


def test_a_manifest_is_counted_as_the_samples_are_while_they_are_painted(here, serve):
    server = serve()
    night = server.jobs.add(order(4), masks(here))
    over(server, night)
    server.drain(20)
    manifest_file = night.run / "manifest.jsonl"
    records = [read_line(line, PROMPT) for line in manifest_file.read_bytes().splitlines()]
    became = [
        {"attempts": 3},
        {"attempts": 6, "weak": True},
        {"attempts": 6, "weak": True, "status": "left out"},
        {"status": "failed"},
    ]
    lines = [one.model_copy(update=what) for one, what in zip(records, became, strict=True)]
    # The last line of a sample counts.
    manifest_file.write_bytes(b"".join(map(line_of, [*records, *lines])))
    painted = Counts(4)
    for record in lines:
        painted.add(Outcome.of(record))
    (after,) = serve().jobs.jobs.values()
    assert after.counts == painted == Counts(4, done=4, pairs=2, refilled=3, weak=1, left_out=1, failed=1)


@pytest.fixture
def parsed(monkeypatch):
    """Lines of manifests that servers read to count them."""
    lines = []

    def read(line, prompt):
        lines.append(line)
        return read_line(line, prompt)

    monkeypatch.setattr("stage_rt.serve.jobs.read_line", read)
    return lines


def test_no_start_reads_the_manifests_of_jobs_that_are_over(here, serve, parsed):
    first = serve(0.005)
    done, cancelled = (first.jobs.add(order(count), masks(here)) for count in (4, 40))
    wait_until(lambda: cancelled.counts.done)
    first.jobs.cancel(cancelled.order.id)
    first.drain(20)
    assert done.counts.done == 4
    assert cancelled.counts.done == len(manifest(cancelled.run))
    parsed.clear()
    second = serve().jobs.jobs
    assert [(one.order, one.counts) for one in second.values()] == [
        (one.order, one.counts) for one in (done, cancelled)
    ]
    assert parsed == []


def test_jobs_whose_counts_were_not_kept_are_counted_once(here, serve, parsed):
    first = serve()
    night = first.jobs.add(order(4), masks(here))
    over(first, night)
    first.drain(20)
    parsed.clear()
    for kept, lines in ((None, 4), (b"", 4), (b"[]", 4), (b'[[1, 2, 3], {"new": 1}]', 4)):
        if kept is None:
            (night.folder / ".counts").unlink()
        else:
            remember(night.folder / ".counts", kept)
        for read in (lines, 0):
            server = serve()
            assert server.jobs.jobs[night.order.id].counts == night.counts
            assert len(parsed) == read
            server.drain(20)
            parsed.clear()


def test_a_job_that_goes_on_is_counted_anew(here, serve, parsed):
    first = serve(0.01)
    night = first.jobs.add(order(12), masks(here))
    wait_until(lambda: night.counts.done)
    first.drain(20)
    second = serve()
    assert second.jobs.jobs[night.order.id].order.state in ("waiting", "painting")
    assert over(second, night).state == "done"
    second.drain(20)
    assert serve().jobs.jobs[night.order.id].counts == Counts(12, done=12, pairs=12)


@pytest.mark.parametrize("kind", [MaskError, OSError, RuntimeError])
def test_a_job_that_can_never_be_painted_is_tried_no_more(here, serve, monkeypatch, kind):
    def fill(engine, job, folder, **told):
        raise kind(5, "a fault")

    monkeypatch.setattr("stage_rt.serve.jobs.fill", fill)
    server = serve()
    night = server.jobs.add(order(), masks(here))
    over(server, night)
    wait_until(lambda: said(night) == ("waiting" if kind is OSError else "failed"))
    assert len(server.told) == (kind is not MaskError)


def test_a_server_that_is_drained_while_it_warms_up_is_not_ready(here):
    server = Server(
        Settings([here / "tiles"], here / "data", 2**30), tell=print, load=lambda _: closed_engine()
    )
    server.shelf.warm = lambda: server.drain(0)
    server.start()
    assert not server.ready
    # Nor does a driver that is gone keep it from ending.
    server.drain(0)


def test_what_takes_too_long_to_end_is_cancelled_by_the_drain(here, serve):
    server = serve(0.05)
    pair = server.order(request(here))
    wait_until(lambda: pair.state == "painting")
    server.drain(0)
    assert pair.state == "cancelled"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stage-rt")]


def test_engines_take_turns_in_memory(tmp_path):
    folders = [engine_folder(tmp_path / name) for name in "abc"]
    driver, opened_ = Driver(), []

    def load(folder):
        opened_.append(folder.name)
        return closed_engine()

    shelf = Shelf(folders, 25, driver, load=load)
    shelf.books = {name: book._replace(bytes=10) for name, book in shelf.books.items()}
    shelf.warm()
    assert (opened_, shelf.loaded) == (["a", "b"], {"a", "b"})
    terms = Terms(Priority.INTERACTIVE)
    with shelf.engine("a", terms), shelf.engine("c", terms):
        assert shelf.loaded == {"a", "c"}
        with (
            pytest.raises(BusyError, match="no memory for engine `b` while others paint"),
            shelf.engine("b", terms),
        ):
            pass
    with shelf.engine("b", terms) as engine:
        images = np.zeros((1, 3, 16, 16), np.float32)
        assert engine.executor.encode(images).shape == (1, 8, 8, 8)
    assert shelf.loaded == {"b", "c"}
    shelf.close()
    assert shelf.loaded == frozenset()
    driver.close()


@pytest.fixture
def small(tmp_path):
    """``small(sizes, room)`` is a shelf whose device has less room than its budget, and the names it loaded."""
    driver, shelves = Driver(), []

    def made(sizes, room):
        came = []

        def load(folder):
            if sum(sizes[name] for name in (*shelf.loaded, folder.name)) > room:
                raise DeviceMemoryError("the GPU's memory is full")
            came.append(folder.name)
            return closed_engine()

        shelf = Shelf([engine_folder(tmp_path / name) for name in sizes], 100, driver, load=load)
        shelf.books = {name: book._replace(bytes=sizes[name]) for name, book in shelf.books.items()}
        shelves.append(shelf)
        return shelf, came

    yield made
    for shelf in shelves:
        shelf.close()
    driver.close()


@pytest.mark.parametrize("priority", Priority)
def test_engines_take_turns_where_the_device_has_less_memory_than_they_may_take(small, priority):
    shelf, came = small(dict.fromkeys("abc", 10), 25)
    terms = Terms(priority, wish=Wish())
    shelf.warm()
    assert came == ["a", "b"]
    for name, there in (("a", "ab"), ("c", "ac"), ("b", "cb"), ("c", "cb")):
        with shelf.engine(name, terms):
            assert shelf.loaded == set(there)
    assert came == ["a", "b", "c", "b"]


def test_no_more_engines_leave_a_full_device_than_have_to(small):
    shelf, came = small({"a": 5, "b": 5, "c": 5, "d": 12}, 20)
    shelf.warm()
    terms = Terms(Priority.INTERACTIVE)
    with shelf.engine("a", terms), shelf.engine("d", terms):
        assert shelf.loaded == {"a", "d"}
    assert came == ["a", "b", "c", "d"]


def test_an_engine_without_room_beside_one_in_use_is_had_when_that_is_left(small):
    shelf, _ = small(dict.fromkeys("ab", 10), 15)
    terms = Terms(Priority.INTERACTIVE)
    with shelf.engine("a", terms):
        with pytest.raises(BusyError, match="no memory for engine `b` while others paint"):
            shelf.engine("b", terms).__enter__()
        assert shelf.loaded == {"a"}
    with shelf.engine("b", terms):
        assert shelf.loaded == {"b"}


@pytest.mark.parametrize("beside", ["tiles", "bricks"])
def test_slots_that_do_not_fit_beside_an_engine_that_nobody_uses_take_its_place(here, beside):
    class Full(Counted):
        def slots(self, adapter, size):
            if beside in server.shelf.loaded:
                raise DeviceMemoryError("the GPU's memory is full")
            return super().slots(adapter, size)

    def load(folder):
        made = closed_engine()
        return made if folder.name == "tiles" else made.over(Full(made.executor, room=True))

    settings = Settings([here / "tiles", engine_folder(here / "bricks")], here / "data", 2**30)
    server = Server(settings, tell=print, load=load)
    server.start()
    assert server.shelf.loaded == {"tiles", "bricks"}
    pair = server.order(replace(request(here, steps=10), engine="bricks"))
    assert pair.ended.wait(30)
    # What it needs itself is in use.
    assert pair.state == ("done" if beside == "tiles" else "failed")
    assert server.shelf.loaded == {"bricks"}
    server.drain(20)


def test_a_step_that_does_not_fit_beside_an_engine_that_nobody_uses_takes_its_place(here):
    class Full(SlowBackend):
        full = False

        def run(self, graph, **inputs):
            if self.full and graph == UNET and "tiles" in server.shelf.loaded:
                raise DeviceMemoryError("the GPU's memory is full")
            return super().run(graph, **inputs)

    backend = Full()
    settings = Settings([here / "tiles", engine_folder(here / "bricks")], here / "data", 2**30)
    server = Server(
        settings,
        tell=print,
        load=lambda folder: closed_engine(backend if folder.name == "bricks" else SlowBackend()),
    )
    server.start()
    assert server.shelf.loaded == {"tiles", "bricks"}
    backend.full = True
    pair = server.order(replace(request(here, steps=10), engine="bricks"))
    assert pair.ended.wait(30)
    assert (pair.state, server.shelf.loaded) == ("done", {"bricks"})
    server.drain(20)


def test_the_night_leaves_a_full_device_to_whoever_waits(small):
    shelf, _ = small(dict.fromkeys("ab", 10), 15)
    nightly = Terms(Priority.NIGHT, wish=Wish())
    with shelf.engine("a", nightly):
        enough, came, thread = held(shelf, "b", Terms(Priority.INTERACTIVE, wish=Wish()))
        wait_until(lambda: nightly.wish.cancelled)
    wait_until(lambda: came == ["b"])
    enough.set()
    thread.join()


def test_an_engine_that_a_device_cannot_hold_alone_is_told_of(small):
    shelf, came = small({"a": 10, "b": 40}, 20)
    shelf.warm()
    terms = Terms(Priority.INTERACTIVE)
    with pytest.raises(DeviceMemoryError), shelf.engine("b", terms):
        pass
    with shelf.engine("a", terms):
        assert came == ["a", "a"]
    first, _ = small({"big": 40}, 20)
    with pytest.raises(DeviceMemoryError):
        first.warm()


def test_an_engine_that_others_have_no_room_for_while_it_warms_up_ends_no_server(narrow):
    go, failed = threading.Event(), []

    def warm():
        try:
            narrow.warm()
        except StageError as error:
            failed.append(error)

    threading.Thread(target=narrow._driver.call, args=(go.wait,)).start()
    enough, came, first = held(narrow, "b", Terms(Priority.INTERACTIVE))
    wait_until(lambda: narrow._driver._asked.qsize() == 1)
    warming = threading.Thread(target=warm)
    warming.start()
    wait_until(lambda: narrow._driver._asked.qsize() == 2)
    go.set()
    warming.join(20)
    assert (failed, came, narrow.loaded) == ([], ["b"], {"b"})
    enough.set()
    first.join()


@pytest.fixture
def narrow(tmp_path):
    """A shelf of engines `a` and `b` with room for one, and its driver."""
    driver = Driver()
    shelf = Shelf(
        [engine_folder(tmp_path / name) for name in "ab"], 15, driver, load=lambda _: closed_engine()
    )
    shelf.books = {name: book._replace(bytes=10) for name, book in shelf.books.items()}
    yield shelf
    shelf.close()
    driver.close()


def held(shelf, name, terms):
    """Holds an engine in a thread of its own, until the event is set; what came of it comes into the list."""
    enough, came = threading.Event(), []

    def hold():
        try:
            with shelf.engine(name, terms):
                came.append(name)
                enough.wait(30)
        except StageError as error:
            came.append(type(error))

    thread = threading.Thread(target=hold)
    thread.start()
    return enough, came, thread


def test_an_engine_that_only_the_night_uses_is_left_to_whoever_waits(narrow):
    nightly = Terms(Priority.NIGHT, wish=Wish())
    with narrow.engine("a", nightly):
        enough, came, thread = held(narrow, "b", Terms(Priority.INTERACTIVE, wish=Wish()))
        wait_until(lambda: nightly.wish.cancelled)
        # Nor is it back before the other has come.
        with pytest.raises(BusyError), narrow.engine("a", Terms(Priority.NIGHT, wish=Wish())):
            pass
        assert came == []
    wait_until(lambda: came == ["b"])
    with pytest.raises(BusyError), narrow.engine("a", Terms(Priority.NIGHT, wish=Wish())):
        pass
    enough.set()
    thread.join()
    with narrow.engine("a", Terms(Priority.NIGHT, wish=Wish())):
        assert narrow.loaded == {"a"}


def test_who_waits_for_the_night_to_leave_may_change_their_mind_or_be_late(narrow):
    wish = Wish()
    with narrow.engine("a", Terms(Priority.NIGHT, wish=Wish())):
        _, gone, first = held(narrow, "b", Terms(Priority.INTERACTIVE, wish=wish))
        _, late, second = held(narrow, "b", Terms(Priority.INTERACTIVE, deadline=time.monotonic() + 0.3))
        wish.cancel()
        first.join(20)
        second.join(20)
    assert (gone, late) == ([CancelledError], [BusyError])
    with narrow.engine("a", Terms(Priority.NIGHT, wish=Wish())):
        pass


def test_whoever_insists_comes_next_and_is_left_alone_until_it_insists_no_more(narrow):
    wish = Wish(insists=True)
    inside, first, one = held(narrow, "a", Terms(Priority.INTERACTIVE))
    wait_until(lambda: first == ["a"])
    enough, night, two = held(narrow, "b", Terms(Priority.NIGHT, wish=wish))
    wait_until(lambda: narrow._closed)
    # Nobody follows those who are there, and nobody is sent away.
    later, second, three = held(narrow, "a", Terms(Priority.INTERACTIVE))
    time.sleep(0.3)
    assert (night, second) == ([], [])
    inside.set()
    wait_until(lambda: night == ["b"])
    time.sleep(0.3)
    assert (second, wish.cancelled) == ([], False)
    with narrow.engine("b", Terms(Priority.INTERACTIVE)):
        pass
    wish.insists = False
    wait_until(lambda: wish.cancelled)
    enough.set()
    wait_until(lambda: second == ["a"])
    later.set()
    for thread in (one, two, three):
        thread.join(20)


def test_whoever_insisted_and_is_gone_keeps_nobody_out(narrow):
    wish = Wish(insists=True)
    with narrow.engine("a", Terms(Priority.INTERACTIVE)):
        _, night, waiting = held(narrow, "b", Terms(Priority.NIGHT, wish=wish))
        wait_until(lambda: narrow._closed)
        _, late, second = held(narrow, "a", Terms(Priority.INTERACTIVE, deadline=time.monotonic() + 0.3))
        second.join(20)
        wish.cancel()
        waiting.join(20)
        assert (night, late) == ([CancelledError], [BusyError])
        with narrow.engine("a", Terms(Priority.INTERACTIVE)):
            pass


def test_an_engine_that_somebody_waits_for_too_is_not_left(narrow):
    wish = Wish()
    with (
        narrow.engine("a", Terms(Priority.NIGHT, wish=wish)),
        narrow.engine("a", Terms(Priority.INTERACTIVE)),
    ):
        with pytest.raises(BusyError), narrow.engine("b", Terms(Priority.INTERACTIVE)):
            pass
        assert not wish.cancelled


class Counted:
    """An executor whose slots are counted, and fail as they are stepped if there is no ``room``."""

    def __init__(self, executor, *, room):
        self._executor, self._room, self.open = executor, room, []

    def __getattr__(self, name):
        return getattr(self._executor, name)

    def slots(self, adapter, size):
        made = self._executor.slots(adapter, size)
        self.open.append(adapter)
        made.close = lambda: self.open.remove(adapter)
        if not self._room:
            made.step = self._full
        return made

    @staticmethod
    def _full(*_):
        raise DeviceMemoryError("the GPU's memory is full")


@pytest.mark.parametrize("room", [True, False])
def test_slots_that_are_warmed_up_are_the_drivers_or_closed(tmp_path, room):
    driver, made = Driver(), closed_engine()
    counted = Counted(made.executor, room=room)
    shelf = Shelf([engine_folder(tmp_path / "tiles")], 2**30, driver, load=lambda _: made.over(counted))
    for _ in range(2):
        shelf.warm()
        assert sorted(map(str, counted.open)) == (["None", "a", "b"] if room else [])
    shelf.close()
    assert counted.open == []
    driver.close()


def test_an_engine_is_closed_and_gone_whatever_of_it_fails_to_close(tmp_path):
    driver, made, closed = Driver(), closed_engine(), []
    engine = made.over(Counted(made.executor, room=True))

    def fails():
        raise BackendError("the device is lost")

    engine.close = lambda: closed.append(1)
    shelf = Shelf([engine_folder(tmp_path / "tiles")], 2**30, driver, load=lambda _: engine)
    shelf.warm()
    for room in driver._rooms.values():
        room.slots.close = fails
    with pytest.raises(BackendError, match="the device is lost"):
        shelf.close()
    assert (closed, shelf.loaded) == ([1], frozenset())
    driver.close()


def test_shelves_that_cannot_be_are_refused(tmp_path):
    driver = Driver()
    first, second = engine_folder(tmp_path / "x/e"), engine_folder(tmp_path / "y/e")
    with pytest.raises(InputError, match="two engines are called `e`: rename one of the folders"):
        Shelf([first, second], 2**30, driver)
    with pytest.raises(InputError, match=r"engine `e` takes .* GiB of memory .*: give a larger `--memory`"):
        Shelf([first], -1, driver)
    with pytest.raises(InputError, match="there is no engine 'x': use one of e"):
        Shelf([first], 2**30, driver).book("x")
    driver.close()


@pytest.mark.parametrize("folder", ["nosuch", "masks/crack"])
def test_a_folder_in_which_masks_of_no_type_are_found_is_refused(here, folder):
    settings = Settings([here / "tiles"], here / "data", 2**30, here / "normals", here / folder)
    with pytest.raises(DatasetError, match=f"`.*{folder}` (is not a|holds no) folder"):
        Server(settings, tell=print)


def test_what_is_sent_is_checked_as_files_are(here):
    content = (here / "masks/crack/000_mask.png").read_bytes()
    np.testing.assert_array_equal(
        opened_label(content, (160, 120)), read_mask(here / "masks/crack/000_mask.png").label
    )
    with pytest.raises(InputError, match="`image` is not a PNG, JPEG, BMP or TIFF image: convert it to one"):
        opened_image(b"GIF89a")
    with pytest.raises(MaskError, match="`mask` is 160x120 but its photograph is 160x99"):
        opened_label(content, (160, 99))
    buffer = io.BytesIO()
    Image.new("1", (5000, 4000)).save(buffer, "PNG")
    with pytest.raises(InputError, match="has 5000x4000 pixels and at most 16 million"):
        opened_image(buffer.getvalue())
