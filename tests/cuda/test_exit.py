"""How processes end that used the GPU: in silence, with nothing left, whatever their threads were at."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stage_rt.cuda import device
from stage_rt.errors import BackendError

SUPPORT = Path(__file__).parents[1] / "support"
NOTHING = (
    "softcuda: 0 blocks, 0 pinned, 0 streams, 0 events, 0 modules, 0 graphs, 0 executables, 0 primary contexts and "
    "0 faults are left\n"
)


def ended(way: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, SUPPORT / "gpu_engine.py", way],
        env=os.environ | {"PYTHONPATH": path, "SOFTCUDA_REPORT": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("way", ["closed", "thread"])
def test_a_process_that_closed_its_engine_ends_in_silence_and_leaves_nothing(machine, way):
    run = ended(way)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", NOTHING)


def test_a_process_that_closed_nothing_ends_in_silence_and_releases_the_context(machine):
    run = ended("open")
    (line,) = run.stderr.splitlines()
    assert (run.returncode, run.stdout) == (0, "")
    assert " 0 primary contexts and 0 faults" in line


def test_a_daemons_thread_in_the_loop_is_sent_out_before_the_process_ends(machine):
    run = ended("daemon")
    assert run.returncode == 0, run.stderr
    assert "PyCUDA ERROR" not in run.stderr
    assert " 0 primary contexts and 0 faults" in run.stderr


class Context:
    """A primary context that writes down what is done with it."""

    def __init__(self):
        self.done = []

    def push(self):
        self.done.append("push")

    def pop(self):
        self.done.append("pop")

    def detach(self):
        self.done.append("detach")


def test_the_context_is_released_when_the_last_thread_has_been_sent_out():
    context, raised = Context(), []
    primary = device._Primary(device.Gpu("none", "sm90", 0), context)
    inside, ending = threading.Event(), threading.Event()

    def loop():
        with primary.entered():
            inside.set()
            ending.wait(60)
            late = time.monotonic() + 60
            while not raised and time.monotonic() < late:
                try:
                    with primary.entered():
                        """A stretch of steps."""
                except BackendError as error:
                    raised.append(str(error))

    thread = threading.Thread(target=loop)
    thread.start()
    assert inside.wait(60)
    ender = threading.Thread(target=primary.end)
    ender.start()
    ending.set()
    thread.join()
    ender.join()
    assert raised == ["Python is ending and has given the GPU back: join the threads that use it first"]
    assert context.done == ["push", "pop", "push", "detach"]
    with pytest.raises(BackendError, match="Python is ending"), primary.entered():
        pass


def test_a_forked_child_leaves_the_context_to_its_parent(monkeypatch):
    context = Context()
    primary = device._Primary(device.Gpu("none", "sm90", 0), context)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with primary.entered():
        primary.end()
    assert context.done == ["push", "pop"]
