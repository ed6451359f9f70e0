"""The shards of a run: together all of it, each sample once, and stable while the run grows."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from fake_engine import FakeEngine, contents, manifest, photographs
from hypothesis import given
from hypothesis import strategies as st

from stage_rt.errors import InputError, RunError
from stage_rt.progress import silent
from stage_rt.run.fill import follow
from stage_rt.run.ledger import Place
from stage_rt.run.painters import Alone
from stage_rt.run.plan import make_plan
from stage_rt.run.shards import indices, parse, take
from stage_rt.spec import RegionView, Shard


def ignore(notice):
    """A notice that nobody reads."""


def paint(job, folder, number, of, engine=None):
    """Paint a shard, or everything if ``number`` is 0."""
    engine = engine or FakeEngine()
    plan = make_plan(engine.spec, job, ignore)
    plan = take(plan, number, of) if number else plan
    return follow(Alone(engine), plan, Place.of(folder), notify=ignore, progress=silent)


@given(count=st.integers(1, 200), more=st.integers(0, 50), of=st.integers(1, 20), together=st.integers(1, 20))
def test_every_sample_is_in_one_shard_and_stays_there(count, more, of, together):
    parts = [indices(Shard(number=n, of=of, together=together), count) for n in range(1, of + 1)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= together
    for n, part in enumerate(parts, start=1):
        grown = indices(Shard(number=n, of=of, together=together), count + more)
        assert grown[: len(part)].tolist() == part.tolist()


def test_a_shard_paints_the_batches_of_the_whole_run(job, run):
    painted = []
    for number in (1, 2):
        engine = FakeEngine()
        summary = paint(job, run / str(number), number, 2, engine)
        painted_here = list(chain(*engine.batches))
        assert [line["index"] for line in manifest(run / str(number))] == painted_here
        assert summary.pairs == len(painted_here)
        painted += engine.batches
    assert sorted(painted) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_shard_of_nothing_is_a_run_of_nothing(job, run):
    assert paint(job, run, 4, 4).pairs == 0
    assert (run / "manifest.jsonl").read_bytes() == b""
    assert (run / "report/index.html").is_file()


def test_a_shard_goes_on_and_grows_as_a_run_does(job, run, tmp_path):
    paint(job, run, 1, 2)
    engine = FakeEngine()
    assert paint(replace(job, count=19), run, 1, 2, engine).written == 5
    # The last batch was not whole before.
    assert engine.batches == [[8, 9, 10, 11], [16, 17, 18]]
    paint(replace(job, count=19), tmp_path / "whole", 1, 2)
    assert contents(run) == contents(tmp_path / "whole")


def test_a_shard_grows_into_a_larger_photograph_than_it_had(job, run, tmp_path, monkeypatch):
    """As many are painted together as memory holds of the largest that is given, whether it is used yet or not."""
    monkeypatch.setattr("stage_rt.run.plan.PIXELS_TOGETHER", 4 * 40 * 30)
    large = photographs(tmp_path / "large", 1, (80, 60), seed=3)
    job = replace(job, normals=[*photographs(tmp_path / "small", 3), *large])
    engine = FakeEngine(region=RegionView(least=16))
    for count in (1, 2, 3, 10):
        summary = paint(replace(job, count=count), run, 1, 2, engine)
    assert summary.pairs == 5
    for count in (1, 10):
        assert make_plan(engine.spec, replace(job, count=count), ignore).together == 1


@pytest.mark.parametrize(
    ("change", "shard", "message"),
    [
        ({}, (2, 2), "whose shard is 1/2 of 4 at a time and not 2/2 of 4 at a time"),
        ({}, (1, 3), "whose shard is 1/2 of 4 at a time and not 1/3 of 4 at a time"),
        # Another batch would be other samples.
        ({"batch": 2}, (1, 2), "whose shard is 1/2 of 4 at a time and not 1/2 of 2 at a time"),
        ({}, (0, 0), "whose shard is 1/2 of 4 at a time and not all of it"),
    ],
)
def test_another_shard_is_another_run(job, run, change, shard, message):
    paint(job, run, 1, 2)
    with pytest.raises(RunError, match=message):
        paint(replace(job, **change), run, *shard)


def test_a_part_is_written_as_its_number_of_so_many():
    assert parse("3/8") == (3, 8)
    for text in ("", "3", "0/3", "4/3", "-1/3", "1/3/5", "a/b", "1/0", " 1/3", "1/99999"):
        with pytest.raises(InputError, match="is no part of a run: give `1/"):
            parse(text)
