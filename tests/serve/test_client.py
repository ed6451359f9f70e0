"""``stage-rt client`` against a server: the pair in a data set, and what goes wrong in a sentence."""

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import httpx
import pytest
from closed_engine import closed_engine

from stage_rt.cli import main
from stage_rt.errors import InputError, StageError
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.serve import client as module
from stage_rt.serve.client import Client, ServerError, paint_file


def options(site, output, prompt="tile+crack"):
    image, mask = site.here / "normals/001.png", site.here / "masks/crack/002_mask.png"
    files = ["--image", str(image), "--mask", str(mask), "-o", str(output)]
    return ["client", site.url, *files, "--prompt", prompt, "--seed", "3", "--steps", "15"]


def run(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code, *capsys.readouterr()


def test_a_pair_is_put_into_a_data_set(site, tmp_path, capsys):
    code, out, _ = run([*options(site, tmp_path / "set"), "--json"], capsys)
    assert code == 0
    job = Job(
        [site.here / "normals/001.png"],
        [site.here / "masks/crack/002_mask.png"],
        "tile+crack",
        1,
        3,
        True,
        4,
        steps=15,
    )
    fill(closed_engine(), job, tmp_path / "run")
    state = json.loads(out)
    assert (tmp_path / "set/test/crack/001.png").read_bytes() == (
        tmp_path / "run/test/crack/000000.png"
    ).read_bytes()
    assert (tmp_path / "set/ground_truth/crack/001_mask.png").is_file()
    assert state["steps"] == 15


def test_a_second_pair_of_a_photograph_leaves_the_first_one_alone(site, tmp_path):
    image, mask = site.here / "normals/001.png", site.here / "masks/crack/002_mask.png"
    with Client(site.url) as client:
        states = [
            paint_file(client, image, mask, tmp_path, "tile+crack", seed=seed, steps=15)
            for seed in (3, 4, 3, 4, 5)
        ]
    names = ["001", "001_2", "001", "001_2", "001_3"]
    assert [state["image"] for state in states] == [
        str(tmp_path / f"test/crack/{name}.png") for name in names
    ]
    assert [state["mask"] for state in states] == [
        str(tmp_path / f"ground_truth/crack/{name}_mask.png") for name in names
    ]
    assert len({path.read_bytes() for path in (tmp_path / "test/crack").iterdir()}) == 3


@pytest.mark.parametrize("least", [0.0, 1.0])
def test_a_pair_that_stays_weak_is_told_of(site, tmp_path, monkeypatch, capsys, least):
    monkeypatch.setattr(module, "paint_file", partial(paint_file, min_fill=least, retries=0))
    told = run(options(site, tmp_path), capsys)
    weak = ", weak: a square of it less than 100%" if least else ""
    assert told[0] == 0
    assert re.fullmatch(rf"`{tmp_path}/test/crack/001.png`, \d+% of the label painted{weak}\n", told[1])


class Painted:
    """A client whose pairs come at the same moment, as many as ``together``, each with bytes of its own."""

    def __init__(self, together=1):
        self._all = threading.Barrier(together)

    def pair(self, image, mask, prompt, **options):
        self._all.wait(60)
        seed = options["seed"]
        return {"state": "done"}, b"image %d" % seed, b"label %d" % seed


@pytest.fixture
def sent(tmp_path):
    """A photograph and a mask; what is in them does not matter to `Painted`."""
    paths = tmp_path / "part.png", tmp_path / "mask.png"
    for path in paths:
        path.write_bytes(b"sent")
    return paths


def test_pairs_that_come_together_are_all_kept(tmp_path, sent):
    seeds = range(8)
    client, output = Painted(len(seeds)), tmp_path / "set"
    with ThreadPoolExecutor(len(seeds)) as pool:
        states = list(
            pool.map(lambda seed: paint_file(client, *sent, output, "tile+crack", seed=seed), seeds)
        )
    assert {str(path) for path in (output / "test/crack").iterdir()} == {state["image"] for state in states}
    for seed, state in zip(seeds, states, strict=True):
        with open(state["image"], "rb") as image, open(state["mask"], "rb") as label:
            assert (image.read(), label.read()) == (b"image %d" % seed, b"label %d" % seed)
    assert sorted(path.name for path in output.iterdir()) == ["client.json", "ground_truth", "test"]


def test_of_a_pair_that_cannot_be_written_nothing_stays_and_what_was_there_does(tmp_path, sent, monkeypatch):
    output = tmp_path / "set"
    paint_file(Painted(), *sent, output, "tile+crack", seed=1)
    before = files_of(output)

    def full(path, destination):
        if os.fspath(destination).endswith("part_2.png"):
            raise OSError(28, "No space left on device", path, None, destination)
        return replace_(path, destination)

    replace_ = os.replace
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        StageError, match=r"writing to `.*part_2.png` failed \(No space left on device\): mend"
    ):
        paint_file(Painted(), *sent, output, "tile+crack", seed=2)
    assert files_of(output) == before
    paint_file(Painted(), *sent, output, "tile+crack", seed=1)
    assert files_of(output) == before


