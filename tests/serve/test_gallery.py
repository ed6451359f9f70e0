"""One photograph that is damaged, gone or oddly named concerns nobody who asks for others."""

import asyncio
import base64
import io
import json
import logging
import os
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from closed_engine import closed_engine, engine_folder
from fake_engine import manifest
from PIL import Image

from stage_rt.errors import MaskError
from stage_rt.images.inputs import check_image
from stage_rt.serve import gallery
from stage_rt.serve.gallery import Gallery
from stage_rt.serve.http import application
from stage_rt.serve.metrics import Figures
from stage_rt.serve.server import Server, Settings

PROMPT = "tile+crack"
LATIN, TOLD = os.fsdecode(b"gut_\xfc.png"), r"gut_\xfc.png"


class Asked:
    """A started server, which is asked over ASGI; ``told`` is its log."""

    def __init__(self, here, engine):
        self.told = []
        settings = Settings([engine], here / "data", 2**30, here / "normals", here / "masks")
        self.server = Server(settings, tell=self.told.append, load=lambda _: closed_engine())
        self._app = application(self.server, None, Figures(), logging.getLogger("test"))
        self.server.start()
        assert self.server.ready

    def __call__(self, method, path, body=None):
        async def ask():
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=60
            ) as http:
                return await http.request(method, path, json=body)

        return asyncio.run(ask())

    def names(self):
        answer = self("GET", "/v1/photographs")
        assert answer.status_code == 200
        return [one["name"] for one in answer.json()]

    def job(self, here, **fields):
        """How a job of one pair a photograph ends, and its folder."""
        masks = [mask_of(here)]
        answer = self(
            "POST", "/v1/jobs", {"prompt": PROMPT, "masks": masks, "count": 8, "steps": 10} | fields
        )
        assert answer.status_code == 202, answer.text
        place, deadline = f"/v1/jobs/{answer.json()['id']}", time.monotonic() + 60
        while (state := self("GET", place).json())["state"] in ("waiting", "painting"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return state, here / "data/jobs" / state["id"] / "run"


@pytest.fixture
def start(here):
    """``start()`` is a server over ``here``; it is drained in the end."""
    running = []

    def started(engine=None):
        running.append(Asked(here, engine or here / "tiles"))
        return running[-1]

    yield started
    for each in running:
        each.server.drain(20)


def mask_of(here):
    return base64.b64encode((here / "masks/crack/002_mask.png").read_bytes()).decode()


def pair(here, name):
    return {"prompt": PROMPT, "photograph": name, "mask": mask_of(here), "seed": 3, "steps": 10}


def settle(path):
    """Make a file older than what counts as being written."""
    os.utime(path, (time.time() - 60,) * 2)


def test_a_name_that_is_no_text_is_told_with_its_bytes_and_painted_into(here, start):
    (here / "normals/002.png").rename(here / "normals" / LATIN)
    ask = start()
    assert ask.names() == ["000.png", "001.png", TOLD]
    path = f"/v1/photographs/{quote(TOLD, safe='')}"
    for one in (path, f"{path}/thumbnail"):
        assert Image.open(io.BytesIO(ask("GET", one).content)).size == (160, 120)
    assert ask("POST", "/v1/masks", {"photograph": TOLD, "type": "crack"}).status_code == 200
    answer = ask("POST", "/v1/pairs", pair(here, TOLD)).json()
    assert (answer["state"], answer["photograph"]) == ("done", TOLD)
    verdict = ask("POST", f"/v1/pairs/{answer['id']}/verdict", {"verdict": "accepted"})
    assert verdict.status_code == 200
    state, run = ask.job(here)
    assert (state["state"], state["done"]) == ("done", 8)
    assert {line["normal"] for line in manifest(run)} == {"000.png", "001.png", "gut_\ufffd.png"}
    order = json.loads((run.parent / "job.json").read_text())
    assert order["photographs"] == ["000.png", "001.png", TOLD]


def test_no_two_photographs_have_one_name():
    names = [
        b"a.png",
        b"\xfc.png",
        b"\xe4.png",
        rb"\xfc.png",
        b"\\xfc\xfc.png",
        b"\xfc\xfc.png",
        "ü.png".encode(),
    ]
    files = [Path(os.fsdecode(b"/normals/" + name)) for name in names]
    named = Gallery(files).paths
    assert list(named.values()) == files
    assert list(named) == [
        "a.png",
        r"\\xfc.png",
        r"\xe4.png",
        r"\xfc.png",
        r"\xfc\xfc.png",
        r"\\xfc\xfc.png",
        "ü.png",
    ]
    # Whatever else there is, as jobs hold them.
    assert list(Gallery([files[2]]).paths) == [r"\xe4.png"]


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_photograph_that_cannot_be_read_is_told_of_and_left_out_until_it_is_mended(here, start, kept):
    damaged = here / "normals/001.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: int(kept * len(whole))])
    ask = start()
    (told,) = ask.told
    assert told.startswith(f"a photograph is left out of the gallery: `{damaged}` is ")
    assert ask.names() == ["000.png", "002.png"]
    state, run = ask.job(here)
    assert state["state"] == "done"
    assert {line["normal"] for line in manifest(run)} == {"000.png", "002.png"}
    answer = ask("GET", "/v1/photographs/001.png")
    assert (answer.status_code, str(damaged) in answer.json()["error"]["problem"]) == (422, True)
    job = {"prompt": PROMPT, "masks": [mask_of(here)], "count": 1, "photographs": ["001.png"]}
    answer = ask("POST", "/v1/jobs", job)
    assert (answer.status_code, str(damaged) in answer.json()["error"]["problem"]) == (422, True)
    damaged.unlink()
    assert ask.names() == ["000.png", "002.png"]
    damaged.write_bytes(whole)
    assert ask.names() == ["000.png", "001.png", "002.png"]
    assert ask("POST", "/v1/pairs", pair(here, "001.png")).json()["state"] == "done"


def test_photographs_are_decoded_at_one_start_and_not_at_the_next(here, start, monkeypatch):
    decoded = []
    monkeypatch.setattr(gallery, "check_image", lambda path: decoded.append(path.name) or check_image(path))
    for path in (here / "normals").iterdir():
        settle(path)
    for names in (["000.png", "001.png", "002.png"], []):
        start().server.drain(20)
        assert decoded == names
        decoded.clear()
    Image.new("RGB", (160, 120), (9, 9, 9)).save(here / "normals/001.png")
    start()
    assert decoded == ["001.png"]


def test_a_start_that_is_broken_off_looks_at_no_more_photographs(here, monkeypatch):
    settings = Settings([here / "tiles"], here / "data", 2**30, here / "normals")
    server, decoded = Server(settings, tell=print, load=lambda _: closed_engine()), []

    def stopping(path):
        decoded.append(path.name)
        server.draining = True
        return check_image(path)

    monkeypatch.setattr(gallery, "check_image", stopping)
    server.start()
    assert (decoded, server.ready) == (["000.png"], False)
    server.drain(20)


def test_a_photograph_that_is_gone_is_not_found_and_the_others_are_painted_into(here, start):
    ask = start()
    (here / "normals/001.png").unlink()
    for answer in (
        ask("POST", "/v1/pairs", pair(here, "001.png")),
        ask("GET", "/v1/photographs/001.png"),
        ask("GET", "/v1/photographs/001.png/thumbnail"),
        ask("POST", "/v1/masks", {"photograph": "001.png", "type": "crack"}),
        ask(
            "POST",
            "/v1/jobs",
            {"prompt": PROMPT, "masks": [mask_of(here)], "count": 1, "photographs": ["001.png"]},
        ),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "problem": "photograph '001.png' is not there any more",
            "remedy": "put it back or choose another",
        }
    assert ask.names() == ["000.png", "002.png"]
    assert ask("POST", "/v1/pairs", pair(here, "002.png")).json()["state"] == "done"
    assert ask.job(here)[0]["state"] == "done"
    (here / "normals/001.png").mkdir()
    answer = ask("POST", "/v1/pairs", pair(here, "001.png"))
    assert (answer.status_code, answer.json()["error"]["problem"]) == (
        422,
        "photograph '001.png' cannot be read (Is a directory)",
    )


def test_sentences_quote_paths_that_are_no_text(here, start, monkeypatch):
    (here / "normals" / LATIN).write_bytes(b"")
    ask = start(engine_folder(here / os.fsdecode(b"w\xe4nde")))
    assert [one["name"] for one in ask("GET", "/v1/engines").json()] == ["w\ufffdnde"]
    answer = ask("GET", f"/v1/photographs/{quote(TOLD, safe='')}")
    assert (answer.status_code, r"gut_\udcfc.png` is not a PNG" in answer.json()["error"]["problem"]) == (
        422,
        True,
    )

    def fill(engine, job, folder, **told):
        raise MaskError(f"`{LATIN}` shows nothing")

    monkeypatch.setattr("stage_rt.serve.jobs.fill", fill)
    # The thread of the jobs is there for the next one.
    runs = []
    for _ in range(2):
        state, run = ask.job(here)
        assert (state["state"], state["error"]) == ("failed", r"`gut_\udcfc.png` shows nothing")
        runs.append(run)
    ask.server.drain(20)
    assert {json.loads((run.parent / "job.json").read_text())["state"] for run in runs} == {"failed"}


def test_a_file_of_a_run_that_goes_while_it_is_asked_for_is_not_found(here, start, monkeypatch):
    ask = start()
    state, run = ask.job(here)
    page = run / "report/index.html"
    monkeypatch.setattr("stage_rt.serve.http._listed", lambda *_: page.unlink() or page)
    answer = ask("GET", f"/v1/jobs/{state['id']}/files/report/index.html")
    assert (answer.status_code, answer.json()["error"]["problem"]) == (
        404,
        "there is no such file in the run",
    )
