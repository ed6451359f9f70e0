"""The API over a socket: what is given, what is refused, and that nothing of a client's is taken for a path."""

import base64
import io
import json
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import numpy as np
import pytest
from closed_engine import closed_engine
from fake_engine import contents
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from stage_rt.run.fill import fill
from stage_rt.run.job import Job

PROMPT = "tile+crack"
DESCRIBED = "see `/openapi.json`, which describes every request"


@pytest.fixture
def http(site):
    with client(site) as made:
        yield made


@contextmanager
def client(site, **options):
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False, **options) as made:
        wait_until(lambda: made.get("/readyz").status_code == 200)
        yield made


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def text_of(path):
    return base64.b64encode(path.read_bytes()).decode()


def order(site, **fields):
    mask = text_of(site.here / "masks/crack/002_mask.png")
    return {"prompt": PROMPT, "photograph": "001.png", "mask": mask, "seed": 3, "steps": 15} | fields


def job_order(site, **fields):
    return {
        "prompt": PROMPT,
        "masks": order(site)["mask"].split(),
        "count": 5,
        "seed": 4,
        "steps": 15,
    } | fields


def painted_alone(site, seed=3):
    folder = site.here / f"alone{seed}"
    job = Job(
        [site.here / "normals/001.png"],
        [site.here / "masks/crack/002_mask.png"],
        PROMPT,
        1,
        seed,
        True,
        4,
        steps=15,
    )
    fill(closed_engine(), job, folder)
    return (folder / "test/crack/000000.png").read_bytes()


def news(answer):
    return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


