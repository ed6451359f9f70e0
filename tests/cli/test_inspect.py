"""`stage-rt inspect` as a user meets it."""

import json
import os
import shutil
import sys

import pytest
from descriptions import rewrite

from stage_rt.cli import main
from stage_rt.files import sha256
from stage_rt.folders import read_engine
from stage_rt.spec import ENGINE_FILE


@pytest.fixture
def inspect(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exited:
            main(["inspect", *map(str, arguments)])
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


def test_json_holds_everything_there_is_to_know(inspect, rtx_engine):
    code, out, err = inspect(rtx_engine, "--json")
    assert (code, err) == (0, "")
    found, spec = json.loads(out), read_engine(rtx_engine)
    assert found["targets"] == ["sm86", "sm89", "sm120"]
    assert (found["backend"], found["dtype"], found["batch"]) == ("tensorrt-rtx", "fp16", [1, 2])
    assert (found["library"], found["library_version"]) == (spec.library, spec.library_version)
    assert (found["workspace"], found["fingerprint"]) == (spec.workspace, spec.fingerprint)
    assert found["recipe"] == spec.model.recipe.model_dump(mode="json")
    assert (found["region"], found["defaults"]) == (None, {})
    unet = rtx_engine / "unet.engine"
    assert found["files"]["unet.engine"] == {"size": unet.stat().st_size, "sha256": sha256(unet)}
    assert found["size"] == sum(file["size"] for file in found["files"].values())


def test_the_text_of_an_engine_for_the_cpu(inspect, engine_folder, monkeypatch):
    # Neither its library nor a GPU is asked.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = inspect(engine_folder)
    spec = read_engine(engine_folder)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:10] == [
        f"engine       {engine_folder}",
        f"backend      onnxruntime (onnxruntime {spec.library_version})",
        "targets      cpu",
        "dtype        fp32",
        "batch        1, 4",
        "workspace    none",
        f"fingerprint  {spec.fingerprint}",
        f"graphs       {spec.graphs_fingerprint}",
        "image size   32",
        "recipe       short, 10 steps",
    ]
    assert lines[10] == "view         whole photographs"
    assert lines[11:15] == [
        "photographs  grey",
        "prompts      2",
        "  tile+crack  guidance 1",
        "  tile+hole   guidance 1",
    ]
    assert lines[15].startswith("files        ")
    assert [line.split()[0] for line in lines[16:]] == sorted(spec.files)


TRAINED = {"trained_on": "tile", "images": 3667, "preset": "tiny", "seed": 2, "torch": "2.13.0"}
HELD_OUT = ["tile/crack/7.png", "tile/hole/3.png"]


@pytest.mark.parametrize(
    ("provenance", "told"),
    [
        (
            {**TRAINED, "held_out": HELD_OUT},
            ["trained on   tile, preset tiny, seed 2, 3667 pictures", "held out     2 photographs"],
        ),
        (
            {**TRAINED, "held_out": []},
            [
                "trained on   tile, preset tiny, seed 2, 3667 pictures",
                "held out     none, so that `stage-rt evaluate` refuses it",
            ],
        ),
        (
            {"trained_on": "tile", "held_out": HELD_OUT[:1]},
            ["trained on   tile", "held out     1 photograph"],
        ),
        ({"imported": "anogen"}, ["imported     by `stage-rt import anogen`"]),
    ],
)
def test_what_the_model_was_made_of_comes_before_the_files(
    inspect, engine_folder, tmp_path, provenance, told
):
    engine = shutil.copytree(engine_folder, tmp_path / "engine")
    changed = {
        "image_channels": 3,
        "provenance": provenance,
        "defaults": {
            "tile+crack": {"guidance": 1.5, "min_fill": 0.687, "rim": [0.5], "outset": 0.5, "steps": 30}
        },
    }
    model = json.loads((engine / ENGINE_FILE).read_text())["model"] | changed
    rewrite(engine / ENGINE_FILE, model=model)
    _, out, _ = inspect(engine)
    lines = out.splitlines()
    assert lines[11 : lines.index(next(line for line in lines if line.startswith("files ")))] == [
        "photographs  in colour",
        *told,
        "prompts      2",
        "  tile+crack  guidance 1.5, least fill 0.687, outset 0.5 px, fades out beyond its label, "
        "30 steps by `stage-rt calibrate`",
        "  tile+hole   guidance 1",
    ]
    found = json.loads(inspect(engine, "--json")[1])
    assert (found["image_channels"], found["provenance"]) == (3, provenance)


def test_the_card_that_an_engine_was_tuned_on_is_told(inspect, engine_folder, tmp_path):
    engine = shutil.copytree(engine_folder, tmp_path / "engine")
    rewrite(engine / ENGINE_FILE, backend="tensorrt", devices=["sm90"], gpu="NVIDIA H200")
    _, out, _ = inspect(engine)
    assert out.splitlines()[2:4] == ["targets      sm90", "tuned on     NVIDIA H200"]
    _, out, _ = inspect(engine, "--json")
    assert json.loads(out)["gpu"] == "NVIDIA H200"


def test_a_truncated_engine_is_named(inspect, rtx_engine, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(rtx_engine, copy)
    os.truncate(copy / "vae_decoder.engine", 100_000)
    code, out, err = inspect(copy)
    assert (code, out) == (1, "")
    assert err == (
        f"error: `{copy}/vae_decoder.engine` is not the file that engine.json lists: "
        "build the engine again with `stage-rt build`\n"
    )


def test_a_folder_that_is_no_engine(inspect, tmp_path):
    assert inspect(tmp_path) == (
        1,
        "",
        f"error: `{tmp_path}` is not an engine folder (no engine.json): make one with `stage-rt build`\n",
    )
