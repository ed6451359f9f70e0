"""The fewest steps: what passes, what does not, and that a run takes the number that was kept."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import PROMPT, FakeEngine, stand_in, ten_pairs

from stage_rt.cli import main
from stage_rt.errors import BackendError, EngineError, InputError
from stage_rt.folders import read_engine
from stage_rt.run.fewest import compared, fewest_steps, keep
from stage_rt.run.job import resolve
from stage_rt.spec import ENGINE_FILE, PromptDefaults


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What a stopped measurement keeps stays in the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def figures(count, *, shift=0.0, seed=0):
    """Fill and contrast of pairs whose seeds change them by 0.1 and by 5."""
    rng = np.random.default_rng(seed)
    return np.array([0.7, -40.0]) + np.array([0.1, 5.0]) * (rng.normal(size=(count, 2)) + shift)


def off(count, shift):
    rows = [
        compared(
            20,
            figures(count, shift=shift, seed=3 * n + 2),
            (figures(count, seed=3 * n), figures(count, seed=3 * n + 1)),
        )
        for n in range(200)
    ]
    return np.array([row[3:] for row in rows])


def test_what_all_steps_might_have_made_passes_and_what_they_might_not_does_not():
    assert np.mean(off(24, 0.0).max(axis=1) <= 1) > 0.85
    # At the very edge no more than one in twenty may pass, in either direction; the deviation is estimated too.
    for edge in (-1.0, 1.0):
        assert np.mean(off(24, edge) <= 1) < 0.1
    assert np.mean(off(24, 2.0) <= 1) < 0.001


def test_few_pairs_do_not_make_few_steps():
    passed = [np.mean(off(count, 0.0).max(axis=1) <= 1) for count in (4, 8, 16, 64)]
    assert passed == sorted(passed)
    assert passed[0] < 0.2
    assert passed[-1] > 0.99


def test_where_seeds_change_nothing_nothing_else_may():
    same = np.full((8, 2), 0.5)
    assert compared(20, same, (same, same)).passed
    assert not compared(20, same + np.array([0.001, 0]), (same, same)).passed


class Fading(FakeEngine):
    """Fewer than ``enough`` steps paint fainter, by a share of it."""

    def __init__(self, enough, **options):
        super().__init__(**options)
        self.enough, self.asked = enough, []

    def paint(self, images, masks, *, steps, **options):
        self.asked.append(steps)
        painted = super().paint(images, masks, steps=steps, **options)
        share = min(steps / self.enough, 1.0)
        return painted._replace(images=images + np.float32(share) * (painted.images - images))


@pytest.mark.parametrize(("enough", "found"), [(1, 10), (45, 50), (120, 120)])
def test_the_first_number_that_passes_is_found_and_no_larger_one_painted(tmp_path, enough, found):
    engine = Fading(enough, steps=120)
    result = fewest_steps(engine, replace(ten_pairs(tmp_path), count=24), notify=lambda notice: None)
    assert result.steps == found, result.rows
    tried = [10, 15, 20, 30, 50, 100]
    assert list(dict.fromkeys(engine.asked)) == [120, *[count for count in tried if count <= found]]
    assert [row.steps for row in result.rows] == sorted({*engine.asked})
    assert [row.passed for row in result.rows] == [row.steps >= found for row in result.rows]


class Stop(BaseException):
    """As a signal ends a command."""


def stopping(after, progress=lambda share: None):
    def told(share):
        progress(share)
        if share > after:
            raise Stop

    return told


def test_what_was_painted_before_it_was_stopped_is_not_painted_again(tmp_path):
    job = replace(ten_pairs(tmp_path), count=24)

    def measured(engine, after=1.0, **changes):
        return fewest_steps(
            engine, replace(job, **changes), notify=lambda notice: None, progress=stopping(after)
        )

    whole = measured(one := Fading(45, steps=120))
    asked = []
    for after in (0.1, 0.3, 0.5, 0.7, 1.0):
        engine = Fading(45, steps=120)
        if after < 1:
            with pytest.raises(Stop):
                measured(engine, after)
            # The batch in hand is all that is lost.
            engine.asked.pop()
        else:
            assert measured(engine) == whole
        asked += engine.asked
    assert asked == one.asked
    # Nothing is left, and what is another measurement begins at its beginning.
    assert list((tmp_path / "cache").rglob("*/calibrate/*")) == []
    with pytest.raises(Stop):
        measured(Fading(45, steps=120), 0.5)
    measured(other := Fading(45, steps=120), seed=8)
    assert other.asked == one.asked
    measured(other := Fading(45, steps=120, fingerprint="1" * 64))
    assert other.asked == one.asked


def test_what_was_kept_and_is_damaged_or_cannot_be_kept_is_measured_again(tmp_path):
    job, cache = ten_pairs(tmp_path), tmp_path / "cache"
    whole = fewest_steps(FakeEngine(steps=30), job, notify=lambda notice: None)
    with pytest.raises(Stop):
        fewest_steps(FakeEngine(steps=30), job, notify=lambda notice: None, progress=stopping(0.5))
    (kept,) = cache.rglob("calibrate/*")
    kept.write_bytes(kept.read_bytes()[:-2])
    assert fewest_steps(FakeEngine(steps=30), job, notify=lambda notice: None) == whole
    shutil.rmtree(cache)
    cache.write_text("no folder")
    assert fewest_steps(FakeEngine(steps=30), job, notify=lambda notice: None) == whole


def test_a_pair_that_is_not_finite_ends_it(tmp_path):
    with pytest.raises(BackendError, match="a pair came out non-finite with 10 steps"):
        fewest_steps(FakeEngine(poisoned=(0,)), ten_pairs(tmp_path), notify=lambda notice: None)


def test_a_job_takes_what_was_measured_or_says_who_measures(tmp_path):
    job = replace(ten_pairs(tmp_path), steps="auto")
    model = FakeEngine(steps=120, defaults={PROMPT: PromptDefaults(steps=30)}).spec.model
    assert resolve(job, model).steps == 30
    with pytest.raises(
        InputError, match="nobody measured yet how few steps prompt 'tile\\+hole' needs: run `stage-rt"
    ):
        resolve(job, FakeEngine().spec.model)
    model = model.model_copy(update={"surface": "tile"})
    changes = {"guidance": 2.0, "prompt_guidance": 3.0, "solver": "unipc", "sampler": "sdas"}
    for name, value in changes.items():
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(InputError, match=rf"^`--steps auto` was measured .*, which `{option}` changes"):
            resolve(replace(job, **{name: value}), model)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command on the engine that lies in ``engine``, with photographs and masks beside it."""
    ten_pairs(tmp_path)
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / ENGINE_FILE).write_text(FakeEngine(steps=30).spec.sealed())
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        defaults = read_engine(tmp_path / "engine").model.defaults
        engine = FakeEngine(steps=30, defaults=defaults)
        monkeypatch.setitem(sys.modules, "stage_rt.loading", stand_in(engine))
        with pytest.raises(SystemExit) as exited:
            main([name, "engine", "--normals", "normals", "--masks", "masks", "--prompt", PROMPT, *arguments])
        return exited.value.code, *capsys.readouterr()

    return run


