"""A run that is killed anywhere goes on to the same bytes as one that is left alone."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_engine import command, contents, labels, photographs

TESTS = Path(__file__).parents[1] / "support"
COUNT = 7


@pytest.fixture
def inputs(tmp_path):
    photographs(tmp_path / "normals", 3)
    labels(tmp_path / "masks", 4)
    return tmp_path


def whole_run(inputs):
    subprocess.run(command(inputs, inputs / "whole", COUNT), check=True, capture_output=True)
    return contents(inputs / "whole")


def wait_for_pairs(run, pairs):
    deadline = time.monotonic() + 60
    while len(list(run.glob("test/*/*.png"))) < pairs:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_at_random_moments(inputs):
    whole = whole_run(inputs)
    run = inputs / "run"
    dice = random.Random(0)
    for pairs in (0, 1, 3, 5):
        process = subprocess.Popen(
            command(inputs, run, COUNT, delay=0.01), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_pairs(run, pairs)
        time.sleep(dice.random() * 0.15)
        process.kill()
        process.wait()
    subprocess.run(command(inputs, run, COUNT), check=True, capture_output=True)
    assert contents(run) == whole


CRASH_AT_EVERY_SYNC = """
import os, shutil, sys
from pathlib import Path
from fake_engine import PROMPT, FakeEngine, contents
from stage_rt.run.fill import fill
from stage_rt.run.job import Job

inputs, count = Path(sys.argv[1]), int(sys.argv[2])
normals, masks = (sorted((inputs / name).iterdir()) for name in ("normals", "masks"))
job = Job(normals, masks, PROMPT, count, 0, True, 2)

def child(run, crash_at):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    calls = 0
    def counted(call):
        def counting(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == crash_at:
                os._exit(9)
            return call(*arguments, **options)
        return counting
    os.fsync, os.rename, Path.replace = counted(os.fsync), counted(os.rename), counted(Path.replace)
    try:
        fill(FakeEngine(), job, run)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)

assert child(inputs / "whole", 0) == 0
whole = contents(inputs / "whole")
crashes = 0
while True:
    run = inputs / "run"
    shutil.rmtree(run, ignore_errors=True)
    code = child(run, crashes + 1)
    if code == 0:
        break
    assert code == 9, code
    crashes += 1
    masks = {path.name[:6] for path in run.rglob("ground_truth/*/[0-9]*.png")}
    images = {path.stem for path in run.rglob("test/*/[0-9]*.png") if path.parent.name != "good"}
    assert images <= masks
    assert child(run, 0) == 0
    assert contents(run) == whole, crashes
print(crashes)
"""


def test_killed_at_every_write(inputs):
    done = subprocess.run(
        [sys.executable, "-c", CRASH_AT_EVERY_SYNC, str(inputs), "3"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # Per pair: two files synced, renamed and their folders synced, and the line in the manifest.
    assert int(done.stdout) >= 3 * 7