def test_a_pair_as_png_and_as_json_has_the_bytes_of_a_run(site, http):
    answer = http.post("/v1/pairs", json=order(site), headers={"accept": "image/png"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content == painted_alone(site)
    assert float(answer.headers["stage-fill"]) >= 0
    state = http.post("/v1/pairs", json=order(site)).json()
    assert (state["state"], state["share"], state["steps"]) == ("done", 1.0, 15)
    assert http.get(state["image"]).content == painted_alone(site)
    label = np.asarray(Image.open(io.BytesIO(http.get(state["mask"]).content)))
    np.testing.assert_array_equal(label, np.asarray(Image.open(site.here / "masks/crack/002_mask.png")))
    sent = order(site, photograph=None, image=text_of(site.here / "normals/001.png"))
    assert http.get(http.post("/v1/pairs", json=sent).json()["image"]).content == painted_alone(site)


def test_a_pair_is_watched_and_judged(site, http):
    answer = http.post("/v1/pairs", json=order(site, wait=False, steps=None))
    assert answer.status_code == 202
    place = answer.headers["location"]
    with http.stream("GET", f"{place}/events") as stream:
        told = news(stream)
    assert told[-1]["state"] == "done"
    previews = [one["preview"] for one in told if "preview" in one]
    assert Image.open(io.BytesIO(base64.b64decode(previews[-1].partition(",")[2]))).size == (160, 120)
    assert http.get(place).json()["fill"] == told[-1]["fill"]
    assert http.post(f"{place}/verdict", json={"verdict": "accepted"}).json()["verdict"] == "accepted"
    again = http.post(f"{place}/verdict", json={"verdict": "rejected"})
    assert (again.status_code, again.json()["error"]["problem"]) == (422, "the pair was accepted already")


def test_a_job_is_followed_to_its_report(site, http):
    answer = http.post("/v1/jobs", json=job_order(site))
    assert answer.status_code == 202
    place = f"/v1/jobs/{answer.json()['id']}"
    with http.stream("GET", f"{place}/events") as stream:
        told = news(stream)
    assert (told[-1]["state"], told[-1]["share"], told[-1]["done"]) == ("done", 1.0, 5)
    page = http.get(told[-1]["report"])
    assert page.headers["content-type"].startswith("text/html")
    for path in ("report/report.js", "test/crack/000003.png", "types/../run.json"):
        assert http.get(f"{place}/files/{path}").status_code in (200, 404)
    assert http.get(f"{place}/files/test/crack/000003.png").headers["content-type"] == "image/png"
    assert http.get("/v1/jobs").json()[0]["id"] == answer.json()["id"]


@pytest.mark.parametrize(
    "path",
    [
        "../job.json",
        "%2e%2e/job.json",
        "..%2fjob.json",
        "/etc/passwd",
        ".lock",
        "",
        "report",
        "test/crack/.",
        "x%00y",
    ],
)
def test_nothing_but_what_a_run_lists_is_given(site, http, path):
    name = http.post("/v1/jobs", json=job_order(site, count=1)).json()["id"]
    wait_until(lambda: http.get(f"/v1/jobs/{name}").json()["state"] == "done")
    with socket.create_connection(("127.0.0.1", httpx.URL(site.url).port)) as raw:
        host = httpx.URL(site.url).netloc.decode()
        raw.sendall(
            f"GET /v1/jobs/{name}/files/{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
        )
        assert raw.makefile("rb").readline().split()[1] == b"404"


def test_what_is_served_is_told(site, http):
    (engine,) = http.get("/v1/engines").json()
    assert (engine["name"], engine["steps"], engine["masks"], engine["slots"]) == (
        "tiles",
        [10, 40],
        ["crack"],
        4,
    )
    assert {"name": PROMPT, "type": "crack", "min_fill": None} in engine["prompts"]
    names = [one["name"] for one in http.get("/v1/photographs").json()]
    assert names == ["000.png", "001.png", "002.png"]
    small = Image.open(io.BytesIO(http.get("/v1/photographs/001.png/thumbnail").content))
    assert small.size == (160, 120)
    masks = [
        http.post("/v1/masks", json={"photograph": "001.png", "type": "crack", "seed": seed}).content
        for seed in (1, 2, 1)
    ]
    assert masks[0] == masks[2] != masks[1]
    assert Image.open(io.BytesIO(masks[0])).size == (160, 120)
    api = http.get("/openapi.json").json()
    assert {"/v1/pairs", "/v1/jobs", "/v1/engines", "/healthz", "/readyz", "/metrics"} <= set(api["paths"])


def test_what_is_painted_is_promised_of_models_that_paint_photographs_whole_too(http):
    about = http.get("/openapi.json").json()["info"]
    assert "exactly" not in about["summary"]
    assert "a narrow feather around it where a model paints photographs whole" in about["description"]


def test_figures_are_counted(site, http):
    http.post("/v1/pairs", json=order(site))
    http.post("/v1/pairs", json={})
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }
    assert found["stage_rt_pairs_total", "tiles", PROMPT, "done"] >= 1
    assert found["stage_rt_refusals_total", "422"] >= 1
    assert 0 < found["stage_rt_slots_occupied_total", "tiles"] <= found["stage_rt_slots_total", "tiles"]
    assert found[("stage_rt_pairs_waiting",)] == 0
    assert found["stage_rt_step_seconds_count", "tiles"] >= 15


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": "tile"}, "unknown prompt 'tile'"),
        ({"engine": "../tiles"}, "there is no engine '../tiles'"),
        ({"photograph": "../normals/001.png"}, "there is no photograph '../normals/001.png'"),
        ({"photograph": None}, "give either `image` or `photograph`"),
        ({"mask": "ÿ"}, "`mask` is not base64"),
        ({"mask": "AAAA"}, "`mask` is not a PNG"),
        ({"steps": 9}, "sampler `stage` takes from 10 to 40 steps, not 9"),
        ({"steps": 41}, "sampler `stage` takes from 10 to 40 steps, not 41"),
        ({"seed": -1}, "`body.seed` is not valid"),
        ({"other": 1}, "`body.other` is not valid"),
        ({"min_fill": 2}, "`body.min_fill` is not valid"),
    ],
)
def test_an_order_that_is_wrong_is_one_sentence(site, http, change, told):
    answer = http.post("/v1/pairs", json=order(site, **change))
    assert answer.status_code == 422
    assert answer.json()["error"]["problem"].startswith(told)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/pairs/x", None, 404),
        ("GET", "/v1/pairs/x/image.png", None, 404),
        ("DELETE", "/v1/jobs/x", None, 404),
        ("GET", "/v1/photographs/..%2f000.png", None, 404),
        ("GET", "/page/..%2fhttp.py", None, 404),
        ("GET", "/v2/pairs", None, 404),
        ("PUT", "/v1/pairs", None, 405),
        ("POST", "/v1/pairs", b"{", 422),
        ("POST", "/v1/pairs", b"\xff\xfe", 422),
        ("POST", "/v1/pairs", b"[" * 100_000, 400),
        ("POST", "/v1/masks", b'{"photograph": "001.png", "type": "hole"}', 422),
        ("POST", "/v1/jobs", b'{"prompt": "tile+crack", "masks": [], "count": 1}', 422),
    ],
)
def test_what_is_not_there_or_no_request_is_refused(http, method, path, body, status):
    headers = {"content-type": "application/json"}
    answer = http.request(method, path, content=body, headers=headers)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


