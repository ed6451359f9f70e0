"""Several types in one folder: each a run of its own, resumed, grown and joined by others to the same bytes."""

import json
import shutil
from dataclasses import replace

import pytest
from fake_engine import FakeEngine, contents, labels, manifest

from stage_rt.errors import MaskError, RunError
from stage_rt.noise import stream
from stage_rt.progress import silent
from stage_rt.run import night
from stage_rt.run import watch as watching
from stage_rt.run.fill import fill
from stage_rt.run.night import follow_all, left_of, outlook, plans
from stage_rt.run.painters import Alone
from stage_rt.run.watch import METRICS, UNWATCHED, Recorder
from stage_rt.samplers import find, repaint


@pytest.fixture
def jobs(job, tmp_path):
    """The job, and one of five cracks."""
    return [job, replace(job, prompt="tile+crack", masks=labels(tmp_path / "cracks", 3), count=5)]


def ignore(notice):
    """A notice that nobody reads."""


def paint(jobs, folder, engine=None, progress=silent, watch=UNWATCHED):
    engine = engine or FakeEngine()
    made = plans(engine.spec, jobs, notify=ignore)
    return follow_all(Alone(engine), made, folder, watch=watch, notify=ignore, progress=progress)


def figures(jobs, folder, engine=None):
    """Those of the types once jobs were painted."""
    watch = Recorder(gpus=list)
    paint(jobs, folder, engine, watch=watch)
    watch.end("done", "every sample is")
    return json.loads((folder / METRICS).read_text())


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


def good(folder):
    """Names of the good photographs to learn from and to test on."""
    return [{path.name for path in folder.glob(f"{side}/good/*.png")} for side in ("train", "test")]


