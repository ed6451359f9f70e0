"""The command in front of the protocol: its result, and errors of one sentence."""

import json
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from micro import write_dataset

from stage_rt import loading
from stage_rt.cli import main
from stage_rt.quality.learning import Lesson
from stage_rt.quality.sizes import SIZES, Size


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(SIZES, "cpu", Size(32, 3, 10, Lesson("unet", 2, 2, 1e-3, 32)))
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "part", defects=6)

    other = ("part/dent/0.png", "part/dent/1.png")

    def command(*arguments: str, held_out=("part/dent/4.png", "part/dent/5.png")) -> tuple[int, str, str]:
        def load(folder: Path, notify: object) -> FakeEngine:
            engine = FakeEngine()
            names = other if folder.name == "other" else held_out
            prompts, provenance = {"part+dent": "a"}, {"held_out": list(names)} if names else {}
            model = engine.spec.model.model_copy(update={"prompts": prompts, "provenance": provenance})
            engine.spec = engine.spec.model_copy(update={"model": model})
            return engine

        monkeypatch.setattr(loading, "load", load)
        with pytest.raises(SystemExit) as exited:
            main(["evaluate", "part", "--engine", "engine", "-o", "results", *arguments])
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    return command


def test_the_result_is_on_the_page_and_as_json(run, tmp_path: Path) -> None:
    code, out, err = run("--sources", "ours,nsa", "--seeds", "1", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert [row["row"] for row in result["rows"]][:3] == ["real only", "with ours", "with nsa"]
    assert result["how"]["command"] == (
        "stage-rt evaluate part --engine engine -o results --size cpu --sources ours,nsa --seeds 1"
    )
    assert (tmp_path / "results" / "report.html").is_file()
    code, out, err = run("--sources", "ours,nsa", "--seeds", "1")
    assert code == 0, err
    assert out.splitlines()[-1] == "page `results/report.html`"


@pytest.mark.parametrize(
    ("arguments", "held_out", "sentence"),
    [
        (("--sources", "theirs"), ("part/dent/5.png",), "unknown source 'theirs': use ours, "),
        (("--types", "hole"), ("part/dent/5.png",), "unknown type 'hole': use dent"),
        ((), (), "the engine's model saw every labelled photograph"),
        ((), ("other/dent/5.png",), "`part` is not what the model was trained on"),
        (("--sources", "gone=nowhere"), ("part/dent/5.png",), "`nowhere` is not a folder"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_one_sentence(run, arguments, held_out, sentence) -> None:
    code, out, err = run(*arguments, held_out=held_out)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"error: {sentence}")


def test_engines_of_one_name_would_share_their_results(run) -> None:
    code, out, err = run("--engine", "elsewhere/engine")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: `engine` and `elsewhere/engine` are both called 'engine'")


def test_several_engines_are_several_splits(run, tmp_path: Path) -> None:
    code, out, err = run("--engine", "other", "--sources", "nsa", "--seeds", "1", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert [one["engine"] for one in result["splits"]] == ["engine", "other"]
    assert "--engine engine --engine other -o results" in result["how"]["command"]
    assert (tmp_path / "results" / "other" / "report.html").is_file()
