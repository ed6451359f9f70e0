"""A full disk or a folder that cannot be written: an error, no half pair, and the same job goes on."""

import errno
import os
import resource
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from closed_engine import engine_folder
from fake_engine import PROMPT, FakeEngine, command, contents, labels, photographs

from stage_rt.cli import main
from stage_rt.errors import ExitCode, InputError, RunError, StageError
from stage_rt.files import disk_failures, locked, new_folder, try_out
from stage_rt.run.fill import fill
from stage_rt.run.job import Job

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


def told(folder, do):
    with pytest.raises(StageError) as error, disk_failures(folder):
        do()
    return str(error.value)


def test_what_could_not_be_read_is_not_said_to_be_written(tmp_path):
    gone = tmp_path / "gone.png"
    assert told(tmp_path, gone.read_bytes).startswith(
        f"reading `{gone}` failed (No such file or directory): mend that"
    )
    place = tmp_path / "no folder" / "new.png"
    assert told(tmp_path, lambda: place.open("xb")).startswith(
        f"writing to `{place}` failed (No such file or"
    )

    def broken():
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(gone))

    assert told(tmp_path, broken).startswith(
        f"reading or writing `{gone}` failed (Input/output error): mend that"
    )


def refuse(place):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def test_what_may_not_be_read_is_not_said_to_be_written(tmp_path, monkeypatch):
    there, missing = tmp_path / "there.png", tmp_path / "run/.000001.png.0123abcd.tmp"
    there.touch()
    written = "may not be written: give yourself permission or another `-o`"
    assert told(tmp_path, lambda: refuse(there)) == f"`{there}` {written}"
    assert told(tmp_path, lambda: refuse(missing)) == f"`{tmp_path}` {written}"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert told(tmp_path, lambda: refuse(there)) == (
        f"`{there}` may not be read: give yourself permission and run the same command again"
    )


def test_a_folder_that_is_staged_is_told_of_by_its_own_name(tmp_path):
    with pytest.raises(StageError) as error, new_folder(tmp_path / "set") as staged:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(staged / "images/000.png"))
    assert str(error.value) == (
        f"writing to `{tmp_path}/set/images/000.png` failed (No space left on device): mend that and run the same "
        "command again"
    )
    assert not list(tmp_path.iterdir())


def test_whoever_writes_alone_tells_of_a_failing_disk(tmp_path):
    with pytest.raises(StageError) as error, locked(tmp_path / "set", lambda: None):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(error.value) == (
        f"writing to `{tmp_path}/set` failed (No space left on device): mend that and run the same command again"
    )
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match=r"writing to `.*/file` failed \(File exists\): mend that"):
        locked(tmp_path / "file" / "set", lambda: None).__enter__()


def test_an_error_of_a_library_is_not_the_disk(tmp_path):
    with pytest.raises(OSError, match="no file of ours"), disk_failures(tmp_path):
        raise OSError("no file of ours")


def test_a_result_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    try_out(tmp_path / "new" / "plot.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match=r"writing to `.*file/new` failed \(Not a directory\): mend that"):
        try_out(tmp_path / "file" / "new" / "plot.png")
    monkeypatch.setattr(Path, "touch", lambda place, **_: refuse(place))
    with pytest.raises(InputError, match=r"may not be written: give yourself permission or another `--plot`"):
        try_out(tmp_path / "new" / "plot.png", "--plot")


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


@pytest.mark.parametrize(
    ("data", "place", "reason"),
    [("file/data", "file/data", "Not a directory"), ("data", "data/jobs", "File exists")],
)
def test_a_server_whose_data_cannot_be_written_says_where(tmp_path, capsys, monkeypatch, data, place, reason):
    pytest.importorskip("fastapi")
    monkeypatch.setattr("socket.create_server", lambda *_, **__: nullcontext())
    (tmp_path / "data").mkdir()
    for name in ("file", "data/jobs"):
        (tmp_path / name).touch()
    with pytest.raises(SystemExit) as exited:
        main(["serve", str(engine_folder(tmp_path / "tiles")), "--port", "0", "--data", str(tmp_path / data)])
    assert (exited.value.code, *capsys.readouterr()) == (
        3,
        "",
        f"error: writing to `{tmp_path}/{place}` failed ({reason}): mend that and run the same command again\n",
    )


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
