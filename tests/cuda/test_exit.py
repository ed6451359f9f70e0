"""How processes end that used the GPU: in silence, with nothing left, whatever their threads were at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
