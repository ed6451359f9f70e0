"""Compiling a model with PyTorch: what is refused before anything is compiled."""

import pytest
import torch

from stage_rt.errors import BackendError, DeviceError
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
