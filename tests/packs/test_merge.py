"""Shards are joined to the folder that one process would have filled, or nothing is."""

import shutil
from contextlib import ExitStack
from dataclasses import replace

import pytest
from fake_engine import FakeEngine, contents, labels, manifest, photographs, ten_pairs

from stage_rt.errors import DatasetError, InputError, RunError
from stage_rt.packs.merge import merge
from stage_rt.packs.pack import Request, pack
from stage_rt.packs.runs import opened, places
from stage_rt.packs.survey import left_out, survey
from stage_rt.progress import silent
from stage_rt.run.fill import fill, follow
from stage_rt.run.ledger import Place, locked_run
from stage_rt.run.night import follow_all, plans
from stage_rt.run.painters import Alone
from stage_rt.run.plan import make_plan
from stage_rt.run.shards import take


def ignore(notice):
    """A notice that nobody reads."""


def paint(job, folder, number, of, engine=None, **more):
    engine = engine or FakeEngine()
    plan = take(make_plan(engine.spec, job, ignore), number, of)
    follow(Alone(engine), plan, Place.of(folder), notify=ignore, progress=silent, **more)
    return folder


@pytest.fixture
def job(tmp_path):
    return ten_pairs(tmp_path)


@pytest.fixture
def shards(job, tmp_path):
    return [paint(job, tmp_path / f"s{n}", n, 2) for n in (1, 2)]


def without_lock(folder):
    return {name: content for name, content in contents(folder).items() if not name.endswith(".lock")}


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_the_bytes_are_those_of_one_process(job, tmp_path, of):
    fill(FakeEngine(), job, tmp_path / "whole")
    parts = [paint(job, tmp_path / f"s{n}", n, of) for n in range(1, of + 1)]
    summary = merge(parts[::-1], [tmp_path / "normals"], tmp_path / "run")["tile+hole"]
    assert without_lock(tmp_path / "run") == without_lock(tmp_path / "whole")
    assert summary.pairs == summary.written == 10
    assert summary.report == tmp_path / "run" / "report/index.html"
    # It is a run as any other: it goes on.
    engine = FakeEngine()
    fill(engine, replace(job, count=12), tmp_path / "run")
    assert engine.batches == [[8, 9, 10, 11]]
    assert not list(tmp_path.glob(".*.tmp"))


def test_progress_is_a_share_of_all_samples(job, shards, tmp_path):
    told = []
    merge(shards, [tmp_path / "normals"], tmp_path / "run", told.append)
    assert told == pytest.approx([n / 10 for n in range(11)])
    with ExitStack() as stack:
        runs = [stack.enter_context(opened(at)) for shard in shards for at in places(shard)]
        told.clear()
        survey(runs, lambda run, record: left_out(record, weak=True), told.append)
    assert told == pytest.approx([n / 10 for n in range(10)])


def test_failures_and_what_is_left_out_are_joined_too(job, tmp_path):
    engine = FakeEngine(poisoned=[1, 6])
    fill(engine, job, tmp_path / "whole")
    parts = [paint(job, tmp_path / f"s{n}", n, 2, engine) for n in (1, 2)]
    summary = merge(parts, [tmp_path / "normals"], tmp_path / "run")["tile+hole"]
    assert (summary.pairs, summary.failed) == (8, [1, 6])
    assert without_lock(tmp_path / "run") == without_lock(tmp_path / "whole")


def test_a_pair_that_was_rejected_in_its_part_is_joined_with_its_next_attempt(job, shards, tmp_path):
    fill(FakeEngine(), job, tmp_path / "whole")
    asked = {"hole": {5: manifest(tmp_path / "whole")[5]["image_sha256"]}}
    fill(FakeEngine(), job, tmp_path / "whole", rejected=asked)
    paint(job, shards[1], 2, 2, rejected=asked)
    merge(shards, [tmp_path / "normals"], tmp_path / "run")
    assert without_lock(tmp_path / "run") == without_lock(tmp_path / "whole")


def test_a_part_with_a_rejected_pair_that_waits_is_not_finished(job, shards, tmp_path):
    class Stopped(FakeEngine):
        def paint(self, *_, **__):
            raise KeyboardInterrupt

    asked = {"hole": {5: manifest(shards[1])[1]["image_sha256"]}}
    with pytest.raises(KeyboardInterrupt):
        paint(job, shards[1], 2, 2, Stopped(), rejected=asked)
    message = r"`.*s2` is not finished \(3 of 4 samples\): run its `stage-rt synth` again"
    refused(RunError, message, shards, tmp_path / "normals", tmp_path)
    with pytest.raises(RunError, match=message):
        pack(Request(shards, "mmseg"), tmp_path / "pack", silent)


