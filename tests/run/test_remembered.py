"""What a run remembers saves work and decides nothing: with it, without it or with a wrong one."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, contents, manifest

from stage_rt import files
from stage_rt.errors import MaskError, RunError
from stage_rt.images import inputs
from stage_rt.run import checks, ledger
from stage_rt.run.checks import CHECKS_FILE, Checks
from stage_rt.run.fill import fill
from stage_rt.run.index import INDEX_FILE, Index


@pytest.fixture
def job(job):
    """Of files that were left alone for a while."""
    for path in (*job.normals, *job.masks):
        os.utime(path, (1e9, 1e9))
    return job


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are read to be checked."""
    names = []

    def content(path, error, real=inputs._content):
        names.append(path.name)
        return real(path, error)

    def sha256(path, real=files.sha256):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(inputs, "_content", content)
    monkeypatch.setattr(files, "sha256", sha256)
    return names


def checked_again(job, run, opened):
    """What is read until nothing is found to be missing."""
    opened.clear()
    engine, read = FakeEngine(), []
    fill(engine, job, run, progress=lambda share: read.append(len(opened)))
    assert engine.batches == []
    return opened[: read[0]]


def test_a_finished_run_is_found_again_without_reading_a_picture(job, run, opened):
    fill(FakeEngine(), job, run)
    assert checked_again(job, run, opened) == []
    (run / INDEX_FILE).unlink()
    assert len(checked_again(job, run, opened)) == 2 * 10
    (run / CHECKS_FILE).unlink()
    assert len(checked_again(job, run, opened)) == len(job.normals) + len(job.masks)
    assert checked_again(job, run, opened) == []


def test_a_changed_pair_is_seen_and_painted_again(job, run, opened):
    fill(FakeEngine(), job, run)
    before, path = contents(run), run / "test/hole/000003.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (run / "ground_truth/hole/000008_mask.png").unlink()
    engine = FakeEngine()
    fill(engine, job, run)
    assert engine.batches == [[0, 1, 2, 3], [8, 9]]
    assert contents(run) == before
    # Only touched: read, found to be what it was, and painted no more.
    path.touch()
    assert checked_again(job, run, opened) == ["000003.png", "000003_mask.png"]
    assert checked_again(job, run, opened) == []


def test_a_changed_photograph_or_mask_is_checked_again(job, run, opened):
    fill(FakeEngine(), job, run)
    job.masks[1].write_bytes(b"")
    with pytest.raises(MaskError, match=r"001_mask\.png"):
        fill(FakeEngine(), job, run)
    job.masks[1].write_bytes(job.masks[0].read_bytes())
    with pytest.raises(RunError, match=r"was made from another `001_mask.png`"):
        fill(FakeEngine(), job, run)


@pytest.mark.parametrize("name", [INDEX_FILE, CHECKS_FILE])
@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\0" * 300])
def test_a_damaged_memory_is_none(job, run, name, damage):
    fill(FakeEngine(), job, run)
    before, path = contents(run), run / name
    sound = path.read_bytes()
    for content in (damage, sound[:-1], sound[:-1] + bytes([sound[-1] ^ 1]), sound + b"\n"):
        path.write_bytes(content)
        engine = FakeEngine()
        fill(engine, job, run)
        assert engine.batches == []
        assert contents(run) == before


def test_the_memory_of_another_run_is_none(job, run, tmp_path):
    fill(FakeEngine(), job, run)
    fill(FakeEngine(), replace(job, seed=8), tmp_path / "other")
    before = contents(run)
    (run / INDEX_FILE).write_bytes((tmp_path / "other" / INDEX_FILE).read_bytes())
    engine = FakeEngine()
    fill(engine, job, run)
    assert engine.batches == []
    assert contents(run) == before


def test_lines_behind_the_index_are_read(job, run):
    fill(FakeEngine(), replace(job, count=8), run)
    index = (run / INDEX_FILE).read_bytes()
    fill(FakeEngine(), job, run)
    before = contents(run)
    (run / INDEX_FILE).write_bytes(index)
    with (run / "manifest.jsonl").open("ab") as file:
        file.write(b'{"index":')
    engine = FakeEngine()
    fill(engine, job, run)
    assert engine.batches == []
    assert contents(run) == before