def test_the_command_keeps_it_in_the_engine_and_synth_takes_it(command, tmp_path):
    before = read_engine(tmp_path / "engine")
    assert command("synth", "-o", "run", "--steps", "auto")[::2] == (
        1,
        f"error: nobody measured yet how few steps prompt {PROMPT!r} needs: run `stage-rt calibrate` with this "
        "engine, or give a number\n",
    )
    code, out, err = command("calibrate", "--pairs", "24", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["prompt"], found["pairs"], found["steps"]) == (PROMPT, 24, 10)
    assert [row["steps"] for row in found["rows"]] == [10, 30]
    after = read_engine(tmp_path / "engine")
    assert after.model.defaults == {PROMPT: PromptDefaults(steps=10)}
    assert after.fingerprint == before.fingerprint
    assert command("synth", "-o", "run", "--steps", "auto")[0] == 0
    assert json.loads((tmp_path / "run" / "run.json").read_bytes())["steps"] == 10


def test_its_table_says_what_follows(command):
    code, out, err = command("calibrate")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["steps", "fill"]
    assert lines[-1] == f"`--steps auto` is 10 for prompt {PROMPT!r} from now on"


def test_an_engine_that_was_built_meanwhile_is_not_told_of_steps_that_another_needs(tmp_path):
    path, measured = tmp_path / ENGINE_FILE, FakeEngine(steps=30).spec
    path.write_text(FakeEngine(steps=30, fingerprint="1" * 64).spec.sealed())
    before = path.read_bytes()
    with pytest.raises(
        EngineError, match=f"^`{tmp_path}` holds another engine than the one that needs 10 steps"
    ):
        keep(tmp_path, measured, PROMPT, 10)
    assert path.read_bytes() == before
