"""``stage-rt build --backend inductor``: what it refuses before PyTorch is asked."""

import pytest

from stage_rt.cli import main
from stage_rt.spec import GRAPHS_FILE, MODEL_FILE


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as exited:
        main(["build", *map(str, arguments), "--backend", "inductor"])
    assert exited.value.code == 1
    return capsys.readouterr().err


def test_graphs_are_no_model(tmp_path, capsys):
    (tmp_path / GRAPHS_FILE).touch()
    assert refused(capsys, tmp_path, "-o", tmp_path / "engine") == (
        f"error: `{tmp_path}` holds no model (stage.json): `--backend inductor` compiles no ONNX graphs\n"
    )


def test_a_target_cannot_be_chosen(tmp_path, capsys):
    (tmp_path / MODEL_FILE).touch()
    assert refused(capsys, tmp_path, "-o", tmp_path / "engine", "--target", "sm86") == (
        "error: `--backend inductor` builds for the GPU of this machine: leave `--target` out\n"
    )
