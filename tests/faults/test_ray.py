"""Runs on a real Ray cluster: actors killed, a node taken away, one that joins late; the bytes of one process."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "support"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: `pip install 'stage-rt[ray]'`"),
]


@pytest.mark.parametrize(("what", "times", "losses"), [("kill", 20, 20), ("node", 1, 1), ("late", 1, 0)])
def test_whatever_happens_to_actors_a_run_has_the_bytes_of_one_process(tmp_path, what, times, losses):
    # A process of its own, as no test may reach for the network, which Ray does on this machine.
    done = subprocess.run(
        [sys.executable, str(TESTS / "ray_run.py"), str(tmp_path), what, str(times)],
        capture_output=True,
        text=True,
        timeout=3600,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["runs"] == times
    # One that was killed when nothing was left to be done is not missed.
    assert losses * 0.5 <= told["losses"] <= losses
    assert told["actors"] >= 2 * times