def unwritable(tmp_path, case):
    """A folder that no pair can be put into, and what is told of it."""
    output = tmp_path / "set"
    if case == "below a file":
        (tmp_path / "file").touch()
        return tmp_path / "file" / "set", f"writing to `{tmp_path}/file/set` failed (Not a directory)"
    if case == "too long":
        return tmp_path / ("x" * 300), f"writing to `{tmp_path}/{'x' * 300}` failed (File name too long)"
    if case == "leads nowhere":
        output.symlink_to(tmp_path / "gone" / "set")
        return output, f"writing to `{output}/client.json` failed (No such file or directory)"
    output.mkdir()
    (output / "client.json").touch()
    if case == "a file inside":
        (output / "ground_truth").touch()
        return output, f"writing to `{output}/ground_truth/crack` failed (Not a directory)"
    output.chmod(0o555)
    return output, f"`{output}` may not be written"


@pytest.mark.parametrize(
    "case",
    [
        "below a file",
        "too long",
        "leads nowhere",
        "a file inside",
        pytest.param(
            "read only",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root"),
        ),
    ],
)
def test_where_no_pair_can_be_put_none_is_painted(tmp_path, sent, case):
    output, problem = unwritable(tmp_path, case)
    before = list(tmp_path.rglob("*"))
    with pytest.raises(StageError) as told:
        paint_file(Client("http://127.0.0.1:9"), *sent, output, "tile+crack")
    assert told.value.problem == problem
    assert list(tmp_path.rglob("*")) == before


def test_a_photograph_whose_name_leaves_a_pair_none_is_refused_before_it_is_painted(tmp_path, sent):
    longest = tmp_path / ("ü" * 113 + ".png")
    longest.write_bytes(b"sent")
    for seed in (1, 2):
        paint_file(Painted(), longest, sent[1], tmp_path / "set", "tile+crack", seed=seed)
    assert len(list((tmp_path / "set/ground_truth/crack").iterdir())) == 2
    longer = longest.with_stem(longest.stem + "xx")
    with pytest.raises(InputError) as told:
        paint_file(Client("http://127.0.0.1:9"), longer, sent[1], tmp_path / "set", "tile+crack")
    assert (
        str(told.value) == f"the name of `{longer}` is too long for its pair's files: make it 2 bytes shorter"
    )


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_not_its_own_is_left_as_it_is(site, tmp_path, capsys):
    real, finished = tmp_path / "part", tmp_path / "run"
    (real / "test/crack").mkdir(parents=True)
    (real / "test/crack/000.png").write_bytes(b"a real defect")
    job = Job(
        [site.here / "normals/001.png"], [site.here / "masks/crack/002_mask.png"], "tile+crack", 1, 3, True, 4
    )
    fill(closed_engine(), replace(job, steps=15), finished)
    for folder in (real, finished):
        before = files_of(folder)
        code, out, err = run(options(site, folder), capsys)
        assert (code, out) == (1, "")
        told = "holds files that `stage-rt client` did not put there: give an empty folder as `-o`"
        assert err == f"error: `{folder}` {told}\n"
        assert files_of(folder) == before
    code, _, err = run(options(site, real / "test/crack/000.png"), capsys)
    assert (code, err.endswith("000.png` is a file: give a folder as `-o`\n")) == (1, True)


