"""Processes that work side by side end with their driver, whatever they have in hand."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_ids import gone

from stage_rt.quality.side_by_side import side_by_side

FOREVER = 600.0
SUPPORT = Path(__file__).parents[1] / "support"


def work(job: tuple[Path, float]) -> None:
    """Tell who works, and for how long."""
    place, seconds = job
    (place / str(os.getpid())).touch()
    time.sleep(seconds)


def workers(place: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while len(found := [int(path.name) for path in place.iterdir()]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_what_is_in_hand_is_dropped_when_no_more_is_wanted(tmp_path: Path) -> None:
    started = time.monotonic()
    each = side_by_side(work, [(tmp_path, 0.0), (tmp_path, FOREVER), (tmp_path, FOREVER)], 2)
    next(each)
    workers(tmp_path, 2)
    each.close()
    assert time.monotonic() - started < FOREVER / 2
    assert all(map(gone, workers(tmp_path, 2)))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_driver(tmp_path: Path, signum: int) -> None:
    driver = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    found = workers(tmp_path, 2)
    if signum == signal.SIGKILL:
        driver.kill()
    else:
        # As a terminal does it, to all of them.
        os.killpg(driver.pid, signum)
    _, told = driver.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while not all(map(gone, found)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if signum != signal.SIGKILL:
        assert told == ""


def drive(place: Path) -> None:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
    for _ in side_by_side(work, [(place, FOREVER)] * 2, 2):
        pass


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
