"""What a real TensorRT-RTX build made of the UNet, read from what the builder tells: it needs no GPU.

Shapes and dtypes of every profile, the workspace, and which patterns became one kernel. `docs/gpu.md` has the table
of the full-size UNet, made by the same script.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from stage_rt.networks import tensors
from stage_rt.spec import GRAPHS_FILE, UNET, GraphsSpec

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
NAMES = {"fp16": "Half", "int64": "Int64"}

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: `pip install 'stage-rt[rtx]'`",
)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import tensorrt_layers

    return tensorrt_layers


def told(name, kind, inputs, *nodes):
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return f"Name: {name}, LayerType: {kind}, Inputs: [{inputs}], Constants: [], Metadata: {metadata}"


def profiles(*shapes):
    return ", ".join(
        f"{{ MinShape: {low}, OptShape: {best}, MaxShape: {most} }}" for low, best, most in shapes
    )


SAMPLE = profiles(("[1,4]", "[1,4]", "[1,4]"), ("[2,4]", "[2,4]", "[8,4]"))
TOLD = "\n".join(
    [
        "Layers:",
        told("__myl_Move_myl0_0", "kgen", "", "norm"),
        told("__myl_SiluGnor_myl0_1", "kgen", " { Name: a }", "norm", "sigmoid", "mul"),
        told("q+k_myl0_2", "gemm", " { Name: b }", "scores"),
        told("soft_myl0_3", "kgen", " { Name: b }", "softmax", "out"),
        told("soft_myl1_3", "kgen", " { Name: b }", "softmax"),
        "",
        "I/O Tensors:",
        f" Name: sample, IOMode: Input, DataType: Half, Dimensions: [-1,4], ProfileInfo: [ {SAMPLE}]",
    ]
)


def test_what_the_builder_tells_is_read(script):
    found = script.layers(TOLD)
    assert [(layer.name, layer.kind, layer.clears) for layer in found] == [
        ("__myl_Move", "kgen", True),
        ("__myl_SiluGnor", "kgen", False),
        ("q+k", "gemm", False),
        ("soft", "kgen", False),
    ]
    # The second profile is a range, which no bucket of ours is.
    assert script.tensors(TOLD) == {"sample": {"mode": "Input", "dtype": "Half", "shapes": [[1, 4]]}}
    wanted = [
        script.Pattern("norm", ("norm", "sigmoid", "mul")),
        script.Pattern("attention", ("scores", "softmax", "out")),
    ]
    assert script.table(found, wanted) == {
        "norm": {"there": 1, "fused": 1, "layers": 1},
        "attention": {"there": 1, "fused": 0, "layers": 2},
    }


def built(graph, tmp_path, batch):
    path = tmp_path / "layers.json"
    command = [sys.executable, SCRIPTS / "tensorrt_layers.py", graph, "--batch", batch, "--json", path]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return json.loads(path.read_text())


@needs_rtx
def test_profiles_dtypes_and_layers_are_those_of_the_graph(graphs, tmp_path):
    folder = graphs("fp16")
    model = GraphsSpec.model_validate_json((folder / GRAPHS_FILE).read_bytes()).model
    result = built(folder / "unet.onnx", tmp_path, "1,2")
    buckets = [tensors(model, "fp16", UNET, batch) for batch in (1, 2)]
    for name, tensor in buckets[0][0].items():
        assert result["tensors"][name] == {
            "mode": "Input",
            "dtype": NAMES[tensor.dtype],
            "shapes": [list(inputs[name].shape) for inputs, _ in buckets],
        }
    assert result["tensors"]["eps"] == {"mode": "Output", "dtype": "Half", "shapes": []}
    assert 2**20 < result["workspace"] < 2**24

    graph = onnx.load(folder / "unet.onnx").graph
    computed = {node for layer in result["layers"] for node in layer["nodes"]}
    heavy = {"Conv", "Gemm", "GroupNormalization", "LayerNormalization", "MatMul", "Softmax"}
    assert {node.name for node in graph.node if node.op_type in heavy} <= computed
    counts = {kind: sum(node.op_type == kind for node in graph.node) for kind in heavy}
    patterns = result["patterns"]
    assert patterns["attention"]["there"] == counts["Softmax"]
    norms = patterns["GroupNorm"]["there"] + patterns["GroupNorm + SiLU"]["there"]
    assert norms == counts["GroupNormalization"]
    assert patterns["LayerNorm"] == dict.fromkeys(("there", "fused", "layers"), counts["LayerNormalization"])


def write_one_block(path, *, freed):
    """A UNet of one level, as wide as the full-size one at its top: heads of 40 on 32x32 cells."""
    import onnx_ir
    import torch
    from diffusers import UNet2DConditionModel

    from stage_rt.export.convert import convert
    from stage_rt.export.hoist import hoisted, projected
    from stage_rt.export.networks import Denoiser

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(320,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=1280,
        attention_head_dim=8,
    )
    unet, context = torch.nn.Module.to(unet, torch.float16), torch.randn(2, 77, 1280).half()
    inputs = {
        "sample": torch.randn(2, 4, 32, 32).half(),
        "timestep": torch.tensor([1, 0]),
        "context": projected(unet, context).half() if freed else context,
    }
    network = Denoiser(hoisted(unet, 1000) if freed else unet).eval()
    onnx_ir.save(convert(network, inputs, "eps", opset=21), path)


# A minute. Its quick twin above reads a small network, whose attention is too small to become one kernel.
@pytest.mark.slow
@needs_rtx
def test_attention_and_normalisations_as_wide_as_the_real_ones_are_one_kernel_each(tmp_path):
    results = []
    for name, freed in (("plain", False), ("freed", True)):
        write_one_block(tmp_path / f"{name}.onnx", freed=freed)
        results.append(built(tmp_path / f"{name}.onnx", tmp_path, "8"))
    for result in results:
        patterns = result["patterns"]
        assert patterns["attention"]["there"] == 8
        for name in ("attention", "GroupNorm + SiLU", "GroupNorm"):
            assert patterns[name]["fused"] == patterns[name]["layers"] == patterns[name]["there"]
    plain, freed = results
    # Neither the products that make keys and values nor copies of these for the heads.
    assert len(freed["layers"]) < len(plain["layers"])
    assert freed["bytes"] < plain["bytes"]