def test_a_folder_of_its_own_takes_another_pair(site, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/.keep").touch()
    for count in (1, 2):
        code, _, err = run([*options(site, tmp_path / "set"), "--seed", str(count)], capsys)
        assert (code, err) == (0, "")
        assert len(list((tmp_path / "set/test/crack").iterdir())) == count


def test_what_the_server_refuses_is_told(site, tmp_path, capsys):
    code, _, err = run(options(site, tmp_path / "set", "tile"), capsys)
    assert (code, err.startswith("error: unknown prompt 'tile': use one of")) == (1, True)
    assert not (tmp_path / "set").exists()


def test_a_server_that_is_not_there_is_told(site, tmp_path):
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(
            ServerError, match=r"`http://127.0.0.1:9` cannot be reached .*: see that the server runs"
        ),
    ):
        client.engines()
    with Client(site.url) as client, pytest.raises(InputError, match=r"`.*none.png` cannot be read"):
        paint_file(client, tmp_path / "none.png", tmp_path / "none.png", tmp_path, "tile+crack")


def test_a_run_is_ordered_and_followed(site):
    mask = (site.here / "masks/crack/001_mask.png").read_bytes()
    with Client(site.url) as client:
        assert [one["name"] for one in client.engines()] == ["tiles"]
        job = client.order([mask], "tile+crack", 3, steps=10, photographs=["000.png"])
        states = list(client.follow(job["id"]))
    assert states[-1]["state"] == "done"
    assert [state["done"] for state in states] == sorted(state["done"] for state in states)


@pytest.fixture
def answering(monkeypatch):
    """``answering(answer, ...)`` is a client who gets these, and the seconds that it slept."""

    def made(*answers):
        slept, left = [], list(answers)
        monkeypatch.setattr(module.time, "sleep", slept.append)
        client = Client("http://server")
        client.close()
        client._http = httpx.Client(
            base_url="http://server", transport=httpx.MockTransport(lambda request: left.pop(0))
        )
        return client, slept

    return made


def events(*states):
    text = "".join(f"data: {json.dumps({'state': state})}\n\n" for state in states)
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream; charset=utf-8"})


def test_a_pair_that_was_cancelled_meanwhile_is_told(answering):
    client, _ = answering(httpx.Response(200, json={"state": "cancelled", "image": None, "mask": None}))
    with client, pytest.raises(ServerError, match="the pair was cancelled: send it again"):
        client.pair(b"", b"", "tile+crack")


def test_what_is_no_such_server_is_told(answering):
    client, _ = answering(*[httpx.Response(200, html="<html>")] * 3)
    for ask in (client.engines, lambda: client.pair(b"", b"", ""), lambda: next(client.follow("x"))):
        with pytest.raises(ServerError, match="`http://server` does not answer as `stage-rt serve` does"):
            ask()
    client.close()


def test_a_date_to_come_again_at_is_waited_for_a_while(answering):
    later = {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}
    busy = [httpx.Response(429, headers=headers) for headers in (later, {"retry-after": "3"}, {})]
    client, slept = answering(*busy, httpx.Response(200, json=[]))
    with client:
        assert client.engines() == []
    assert slept == [10, 3, 10]


def test_streams_that_end_at_once_are_not_asked_for_at_once(answering):
    client, slept = answering(events("painting"), events("painting"), events("painting", "done"))
    with client:
        assert [one["state"] for one in client.follow("x")] == ["painting"] * 3 + ["done"]
    assert slept == [1, 1]


@pytest.mark.parametrize("end", ["/v1", "/v1/", "/"])
def test_the_address_of_the_api_is_that_of_the_server(site, end):
    with Client(site.url + end) as client:
        assert [one["name"] for one in client.engines()] == ["tiles"]


@pytest.mark.parametrize(
    "url", ["localhost:8765", "127.0.0.1:8765", "ftp://server", "http://", "http://x:port", "x y"]
)
def test_an_address_that_is_none_is_told_and_wrong_usage(tmp_path, capsys, url):
    with pytest.raises(InputError, match="is no address of a server: begin with `http://`"):
        Client(url)
    files = ["--image", "a", "--mask", "b", "--prompt", "c", "-o", str(tmp_path / "set")]
    code, _, err = run(["client", url, *files], capsys)
    assert code == 2
    assert "`http://`" in err


@pytest.mark.parametrize("token", ["schlüssel", "a\nb"])
def test_a_token_that_no_header_holds_is_refused(token):
    with pytest.raises(InputError, match="the token has characters that no token has: copy it again"):
        Client("http://server", token)


def test_without_the_extra_it_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['httpx'] = None; from stage_rt.cli import main; "
        "main(['client', 'http://x', '--image', 'a', '--mask', 'b', '--prompt', 'c', '-o', 'd'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "which is not installed: `pip install 'stage-rt[serve]'`" in ended.stderr