@pytest.mark.parametrize(
    ("method", "path", "body", "problem", "remedy"),
    [
        ("POST", "/v1/pairs", {}, "`body.prompt` is missing", "add it"),
        (
            "POST",
            "/v1/pairs",
            {"prompt": PROMPT, "mask": "", "seed": -1},
            "`body.seed` is not valid (Input should be greater than or equal to 0)",
            DESCRIBED,
        ),
        ("GET", "/v1/pair", None, "there is no `GET /v1/pair`", DESCRIBED),
        ("PUT", "/v1/pairs", None, "there is no `PUT /v1/pairs`", DESCRIBED),
    ],
)
def test_what_a_program_asks_wrongly_is_told_with_the_way_out(http, method, path, body, problem, remedy):
    answer = http.request(method, path, json=body)
    assert answer.json() == {"error": {"problem": problem, "remedy": remedy}}


def test_other_sites_and_bodies_without_end_are_refused(site, http):
    assert http.get("/v1/engines", headers={"host": "evil.example"}).status_code == 421
    assert http.get("/v1/engines", headers={"origin": "http://evil.example"}).status_code == 403
    assert http.get("/v1/engines", headers={"origin": site.url}).status_code == 200
    url = httpx.URL(site.url)
    for framing in ("content-length: 99999999999", "transfer-encoding: chunked"):
        with socket.create_connection(("127.0.0.1", url.port), timeout=30) as raw:
            raw.sendall(
                f"POST /v1/pairs HTTP/1.1\r\nhost: {url.netloc.decode()}\r\n{framing}\r\n\r\n".encode()
            )
            with suppress(OSError):
                for _ in range(80 if "chunked" in framing else 0):
                    raw.sendall(b"100000\r\n" + b"x" * 2**20 + b"\r\n")
            assert raw.makefile("rb").readline().split()[1] == b"413"


def test_a_request_has_an_id_and_a_line(site, http):
    answer = http.get("/healthz", headers={"x-request-id": "order-66"})
    assert answer.headers["x-request-id"] == "order-66"
    other = http.get("/healthz", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}", other)
    assert re.search(r"INFO order-66 GET /healthz 200 0\.\d+ s\n", site.log())


def test_a_client_that_hangs_up_is_painted_no_more(open_site, here):
    site = open_site(delay=0.05)
    with client(site) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/pairs", json=order(site, steps=40), timeout=1)
        wait_until(lambda: 'state="cancelled"' in http.get("/metrics").text, 20)