def test_a_type_that_a_command_does_not_name_keeps_its_place(jobs, run, tmp_path):
    jobs = [replace(jobs[0], count=3), replace(jobs[1], count=1)]
    paint(jobs[:1], run)
    engine = FakeEngine()
    assert list(paint(jobs[1:], run, engine)) == ["tile+crack"]
    assert engine.batches == [[0]]
    paint(jobs, tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")
    learned, tested = good(run)
    painted = {line["normal"] for kind in ("hole", "crack") for line in manifest(run / "types" / kind)}
    assert tested == painted
    assert learned
    paint(jobs[:1], run)
    assert contents(run) == contents(tmp_path / "whole")


def test_of_a_type_that_is_not_finished_nothing_is_learned_either(jobs, run):
    def stop(share):
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paint([replace(jobs[0], batch=1, count=4)], run, progress=stop)
    manifest_file = run / "types/hole/manifest.jsonl"
    with manifest_file.open("ab") as file:
        file.write(b'{"index":')
    before = manifest_file.read_bytes()
    (run / "types" / "stray").mkdir()
    paint([replace(jobs[1], count=1)], run)
    assert manifest_file.read_bytes() == before
    lines = [json.loads(line) for line in before.splitlines()[:-1]]
    assert 0 < len(lines) < 4
    assert {line["normal"] for line in lines} <= good(run)[1]
    assert "1 of 1 pairs written" in (run / "report/index.html").read_text()


def test_the_figures_are_of_types_that_a_command_does_not_name_too(jobs, run):
    def engine():
        return FakeEngine(poisoned=[4, stream(4, attempt=1)], idle=lambda number: number % 2**20 in (2, 7))

    jobs[0] = replace(jobs[0], min_fill=0.3, retries=1)
    whole = figures(jobs, run.with_name("whole"), engine())["types"]
    assert all(whole["hole"][name] for name in ("refilled", "weak", "failed"))
    paint(jobs[:1], run, engine())
    assert figures(jobs[1:], run, engine())["types"] == whole


def test_the_figures_of_a_type_that_is_not_finished_are_of_what_is_done(jobs, run, monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 0.0)

    def stop(share):
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paint([replace(jobs[0], batch=1, count=4)], run, progress=stop)
    done = len(manifest(run / "types/hole"))
    told = figures(jobs[1:], run)
    assert 0 < told["types"]["hole"]["done"] == told["types"]["hole"]["pairs"] == done < 4
    assert told["types"]["hole"]["planned"] == 4
    # What is left of it is another command's.
    assert told["seconds_left"] == 0


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_command_without_the_photographs_of_another_type_is_to_name_all(jobs, run, change):
    paint(jobs[:1], run)
    before, used = contents(run), jobs[0].normals[1]
    normals = [path for path in jobs[0].normals if path != used]
    if change == "other":
        # In its place, as the run may hold a link to it.
        used.unlink()
        used.write_bytes(normals[0].read_bytes())
        normals.append(used)
    engine = FakeEngine()
    with pytest.raises(
        RunError, match=r"also holds pairs of 'tile\+hole', and `001.png`.*: name all of its types"
    ):
        paint([replace(jobs[1], normals=normals)], run, engine)
    assert engine.batches == []
    assert contents(run) == before


def test_a_damaged_type_that_a_command_does_not_name_is_named(jobs, run):
    paint(jobs[:1], run)
    ledger = run / "types/hole"
    lines = (ledger / "manifest.jsonl").read_bytes()
    (ledger / "manifest.jsonl").write_bytes(lines.replace(b'"seed":7', b'"seed":8', 1))
    with pytest.raises(RunError, match=r"types/hole/manifest.jsonl` is damaged in line 1: "):
        paint(jobs[1:], run)
    (ledger / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"types/hole/run.json` is not valid at "):
        paint(jobs[1:], run)


@pytest.mark.parametrize("name", ["test/hole/000000.png", "ground_truth/hole/000003_mask.png"])
@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_pair_of_a_type_that_a_command_does_not_name_is_named(jobs, run, tmp_path, name, damage):
    """Before anything is painted, and naming its type as well is what mends it."""
    paint(jobs[:1], run)
    if damage == "gone":
        (run / name).unlink()
    else:
        (run / name).write_bytes(b"of another pair")
    before, engine = contents(run), FakeEngine()
    with pytest.raises(RunError) as refusal:
        paint(jobs[1:], run, engine)
    assert str(refusal.value) == (
        f"`{run / name}` of 'tile+hole' is missing or not as it was painted, and the report shows it: "
        "name its type too, and it is painted again"
    )
    assert engine.batches == []
    assert {path: content for path, content in contents(run).items() if path != ".lock"} == {
        path: content for path, content in before.items() if path != ".lock"
    }
    paint(jobs, run)
    paint(jobs, tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")


def test_a_pair_that_the_report_does_not_show_may_be_missing(jobs, run):
    """Of fourteen it shows twelve at full size, and of the others the small pictures that it has."""
    paint([replace(jobs[0], count=14)], run)
    (run / "test/hole/000013.png").unlink()
    paint(jobs[1:], run)
    shutil.rmtree(run / "report/thumbnails/hole")
    engine = FakeEngine()
    with pytest.raises(RunError, match=r"test/hole/000013.png` of 'tile\+hole' is missing or not as it was"):
        paint([replace(jobs[1], count=6)], run, engine)
    assert engine.batches == []


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_pair_that_goes_while_another_type_is_painted_is_no_failed_write(jobs, run, damage):
    paint(jobs[:1], run)
    path = run / "test/hole/000000.png"

    def spoil(share):
        if share > 0.5 and path.exists():
            path.unlink()
            if damage == "cut":
                path.write_bytes(b"\x89PNG")

    with pytest.raises(
        RunError, match=r"^`.*000000.png`, which the report shows, is missing or damaged: give the"
    ):
        paint(jobs[1:], run, progress=spoil)
    paint(jobs, run)


def test_nothing_is_begun_while_a_file_of_any_type_is_bad(jobs, run):
    jobs[1].masks[2].write_bytes(b"")
    with pytest.raises(MaskError, match=r"^tile\+crack: `.*002_mask.png`"):
        paint(jobs, run)
    assert not run.exists()


def test_nothing_is_painted_while_a_later_type_has_another_run_in_its_place(jobs, run):
    paint(jobs, run)
    before, engine = contents(run), FakeEngine()
    others = [replace(jobs[0], count=13), replace(jobs[1], seed=8)]
    with pytest.raises(RunError, match=r"types/crack` holds another run, whose seed is 7 and not 8"):
        paint(others, run, engine)
    assert engine.batches == []
    assert contents(run) == before


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
    made = plans(engine.spec, jobs, notify=ignore)
    found = outlook(engine, made, left_of(made, run, several=True))
    assert found.pairs == {"tile+hole": 10, "tile+crack": 5}
    assert 50 * 5 * 0.01 < found.seconds < 50 * 5 * 0.03
    assert 15 * 40 * 30 < found.bytes < 15 * 40 * 30 * 3
    assert not run.exists()


def test_the_outlook_of_a_run_that_is_partly_there_is_of_what_is_left(jobs, run, monkeypatch):
    """Batches of four of which something is missing are painted whole, and only what is missing is written."""
    paint(jobs, run)
    (run / "test/hole/000001.png").unlink()
    (run / "test/hole/000009.png").unlink()
    with (run / "types/hole/manifest.jsonl").open("ab") as file:
        file.write(b'{"index":')
    larger = [jobs[0], replace(jobs[1], count=6)]
    before = contents(run)

    def look(folder):
        engine = Telling()
        monkeypatch.setattr(night, "monotonic", lambda: engine.clock)
        made = plans(engine.spec, larger, notify=ignore)
        return outlook(engine, made, left_of(made, folder, several=True))

    found, whole = look(run), look(run.with_name("nothing"))
    assert (found.pairs, found.left) == (
        {"tile+hole": 10, "tile+crack": 6},
        {"tile+hole": 2, "tile+crack": 1},
    )
    assert whole.left == whole.pairs == found.pairs
    # Four and two of the holes, two of the cracks; of all ten and six.
    assert (found.seconds, whole.seconds) == (pytest.approx((2 + 1) * 100), pytest.approx((3 + 2) * 100))
    assert found.bytes == pytest.approx(whole.bytes * 3 / 16, abs=2)
    assert contents(run) == before
    paint(larger, run)
    assert look(run).left == {"tile+hole": 0, "tile+crack": 0}
    assert look(run).seconds == look(run).bytes == 0


class Telling(FakeEngine):
    """Tells of its progress every so many calls, each of which takes two seconds of a clock of its own."""

    def __init__(self, every=1):
        super().__init__(steps=50)
        self.every, self.clock, self.calls = every, 100.0, 0

    def paint(self, images, masks, *, sampler, recipe, steps, progress, **_):
        calls = find(sampler).calls(recipe, steps)
        for call in range(1, calls + 1):
            self.clock += 2.0
            self.calls += 1
            if call % self.every == 0 or call == calls:
                progress(call / calls)


@pytest.fixture
def foreseen(jobs, monkeypatch, tmp_path):
    """Seconds that two types are foreseen to take, on the engine's clock."""

    def look(engine, sampler="stage"):
        monkeypatch.setattr(night, "monotonic", lambda: engine.clock)
        made = plans(engine.spec, [replace(job, sampler=sampler) for job in jobs], notify=ignore)
        return outlook(engine, made, left_of(made, tmp_path / "nothing", several=True)).seconds

    return look


@pytest.mark.parametrize(("sampler", "calls"), [("stage", 50), ("sdas", 20), ("repaint", repaint.calls(50))])
def test_the_outlook_counts_calls_and_not_levels(foreseen, sampler, calls):
    """RePaint goes down every stretch of levels ten times."""
    # Ten pairs and five, four at a time.
    assert foreseen(Telling(), sampler) == pytest.approx((3 + 2) * calls * 2.0)
    assert repaint.calls(50) > 5 * 50


@pytest.mark.parametrize(("every", "measured"), [(1, 5), (20, 40), (25, 50), (50, 50), (1000, 50)])
def test_the_outlook_is_the_same_however_rarely_progress_is_told(foreseen, every, measured):
    """A device tells it every fifty steps, of fewer only at their end."""
    engine = Telling(every)
    assert foreseen(engine) == pytest.approx((3 + 2) * 50 * 2.0)
    assert engine.calls == 2 * measured
