"""Compiling a model with PyTorch: what is refused before anything is compiled."""

import shutil

import pytest
import torch

from stage_rt.errors import BackendError, DeviceError, ParityError
from stage_rt.export import inductor
from stage_rt.export.inductor import build, compile_network


def test_without_a_gpu_another_backend_is_named(model_folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=r"finds none here: .* use `--backend tensorrt-rtx`"):
        build(model_folder, tmp_path / "engine", dtype="fp16", batch=[1])
    assert not (tmp_path / "engine").exists()


def test_a_network_that_cannot_be_compiled_is_named(tmp_path):
    class Choosy(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(BackendError, match=r"PyTorch cannot compile `choosy.b1.pt2`: "):
        compile_network(Choosy(), {"x": torch.ones(1)}, tmp_path / "choosy.b1.pt2")


def test_a_network_that_gives_zeros_is_compared(tmp_path, monkeypatch):
    class Zeros(torch.nn.Module):
        def forward(self, x):
            return x * 0

    def opened(offset):
        monkeypatch.setattr(inductor, "open_package", lambda *_: lambda x: x * 0 + offset)
        inductor._compare(Zeros(), {"x": torch.ones(2)}, tmp_path / "zeros.b1.pt2", {}, "fp32")

    opened(0)
    for offset in (1e-9, float("nan")):
        with pytest.raises(ParityError, match=r"`zeros.b1.pt2` is off by (inf|nan)"):
            opened(offset)


def test_an_engine_depends_on_what_decides_the_networks_alone(model_folder, tmp_path):
    model = shutil.copytree(model_folder, tmp_path / "model")
    before = inductor._fingerprint(model, "fp16")
    (model / "losses.png").write_bytes(b"another plot")
    (model / "README.md").write_text("a page")
    assert inductor._fingerprint(model, "fp16") == before
    assert inductor._fingerprint(model, "fp32") != before
    (model / "unet" / "config.json").write_text("{}")
    assert inductor._fingerprint(model, "fp16") != before
