"""A full disk or a folder that cannot be written: an error, no half pair, and the same job goes on."""

import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest
from fake_engine import PROMPT, FakeEngine, command, contents, labels, photographs

from stage_rt.errors import ExitCode, RunError, StageError
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.run.ledger import disk_failures

TESTS = Path(__file__).parents[1] / "support"


@pytest.fixture
def job(tmp_path):
    normals, masks = photographs(tmp_path / "normals", 3), labels(tmp_path / "masks", 4)
    return Job(normals, masks, PROMPT, 4, 0, True, 2)


def full_from(monkeypatch, call):
    """The disk is full from the ``call``-th write that is synced to it on."""
    calls = 0
    fsync = os.fsync

    def failing(handle):
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)


def failure(job, run):
    try:
        fill(FakeEngine(), job, run)
    except StageError as error:
        return error


def test_the_disk_fills_up_at_any_write(job, tmp_path):
    fill(FakeEngine(), job, tmp_path / "whole")
    failures = 0
    while True:
        run = tmp_path / f"run{failures}"
        with pytest.MonkeyPatch.context() as patch:
            full_from(patch, failures + 1)
            error = failure(job, run)
        if error is None:
            break
        assert error.exit_code == ExitCode.BROKEN
        assert str(error) == (
            f"writing to `{run}` failed (No space left on device): mend that and run the same command again"
        )
        failures += 1
        assert not list(run.rglob("*.tmp"))
        images = {path.stem for path in run.rglob("test/hole/*")}
        assert {path.stem for path in run.rglob("ground_truth/*/*")} == {f"{name}_mask" for name in images}
        fill(FakeEngine(), job, run)
        assert contents(run) == contents(tmp_path / "whole")
    assert failures >= 4 * 5


def test_what_could_not_be_read_is_not_said_to_be_written(tmp_path):
    def told(do):
        with pytest.raises(StageError) as error, disk_failures(tmp_path):
            do()
        return str(error.value)

    gone = tmp_path / "gone.png"
    assert told(gone.read_bytes).startswith(f"reading `{gone}` failed (No such file or directory): mend that")
    place = tmp_path / "no folder" / "new.png"
    assert told(lambda: place.open("xb")).startswith(f"writing to `{place}` failed (No such file or")

    def broken():
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(gone))

    assert told(broken).startswith(f"reading or writing `{gone}` failed (Input/output error): mend that")


@pytest.mark.parametrize(
    "name", ["test/hole/000001.png", "ground_truth/hole/000001_mask.png", "report/index.html"]
)
def test_a_folder_where_a_file_belongs_is_named(job, tmp_path, name):
    fill(FakeEngine(), job, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    error = failure(job, tmp_path / "run")
    assert str(error).startswith(f"writing to `{tmp_path}/run/{name}` failed (Is a directory): mend that")


def test_a_real_limit_on_the_size_of_files(job, tmp_path):
    limited = subprocess.run(
        command(tmp_path, tmp_path / "run", 4),
        cwd=TESTS,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert (limited.returncode, limited.stdout) == (3, "")
    assert limited.stderr == (
        f"error: writing to `{tmp_path}/run` failed (File too large): "
        "mend that and run the same command again\n"
    )
    assert not list((tmp_path / "run").rglob("*.png"))
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission(job, tmp_path):
    (tmp_path / "run").mkdir(mode=0o555)
    with pytest.raises(RunError, match="may not be written: give yourself permission or another `-o`"):
        fill(FakeEngine(), job, tmp_path / "run")
    with pytest.raises(RunError, match="cannot be made a folder: give another `-o`"):
        fill(FakeEngine(), job, tmp_path / "run" / "inner")


def test_a_file_where_a_folder_of_the_run_belongs(job, tmp_path):
    fill(FakeEngine(), job, tmp_path / "whole")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_bytes((tmp_path / "whole/run.json").read_bytes())
    (run / "test").write_text("in the way")
    with pytest.raises(
        StageError, match=r"writing to `.*run/test/hole` failed \((File exists|Not a directory)\)"
    ):
        fill(FakeEngine(), job, run)
    assert not list(run.rglob("*.png"))