def test_a_full_queue_says_when_to_come_again(open_site):
    site = open_site(delay=0.02)
    with client(site) as http:
        answers = [http.post("/v1/pairs", json=order(site, wait=False, seed=n)) for n in range(40)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert int(refused[-1].headers["retry-after"]) >= 1
        for answer in answers:
            if answer.status_code == 202:
                http.delete(answer.headers["location"])


def test_a_token_is_asked_for_and_kept_by_a_browser(open_site, here):
    (here / "token").write_text("a secret of the line\n")
    site = open_site("--token-file", str(here / "token"))
    with client(site) as http:
        assert http.get("/v1/engines").status_code == 401
        assert http.get("/v1/engines", headers={"authorization": "Bearer wrong"}).status_code == 401
        bearer = {"authorization": "Bearer a secret of the line"}
        assert http.get("/v1/engines", headers=bearer).status_code == 200
        assert [http.get(path).status_code for path in ("/", "/healthz", "/metrics")] == [200, 200, 401]
        assert http.post("/v1/session", json={"token": "wrong"}).status_code == 401
        assert http.post("/v1/session", json={"token": "a secret of the line"}).status_code == 204
        assert http.get("/v1/engines").status_code == 200


def test_a_signal_lets_pairs_end_and_puts_jobs_aside(open_site, here):
    site = open_site(delay=0.01)
    with client(site) as http, ThreadPoolExecutor(3) as pool:
        name = http.post("/v1/jobs", json=job_order(site, count=50)).json()["id"]
        waiting = [pool.submit(http.post, "/v1/pairs", json=order(site, seed=n)) for n in range(3)]
        wait_until(lambda: "stage_rt_pairs_waiting 3.0" in http.get("/metrics").text)
        site.process.send_signal(signal.SIGTERM)
        assert [each.result(60).json()["state"] for each in waiting] == ["done"] * 3
    # Not by `close`, whose signal would be the second one.
    assert site.process.wait(60) == 128 + 15
    assert json.loads((here / "data/jobs" / name / "job.json").read_text())["state"] == "waiting"
    assert "stopped: run the same command again to go on" in site.log()


def test_a_job_outlives_a_kill_and_has_the_bytes_of_one_that_was_left_alone(open_site, here):
    site = open_site(delay=0.005)
    with client(site) as http:
        name = http.post("/v1/jobs", json=job_order(site, count=9)).json()["id"]
        run = here / "data/jobs" / name / "run"
        wait_until(lambda: list(run.glob("test/crack/00000[0-9].png")))
    site.process.kill()
    site.close()
    assert len(list(run.glob("test/crack/*.png"))) < 9
    again = open_site()
    with client(again) as http:
        wait_until(lambda: http.get(f"/v1/jobs/{name}").json()["state"] == "done")
    masks = sorted((here / "data/jobs" / name / "masks").iterdir())
    normals = sorted((here / "normals").iterdir())
    fill(closed_engine(), Job(normals, masks, PROMPT, 9, 4, True, 4, steps=15, augment=True), here / "alone")
    assert contents(run) == contents(here / "alone")


def test_many_connections_and_half_sent_bodies_leave_the_server_alone(site, http):
    port = httpx.URL(site.url).port
    host = httpx.URL(site.url).netloc
    half = b"POST /v1/pairs HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: 1000\r\n\r\n{"
    raw = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    for number, each in enumerate(raw):
        each.sendall(half if number % 2 else b"GET / HT")
    assert http.post("/v1/pairs", json=order(site)).json()["state"] == "done"
    for each in raw:
        each.close()
    assert http.get("/readyz").status_code == 200


def test_two_servers_do_not_share_a_folder_nor_is_one_open_to_all(site, tmp_path):
    from subprocess import run

    again = run(
        [*site.process.args[:5], "--data", site.here / "data", "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "is being filled by another process" in again.stderr
    open_to_all = run(
        [*site.process.args[:5], "--data", tmp_path / "other", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert open_to_all.returncode == 1
    assert "`0.0.0.0` can be reached from other machines: give a `--token-file`" in open_to_all.stderr
