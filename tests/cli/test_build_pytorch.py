"""``stage-rt build --backend inductor|torch``: what it refuses before PyTorch is asked."""

import pytest

from stage_rt.cli import main
from stage_rt.spec import GRAPHS_FILE, MODEL_FILE

pytestmark = pytest.mark.parametrize("backend", ["inductor", "torch"])


def refused(capsys, backend, *arguments):
    with pytest.raises(SystemExit) as exited:
        main(["build", *map(str, arguments), "--backend", backend])
    assert exited.value.code == 1
    return capsys.readouterr().err


def test_graphs_are_no_model(backend, tmp_path, capsys):
    source = tmp_path / "graphs"
    source.mkdir()
    (source / GRAPHS_FILE).touch()
    assert refused(capsys, backend, source, "-o", tmp_path / "engine") == (
        f"error: `{source}` holds no model (stage.json): `--backend {backend}` takes no ONNX graphs\n"
    )


def test_a_target_cannot_be_chosen(backend, tmp_path, capsys):
    source = tmp_path / "model"
    source.mkdir()
    (source / MODEL_FILE).touch()
    assert refused(capsys, backend, source, "-o", tmp_path / "engine", "--target", "sm86") == (
        f"error: `--backend {backend}` builds for the GPU of this machine: leave `--target` out\n"
    )
