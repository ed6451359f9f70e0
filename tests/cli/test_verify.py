"""``stage-rt verify``: table, JSON, picture and exit code."""

import json

import pytest
from PIL import Image
from small_model import write_small_model

from stage_rt.cli import main


@pytest.fixture
def run(capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as exited:
            main(["verify", *map(str, arguments)])
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return command


def test_a_right_engine_gives_a_table_of_passes_and_a_picture(run, engine_folder, model_folder, tmp_path):
    code, out, err = run(engine_folder, "--model", model_folder, "-o", tmp_path / "plots" / "errors.png")
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split() == ["worst", "of", "max", "abs", "max", "rel", "cosine", "tolerance"]
    assert [row.split()[0] for row in rows[:3]] == ["contexts", "vae_encoder", "vae_decoder"]
    assert len(rows) == 8
    assert all(row.endswith("  pass") for row in rows)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["errors.png"]
    with Image.open(tmp_path / "plots" / "errors.png") as picture:
        assert picture.width > 800


def test_a_wrong_engine_gives_exit_code_3_the_table_and_the_picture(run, engine_folder, tmp_path):
    other = write_small_model(tmp_path / "other", seed=1)
    code, out, err = run(engine_folder, "--model", other, "--timesteps", "2", "-o", tmp_path / "errors.png")
    assert code == 3
    assert out.count("  FAIL\n") == 8
    assert err.startswith("error: 8 of 8 comparisons failed, worst `contexts`")
    assert err.count("\n") == 1
    assert (tmp_path / "errors.png").is_file()


def test_json_holds_every_figure(run, engine_folder, model_folder):
    arguments = ("--timesteps", "2", "--prompt", "tile+hole", "--json")
    code, out, err = run(engine_folder, "--model", model_folder, *arguments)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["passed"], found["dtype"], found["prompt"]) == (True, "fp32", "tile+hole")
    assert {(row["graph"], row["batch"], row["timestep"]) for row in found["graphs"]} >= {
        ("unet", 1, 0),
        ("unet", 4, 9),
        ("adapters/tile.only", 4, 0),
        ("vae_decoder", 1, None),
    }
    assert [state["iteration"] for state in found["trajectory"]] == list(range(10))
    assert all(row["passed"] and row["max_rel"] <= row["tolerance"] for row in found["worst"])


@pytest.mark.parametrize("name", ["errors.jpg", "folder.png"])
def test_a_picture_that_cannot_be_is_refused_at_once(run, engine_folder, model_folder, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    code, out, err = run(engine_folder, "--model", model_folder, "-o", tmp_path / name)
    assert (code, out) == (1, "")
    assert err == f"error: `{tmp_path / name}` is no name for a picture: choose one that ends in `.png`\n"


def test_a_picture_that_cannot_be_written_is_told_before_the_work(
    run, engine_folder, model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("stage_rt.export.verify.verify", None)
    (tmp_path / "file").touch()
    assert run(engine_folder, "--model", model_folder, "-o", tmp_path / "file/errors.png") == (
        3,
        "",
        f"error: writing to `{tmp_path}/file/errors.png` failed (Not a directory): mend that and run the same "
        "command again\n",
    )


def test_what_is_no_engine_is_one_line(run, model_folder, tmp_path):
    code, out, err = run(tmp_path, "--model", model_folder)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: `{tmp_path}` is not an engine folder")
    assert err.count("\n") == 1
