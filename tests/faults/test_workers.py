"""Runs of two worker processes: whoever is killed and when, the finished run has the bytes of one process."""

import os
import random
import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from fake_engine import PROMPT, FakeEngine, command, contents, labels, photographs
from process_ids import gone

from stage_rt.run.fill import fill
from stage_rt.run.job import Job

TESTS = Path(__file__).parents[1] / "support"
COUNT = 12


@pytest.fixture
def job(tmp_path):
    normals, masks = photographs(tmp_path / "normals", 3), labels(tmp_path / "masks", 4)
    return Job(normals, masks, PROMPT, COUNT, 0, True, 2)


@pytest.fixture
def start(job, tmp_path):
    started = []

    def run(delay, limit=None):
        arguments = command(tmp_path, tmp_path / "run", COUNT, "--workers", "2", delay=delay)
        process = subprocess.Popen(
            arguments,
            cwd=TESTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A group of its own, as a shell gives it.
            start_new_session=True,
            preexec_fn=limit,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def whole(job, tmp_path):
    fill(FakeEngine(batch=2), job, tmp_path / "whole")
    return contents(tmp_path / "whole")


def workers_of(process):
    """The ids of a command's worker processes."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for(process, seconds):
    """Whether a process ended within a time."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def started(process):
    return len(workers_of(process)) == 2 or process.poll() is not None


def pairs_in(run):
    return len(list(run.glob("test/*/*.png")))


def test_a_worker_that_is_killed_is_replaced(start, whole, tmp_path):
    run = tmp_path / "run"
    process = start(0.05)
    wait_until(lambda: pairs_in(run) >= 2)
    victim = workers_of(process)[0]
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith(f"{COUNT} pairs in")
    assert err == "notice: a worker ended (by signal 9), what it had in hand goes to another\n"
    assert contents(run) == whole


def test_workers_end_with_a_driver_that_is_killed(start, tmp_path):
    process = start(100)
    wait_until((tmp_path / "painting").exists)
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    wait_until(lambda: all(map(gone, workers)))


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_for_all_of_them_ends_the_run_as_it_ends_one_process(start, job, whole, tmp_path, signum):
    run = tmp_path / "run"
    process = start(0.1)
    wait_until(lambda: pairs_in(run) >= 2)
    workers = workers_of(process)
    os.killpg(process.pid, signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signum, "")
    assert err == "stopped: run the same command again to go on\n"
    assert all(map(gone, workers))
    images = {path.stem for path in run.glob("test/*/*")}
    assert {path.stem for path in run.glob("ground_truth/*/*")} == {f"{name}_mask" for name in images}
    assert 2 <= len(images) < COUNT
    fill(FakeEngine(batch=2), job, run)
    assert contents(run) == whole


def test_what_a_worker_cannot_read_is_the_error_of_the_run(start, tmp_path):
    process = start(0.05)
    wait_until(lambda: pairs_in(tmp_path / "run") >= 2)
    for photograph in (tmp_path / "normals").iterdir():
        photograph.write_bytes(b"")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: `")
    assert err.count("\n") == 1


def test_two_commands_do_not_fill_one_folder_and_a_full_disk_ends_one(start, tmp_path):
    first = start(100)
    wait_until((tmp_path / "painting").exists)
    _, err = start(0).communicate(timeout=60)
    assert err == f"error: `{tmp_path}/run` is being filled by another process: wait for it to end\n"
    first.kill()
    first.wait()
    full = start(0, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)))
    out, err = full.communicate(timeout=60)
    assert (full.returncode, out) == (3, "")
    assert err.startswith(f"error: writing to `{tmp_path}/run")
    assert err.endswith("failed (File too large): mend that and run the same command again\n")
    assert err.count("\n") == 1
    assert not list((tmp_path / "run").rglob("*.png"))
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.slow
def test_killed_at_forty_random_moments(start, job, whole, tmp_path):
    dice, run = random.Random(0), tmp_path / "run"
    kills = {"the driver": 0, "a worker": 0}
    while sum(kills.values()) < 40:
        if pairs_in(run) >= COUNT - 2:
            # Nearly all is done: another one, so that there is something to interrupt.
            fill(FakeEngine(batch=2), job, run)
            assert contents(run) == whole
            run.rename(tmp_path / f"done{len(list(tmp_path.iterdir()))}")
        process = start(0.03)
        wait_until(partial(started, process))
        if wait_for(process, dice.random() * 4):
            # Done before its moment came: nothing was killed.
            assert process.returncode == 0
            assert contents(run) == whole
            continue
        victims = workers_of(process)
        who = "the driver" if dice.random() < 0.5 or not victims else "a worker"
        os.kill(process.pid if who == "the driver" else dice.choice(victims), signal.SIGKILL)
        kills[who] += 1
        process.communicate(timeout=120)
        assert process.returncode == (-signal.SIGKILL if who == "the driver" else 0)
        if who == "a worker":
            assert contents(run) == whole
    fill(FakeEngine(batch=2), job, run)
    assert contents(run) == whole
    assert min(kills.values()) >= 10
