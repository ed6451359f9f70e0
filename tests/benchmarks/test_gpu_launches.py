"""What `benchmarks/gpu/launches.py` reads from a package: launches of one call, and which operators share one."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"

CODE = """
void call_triton_per_fused_native_group_norm_silu_0(int x);
void AOTInductorModel::run_impl(AtenTensorHandle* input_handles) {{
    {calls}
}} // AOTInductorModel::run_impl
void other() {{ model->run_impl(aoti_torch_cuda_mm_out(a)); }}
"""


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import launches

    return launches


def package(path, *calls):
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("unet/data/aotinductor/model/c0.wrapper.cpp", CODE.format(calls="\n    ".join(calls)))
    return path


def test_calls_are_counted_and_nothing_else(script, tmp_path):
    path = package(
        tmp_path / "unet.pt2",
        "AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_convolution(buf0, w, 1));",
        "call_triton_per_fused_native_group_norm_silu_0(buf0, stream);",
        "call_triton_per_fused_native_group_norm_silu_0(buf1, stream);",
        "call_triton_per_fused_add_native_group_norm_1(buf1, stream);",
        "cpp_fused_gelu_mul_split_view_2((float*)(buf2.data_ptr()));",
        "aoti_torch_empty_strided(2, size, stride);",
    )
    found = script.launches(path)
    assert found["triton_per_fused_native_group_norm_silu_0"] == 2
    assert script.summary(found) == {
        "all": 5,
        "libraries": 1,
        "GroupNorm + SiLU": 2,
        "GroupNorm": 1,
        "LayerNorm": 0,
        "GELU + gate of GEGLU": 1,
    }
    printed = subprocess.run([sys.executable, GPU / "launches.py", path], capture_output=True, text=True)
    assert printed.stdout.splitlines()[-1].startswith("all: 5  libraries: 1  GroupNorm + SiLU: 2")


def test_a_package_without_code_is_refused(script, tmp_path):
    with pytest.raises(ValueError, match="holds no code of PyTorch's that launches anything"):
        script.launches(package(tmp_path / "unet.pt2"))


# PyTorch compiles it for a quarter of a minute. Its quick twin above reads code that looks like PyTorch's.
@pytest.mark.slow
def test_groupnorm_with_silu_and_the_gate_of_geglu_become_one_kernel_each(script, tmp_path):
    import torch
    from diffusers.models.attention import FeedForward
    from diffusers.models.resnet import ResnetBlock2D

    from stage_rt.export.inductor import compile_network

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.residual = ResnetBlock2D(in_channels=8, temb_channels=None, groups=4)
            self.forward_ = FeedForward(8)

        def forward(self, x):
            x = self.residual(x, None)
            return x + self.forward_(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)

    path = tmp_path / "block.pt2"
    compile_network(Block().eval(), {"x": torch.randn(2, 8, 8, 8)}, path)
    found = script.summary(script.launches(path))
    assert (found["GroupNorm + SiLU"], found["GroupNorm"], found["GELU + gate of GEGLU"]) == (2, 0, 1)
    # Two convolutions and two matrix products.
    assert found["libraries"] == 4
