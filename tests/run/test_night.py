"""Several types in one folder: each a run of its own, resumed, grown and joined by others to the same bytes."""

from dataclasses import replace

import pytest
from fake_engine import FakeEngine, contents, labels, manifest

from stage_rt.errors import MaskError, RunError
from stage_rt.progress import silent
from stage_rt.run.fill import fill
from stage_rt.run.night import follow_all, outlook, plans
from stage_rt.run.painters import Alone


@pytest.fixture
def jobs(job, tmp_path):
    """The job, and one of five cracks."""
    return [job, replace(job, prompt="tile+crack", masks=labels(tmp_path / "cracks", 3), count=5)]


def ignore(notice):
    """A notice that nobody reads."""


def paint(jobs, folder, engine=None, progress=silent):
    engine = engine or FakeEngine()
    made = plans(engine.spec, jobs, notify=ignore)
    return follow_all(Alone(engine), made, folder, notify=ignore, progress=progress)


def test_types_lie_beside_one_another_as_each_would_alone(jobs, run, tmp_path):
    summaries = paint(jobs, run)
    assert {name: one.pairs for name, one in summaries.items()} == {"tile+hole": 10, "tile+crack": 5}
    for job in jobs:
        kind = job.prompt.rpartition("+")[2]
        fill(FakeEngine(), job, tmp_path / kind)
        alone = contents(tmp_path / kind)
        for name, content in alone.items():
            place = (
                run / name
                if name.startswith(("test", "ground_truth", "train"))
                else run / "types" / kind / name
            )
            if name != ".lock" and not name.startswith("report/"):
                assert place.read_bytes() == content, name
        thumbnails = {name for name in alone if "thumbnails" in name}
        assert len(thumbnails) == job.count
        assert all((run / name).read_bytes() == alone[name] for name in thumbnails)
    assert "15 of 15 pairs written" in (run / "report/index.html").read_text()
    assert (run / "report/pairs-1.js").is_file()
    assert not list((run / "types").rglob("report*"))


def test_a_night_that_was_cut_off_goes_on_to_the_same_bytes(jobs, run, tmp_path):
    paint(jobs, tmp_path / "whole")
    for cut in (0.1, 0.5, 0.8):

        def stop(share, cut=cut):
            if share > cut:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            paint(jobs, run, progress=stop)
    paint(jobs, run)
    assert contents(run) == contents(tmp_path / "whole")


def test_a_type_can_be_added_and_another_can_grow(jobs, run, tmp_path):
    paint(jobs[:1], run)
    larger = [replace(jobs[0], count=13), jobs[1]]
    engine = FakeEngine()
    assert [one.written for one in paint(larger, run, engine).values()] == [3, 5]
    paint(larger, tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")
    assert len(manifest(run / "types" / "hole")) == 13


def test_nothing_is_begun_while_a_file_of_any_type_is_bad(jobs, run):
    jobs[1].masks[2].write_bytes(b"")
    with pytest.raises(MaskError, match=r"^tile\+crack: `.*002_mask.png`"):
        paint(jobs, run)
    assert not run.exists()


def test_a_run_of_one_type_or_a_folder_with_other_files_is_left_alone(jobs, run, tmp_path):
    fill(FakeEngine(), jobs[0], run)
    before = contents(run)
    with pytest.raises(RunError, match="holds a run of one type"):
        paint(jobs, run)
    assert contents(run) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(RunError, match="holds files that are no run of stage-rt"):
        paint(jobs, tmp_path / "mine")


def test_the_outlook_counts_pairs_and_measures_a_few_steps(jobs, run):
    engine = FakeEngine(delay=0.01, steps=50)
    found = outlook(engine, plans(engine.spec, jobs, notify=ignore))
    assert found.pairs == {"tile+hole": 10, "tile+crack": 5}
    assert 50 * 5 * 0.01 < found.seconds < 50 * 5 * 0.03
    assert 15 * 40 * 30 < found.bytes < 15 * 40 * 30 * 3
    assert not run.exists()