def test_several_types_are_joined_at_once(job, tmp_path):
    photographs(tmp_path / "others", 3, seed=1)
    cracks = replace(
        job,
        prompt="tile+crack",
        normals=sorted((tmp_path / "others").iterdir()),
        masks=labels(tmp_path / "cracks", 3),
        count=5,
    )
    made = plans(FakeEngine().spec, [job, cracks], notify=ignore)
    for number in (0, 1, 2):
        parts = [take(plan, number, 2) if number else plan for plan in made]
        follow_all(Alone(FakeEngine()), parts, tmp_path / f"s{number}", notify=ignore, progress=silent)
    folders = [tmp_path / "others", tmp_path / "normals"]
    merge([tmp_path / "s1", tmp_path / "s2"], folders, tmp_path / "run")
    assert without_lock(tmp_path / "run") == without_lock(tmp_path / "s0")


def test_shards_are_packed_as_runs_are(shards, tmp_path):
    assert pack(Request(shards, "mmseg"), tmp_path / "pack", silent).pictures


def refused(kind, message, parts, normals, tmp_path):
    with pytest.raises(kind, match=message):
        merge(parts, [normals], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".run.*"))


def test_a_gap_an_overlap_and_what_is_no_shard_are_refused(job, shards, tmp_path):
    normals, (one, two) = tmp_path / "normals", shards
    fill(FakeEngine(), job, tmp_path / "whole")
    copy = shutil.copytree(two, tmp_path / "copy")
    third = paint(job, tmp_path / "third", 3, 3)
    other = paint(replace(job, seed=8), tmp_path / "other", 2, 2)
    grown = paint(replace(job, count=30), tmp_path / "grown", 2, 2)
    for parts, message in (
        ([one], r"of the shards of `.*s1` 2/2 are not given: give all of them"),
        ([one, two, copy], r"`.*s2` and `.*copy` are both shard 2/2: leave one out"),
        ([one, tmp_path / "whole"], r"`.*whole` is no shard but a whole run: leave it out"),
        ([tmp_path / "whole", one], r"`.*whole` is no shard but a whole run: leave it out"),
        ([one, third], r"`.*s1` is shard 1/2 of 4 at a time and `.*third` shard 3/3 of 4 at a time"),
        ([one, other], r"`.*s1` and `.*other` are not of one run: their seed differs: give the shards"),
        ([one, grown], r"their count differs: give the shards of one command"),
        ([one, tmp_path / "normals"], r"is not a run \(no run.json\)"),
    ):
        refused(RunError, message, parts, normals, tmp_path)


def test_a_night_without_a_type_is_refused(shards, tmp_path):
    (tmp_path / "night/types").mkdir(parents=True)
    message = r"`.*night` is not a run \(its `types` is empty\): make one with `stage-rt synth`"
    refused(RunError, message, [tmp_path / "night"] * 2, tmp_path / "normals", tmp_path)


def test_a_shard_that_is_not_finished_or_was_changed_is_refused(shards, tmp_path):
    normals, two = tmp_path / "normals", shards[1]
    with locked_run(two):
        refused(RunError, r"`.*s2` is being filled", shards, normals, tmp_path)
    lines = (two / "manifest.jsonl").read_bytes()
    for content in (lines[: lines.rindex(b'{"index"')], b"", lines[:-9]):
        (two / "manifest.jsonl").write_bytes(content)
        refused(RunError, r"`.*s2` is not finished \(\d of 4 samples\)", shards, normals, tmp_path)
    (two / "manifest.jsonl").write_bytes(lines)
    (two / "test/hole/000004.png").write_bytes(b"other")
    refused(RunError, r"000004.png` was changed after it was written", shards, normals, tmp_path)
    (two / "test/hole/000004.png").unlink()
    refused(RunError, r"000004.png` is missing", shards, normals, tmp_path)


def test_photographs_have_to_be_those_that_were_painted_into(shards, tmp_path):
    others = tmp_path / "others"
    photographs(others, 5, seed=3)
    message = r"`.*others` does not hold `00\d.png` as it was when it was painted into: give the folders"
    refused(DatasetError, message, shards, others, tmp_path)


def test_the_folders_have_to_be_those_that_the_shards_were_given(shards, tmp_path):
    normals, other = tmp_path / "normals", tmp_path / "other"
    photographs(other, 2, seed=4)
    with pytest.raises(DatasetError, match=r"into the photographs of `.*other`: leave it out"):
        merge(shards, [normals, other], tmp_path / "run")
    photographs(normals, 6)
    message = r"`.*normals` does not hold the photographs of `.*s1` as they were when it was painted: give"
    refused(DatasetError, message, shards, normals, tmp_path)
    (normals / "005.png").unlink()
    assert merge(shards, [normals], tmp_path / "run")


def test_what_a_merge_that_was_killed_had_staged_is_removed(shards, tmp_path):
    (tmp_path / ".run.0123abcd.tmp" / "test").mkdir(parents=True)
    merge(shards, [tmp_path / "normals"], tmp_path / "run")
    assert not list(tmp_path.glob(".*"))


def test_a_run_has_no_place_in_a_shard(shards, tmp_path):
    with pytest.raises(InputError, match=r"s2/run` would lie in `.*s2`, .*: choose another `-o`"):
        merge(shards, [tmp_path / "normals"], shards[1] / "run")
    assert not (shards[1] / "run").exists()
