"""SIGTERM, Ctrl-C and a hang-up end a run between two writes; a second signal ends it at once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_engine import command, contents, labels, photographs

TESTS = Path(__file__).parents[1] / "support"


@pytest.fixture
def start(tmp_path):
    photographs(tmp_path / "normals", 3)
    labels(tmp_path / "masks", 4)
    started = []

    def run(delay, name="run", *options):
        arguments = command(tmp_path, tmp_path / name, 8, *options, delay=delay)
        process = subprocess.Popen(
            arguments, cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_batch_in_hand_is_dropped_and_the_same_command_goes_on(start, tmp_path, signum):
    run = tmp_path / "run"
    process = start(0.05)
    wait_until(lambda: list(run.glob("test/*/000001.png")))
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert (out, err) == ("", "stopped: run the same command again to go on\n")
    images = {path.stem for path in run.glob("test/*/*")}
    assert {path.stem for path in run.glob("ground_truth/*/*")} == {f"{name}_mask" for name in images}
    assert 2 <= len(images) < 8

    assert start(0).wait(60) == 0
    assert start(0, "whole").wait(60) == 0
    assert contents(run) == contents(tmp_path / "whole")


def test_a_second_signal_ends_it_at_once(start, tmp_path):
    process = start(100)
    wait_until((tmp_path / "painting").exists)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


SECOND = """
import os, signal
from stage_rt.cli import console, main
said = console.message
def message(kind, text):
    said(kind, text)
    os.kill(os.getpid(), signal.SIGINT)
console.message = message
def stopped(*_):
    raise console.Stopped(signal.SIGINT)
import typer
typer.main.get_command = stopped
main(["doctor"])
"""


def test_a_second_signal_while_the_first_is_told_of_prints_no_traceback():
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, check=False)
    assert done.stderr == "stopped: run the same command again to go on\n"
    assert done.returncode == -signal.SIGINT


def test_two_processes_do_not_fill_one_folder(start, tmp_path):
    start(100)
    wait_until((tmp_path / "painting").exists)
    second = start(0)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert err == f"error: `{tmp_path}/run` is being filled by another process: wait for it to end\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_what_watches_the_run_is_told_that_it_was_stopped(start, tmp_path, signum):
    run = tmp_path / "run"
    process = start(
        0.05, "run", "--on-finish", f"echo $STAGE_RT_STATE $STAGE_RT_EXIT_CODE > {tmp_path}/told; echo said"
    )
    wait_until(lambda: list(run.glob("test/*/000001.png")))
    assert json.loads((run / "metrics.json").read_text())["state"] == "running"
    process.send_signal(signum)
    if signum == signal.SIGHUP:
        # By the system and by the shell.
        time.sleep(0.02)
        process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signum, "")
    assert err == "said\nstopped: run the same command again to go on\n"
    assert (tmp_path / "told").read_text() == f"stopped {128 + signum}\n"
    assert json.loads((run / "metrics.json").read_text())["state"] == "stopped"
    assert (run / "run.log").read_text().splitlines()[-1].endswith("stopped: the same command again goes on")


def test_a_run_that_was_told_to_outlive_its_terminal_does(start, tmp_path):
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = start(0.01)
    signal.signal(signal.SIGHUP, ignored)
    wait_until((tmp_path / "painting").exists)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
