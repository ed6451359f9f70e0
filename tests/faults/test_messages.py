"""Messages that nobody can read, as their reader is gone or its disk is full, decide nothing of a run."""

import os
import subprocess
from pathlib import Path

import pytest
from fake_engine import command, contents, labels, photographs

TESTS = Path(__file__).parents[1] / "support"


@pytest.fixture(params=["gone", "full"])
def unread(request):
    """A stream for messages that can be written to as little as its name says."""
    if request.param == "gone":
        reader, handle = os.pipe()
        os.close(reader)
    else:
        handle = os.open("/dev/full", os.O_WRONLY)
    yield handle
    os.close(handle)


def painted(tmp_path, name, stderr):
    # Masks of another size than their photographs are told of.
    photographs(tmp_path / "normals", 3)
    labels(tmp_path / "masks", 4, (80, 60))
    return subprocess.run(
        command(tmp_path, tmp_path / name, 8), cwd=TESTS, stdout=subprocess.PIPE, stderr=stderr, check=False
    )


def test_a_run_goes_on_without_its_messages(tmp_path, unread):
    heard = painted(tmp_path, "heard", subprocess.PIPE)
    assert b"notice: masks resized" in heard.stderr
    unheard = painted(tmp_path, "unheard", unread)
    assert unheard.returncode == heard.returncode == 0
    assert unheard.stdout == heard.stdout.replace(b"/heard", b"/unheard")
    assert contents(tmp_path / "unheard") == contents(tmp_path / "heard")


def test_an_error_keeps_its_exit_code(tmp_path, unread):
    failed = subprocess.run(
        command(tmp_path, tmp_path / "run", 8), cwd=TESTS, stdout=subprocess.PIPE, stderr=unread, check=False
    )
    assert (failed.returncode, failed.stdout) == (1, b"")
