"""Photographs to pairs through the commands alone: train, build, synth and demo, with a model of no use."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_engine import opened
from micro import MICRO, write_dataset

from stage_rt.cli import main
from stage_rt.training.presets import PRESETS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a folder with the data set ``part``."""
    monkeypatch.setitem(PRESETS, "tiny", MICRO)
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "part")

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    return command


def test_train_build_synth(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run("train", "part", "-o", "model")
    assert (code, out) == (0, "model `model`\n"), err
    assert "guidance 8/8" in err
    build = ("build", "model", "-o", "engine", "--batch", "2")
    assert run(*build)[1] == "engine `engine`\n"
    with monkeypatch.context() as patched:
        patched.setattr("stage_rt.export.graphs.export", None)
        (tmp_path / "model" / "README.md").write_text("of no consequence")
        assert run(*build) == (0, "engine `engine` is up to date\n", "")
        assert run(*build, "--dtype", "fp16")[0] == 3
    arguments = ("--normals", "part/train/good", "--masks", "part/ground_truth/spot", "--prompt", "part+spot")
    code, out, err = run(
        "synth", "engine", *arguments, "--count", "3", "--min-fill", "0", "-o", "run", "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["pairs"] == 3
    plainer = ("--count", "1", "--min-fill", "0", "--steps", "10", "--prompt-guidance", "2", "-o", "plainer")
    code, out, err = run("synth", "engine", *arguments, *plainer)
    assert (code, err) == (0, "")
    assert run("synth", "engine", *arguments[:4], "--prompt", "good", "-o", "none")[0] == 1
    for k in range(3):
        image = np.asarray(opened(tmp_path / f"run/test/spot/{k:06}.png"))
        mask = np.asarray(opened(tmp_path / f"run/ground_truth/spot/{k:06}_mask.png"))
        assert image.shape == mask.shape == (40, 40)
        assert set(np.unique(mask)) == {0, 255}


def test_demo_paints_a_pair_for_every_mask(run: Run, tmp_path: Path) -> None:
    run("train", "part", "-o", "model")
    shutil.copytree("part/train/good", "model/inputs/normals")
    shutil.copytree("part/ground_truth", "model/inputs/masks")
    code, out, err = run("demo", "--model", "model", "-o", "demo", "--steps", "10")
    assert (code, err) == (0, "")
    assert out.splitlines()[-3:] == [
        "6 pairs in `demo/run`",
        "contact sheet `demo/run/report/contact_sheet.jpg`",
        "page `demo/run/report/index.html`",
    ]
    for kind in ("dent", "spot"):
        assert len(list((tmp_path / "demo/run/test" / kind).iterdir())) == 3
    assert opened(tmp_path / "demo/run/report/contact_sheet.jpg").width > 500


def test_demo_outside_the_repository_says_where_to_be(run: Run) -> None:
    code, out, err = run("demo")
    assert (code, out) == (1, "")
    assert err.startswith("error: `models/demo/inputs` is missing: run the demo in a checkout")
    assert err.count("\n") == 1


def test_train_refuses_a_seed_that_is_no_number_of_64_bits(run: Run) -> None:
    code, _, err = run("train", "part", "-o", "model", "--seed", str(2**64))
    assert code == 2
    assert str(2**64 - 1) in err


def test_train_refuses_a_folder_that_is_no_data_set(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = run("train", "empty", "-o", "model")
    assert (code, out) == (1, "")
    assert err.startswith("error: `empty` is in no known layout")
    assert not (tmp_path / "model").exists()