def test_an_index_is_saved_again_and_again_in_a_long_run(job, run, monkeypatch):
    monkeypatch.setattr(ledger, "INDEXED", 4)
    saved = []
    monkeypatch.setattr(Index, "save", lambda self, real=Index.save: (saved.append(self.lines), real(self)))
    fill(FakeEngine(), job, run)
    assert saved == [4, 8, 10]


def test_a_line_of_a_number_no_sample_has_is_damage(job, run):
    fill(FakeEngine(), job, run)
    line = manifest(run)[0]
    path, image, mask = (
        run / "manifest.jsonl",
        "test/hole/9999999999.png",
        "ground_truth/hole/9999999999_mask.png",
    )
    text = path.read_text().splitlines()[0].replace(line["check"], "")
    text = (
        text.replace(line["image"], image)
        .replace(line["mask"], mask)
        .replace('"index":0', '"index":9999999999')
    )
    with path.open("a") as file:
        file.write(text.replace(',"check":""', "") + "\n")
    with pytest.raises(RunError, match="is damaged in line 11"):
        fill(FakeEngine(), job, run)


def test_what_was_just_written_is_not_remembered(tmp_path, monkeypatch):
    path, asked = tmp_path / "file", []

    def look(path):
        asked.append(path.read_text())
        return asked[-1]

    def answer():
        known = Checks(tmp_path / CHECKS_FILE)
        result = known.of(path, "content", look)
        known.save()
        return result

    path.write_text("a")
    assert (answer(), answer(), len(asked)) == ("a", "a", 2)
    # A clock that is set back makes a file look as if it was written later: it is looked at each time.
    monkeypatch.setattr(checks.time, "time", lambda: path.stat().st_mtime - 3600)
    assert (answer(), answer(), len(asked)) == ("a", "a", 4)
    monkeypatch.setattr(checks.time, "time", lambda: path.stat().st_mtime + 3600)
    assert (answer(), answer(), len(asked)) == ("a", "a", 5)
    # The same time and size, but another file.
    time = path.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_text("b")
    os.utime(other, ns=(time, time))
    other.replace(path)
    assert (answer(), len(asked)) == ("b", 6)


def test_a_clock_that_jumps_changes_nothing(job, run, tmp_path, monkeypatch):
    fill(FakeEngine(), job, tmp_path / "whole")
    now = [2e9]
    for name in ("time", "monotonic"):
        monkeypatch.setattr(checks.time, name, lambda: now[0])

    def jump(share):
        now[0] += (-1) ** int(share * 100) * 1e6

    fill(FakeEngine(), replace(job, count=6), run, progress=jump)
    for path in sorted(Path(run).rglob("*.png"))[::3]:
        os.utime(path, (3e9, 3e9))
    fill(FakeEngine(), job, run, progress=jump)
    assert contents(run) == contents(tmp_path / "whole")


def test_no_name_of_a_pair_goes_through_the_interpreters_table_of_strings(job, run, monkeypatch):
    """It is rebuilt, in twice the size, after so many names that came and went: 1.8 MiB in the middle of a run."""
    names, painted, intern = [], [], sys.intern

    def interned(text):
        names.append(text)
        return intern(text)

    def progress(share):
        if share == 1:
            painted[:] = names

    monkeypatch.setattr(sys, "intern", interned)
    fill(FakeEngine(), job, run, progress=progress)
    assert painted
    # What a crash left is looked for once, beside the first pair.
    assert {name for name in painted if re.match(r"\.?\d{6}", name)} <= {"000000.png", "000000_mask.png"}


def test_samples_and_records_take_no_memory(job, run):
    import tracemalloc

    from stage_rt.run.plan import make_plan

    few = make_plan(FakeEngine().spec, replace(job, count=100), lambda notice: None)
    tracemalloc.start()
    many = make_plan(FakeEngine().spec, replace(job, count=50_000), lambda notice: None)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / 50_000 < 32
    assert [many.samples[n] for n in range(100)] == list(few.samples)
    index = Index(run / "manifest.jsonl")
    index.reserve(50_000)
    assert index.offsets.nbytes + index.seals.nbytes == 16 * 50_000
    assert np.all(index.offsets == -1)
