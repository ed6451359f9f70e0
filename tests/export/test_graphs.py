import os
import sys
import weakref
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from small_model import PROMPTS, small_adapter, small_model
from torch import nn

from stage_rt import spec
from stage_rt.errors import GraphsError, InputError, ModelError, ParityError
from stage_rt.export import graphs as module
from stage_rt.export.convert import convert
from stage_rt.export.fold import FoldedAdapter
from stage_rt.export.graphs import export
from stage_rt.export.networks import networks
from stage_rt.export.parity import Parity
from stage_rt.folders import verify
from stage_rt.training.folder import load_description

DTYPES = ["fp32", "fp16", "bf16"]
ELEMENTS = {
    "fp32": onnx.TensorProto.FLOAT,
    "fp16": onnx.TensorProto.FLOAT16,
    "bf16": onnx.TensorProto.BFLOAT16,
}
INPUTS = {
    "unet": {"sample": ["batch", 4, 16, 16], "timestep": ["batch"], "context": ["batch", 3, 6]},
    "adapters/tile.aware": {"eps": ["batch", 4, 16, 16], "mask": ["batch", 1, 16, 16]},
    "adapters/tile.only": {"eps": ["batch", 4, 16, 16], "mask": ["batch", 1, 16, 16]},
    "vae_encoder": {"image": ["batch", 1, 32, 32]},
    "vae_decoder": {"latent": ["batch", 4, 16, 16]},
}
OUTPUTS = {
    "unet": {"eps": ["batch", 4, 16, 16]},
    "adapters/tile.aware": {"guided": ["batch", 4, 16, 16]},
    "adapters/tile.only": {"guided": ["batch", 4, 16, 16]},
    "vae_encoder": {"moments": ["batch", 8, 16, 16]},
    "vae_decoder": {"image": ["batch", 1, 32, 32]},
}


def read(folder, graph):
    return onnx.load(folder / f"{graph}.onnx")


def shapes(values):
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


def operators(folder, graph):
    return Counter(node.op_type for node in read(folder, graph).graph.node)


@pytest.mark.parametrize("dtype", DTYPES)
def test_model_json_lists_every_file_and_how_it_came_to_be(graphs, model_folder, dtype):
    folder = graphs(dtype)
    described = spec.GraphsSpec.model_validate_json((folder / spec.GRAPHS_FILE).read_bytes())
    verify(folder, described.files, spec.GRAPHS_FILE, GraphsError, "")
    assert {f"{graph}.onnx" for graph in described.model.graphs} < set(described.files)
    assert described.model == small_model().spec
    assert (described.dtype, described.opset) == (dtype, 21)
    assert described.source["model"] == model_folder.name
    assert described.source["torch"] == torch.__version__


@pytest.mark.parametrize("graph", INPUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_and_outputs_have_names_shapes_and_the_dtype(graphs, dtype, graph):
    found = read(graphs(dtype), graph).graph
    assert shapes(found.input) == INPUTS[graph]
    assert shapes(found.output) == OUTPUTS[graph]
    for value in [*found.input, *found.output]:
        expected = onnx.TensorProto.INT64 if value.name == "timestep" else ELEMENTS[dtype]
        assert value.type.tensor_type.elem_type == expected
    assert {weight.data_type for weight in found.initializer} <= {ELEMENTS[dtype], 1, 7}
    largest = max(found.initializer, key=lambda weight: np.prod(weight.dims))
    assert largest.data_type == ELEMENTS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_normalisation_stays_whole(graphs, dtype):
    for graph, network in networks(small_model()).items():
        if graph.startswith("adapters/"):
            continue
        # The autoencoder is one module with two graphs; each has the norms of its own half.
        half = {"vae_encoder": "vae.encoder", "vae_decoder": "vae.decoder"}.get(graph, "")
        norms = [
            name
            for name, layer in network.named_modules()
            if isinstance(layer, nn.GroupNorm) and name.startswith(half)
        ]
        found = operators(graphs(dtype), graph)
        assert found["GroupNormalization"] == len(norms) > 5
        assert not {"InstanceNormalization", "BatchNormalization", "ReduceMean"} & set(found)


def test_graphs_hold_no_batch_norm_dropout_or_shape_arithmetic(graphs):
    folder = graphs("fp32")
    assert operators(folder, "adapters/tile.aware") == {"Concat": 1, "Conv": 3, "Relu": 2}
    assert operators(folder, "unet")["Shape"] <= 1
    for graph in ("vae_encoder", "vae_decoder"):
        assert not {"Shape", "Dropout", "Identity", "CastLike", "Constant"} & set(operators(folder, graph))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_of_this_machine_is_written(graphs, model_folder, dtype):
    traces = [str(model_folder.parent), os.getcwd(), sys.prefix, ".py", "site-packages", "stack_trace"]
    for path in graphs(dtype).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [trace for trace in traces if trace.encode() in content], path.name


def test_contexts_are_written_as_float32(graphs):
    contexts = load_file(graphs("fp16") / spec.PROMPTS_FILE)
    assert set(contexts) == set(PROMPTS)
    for name, expected in small_model().contexts.items():
        np.testing.assert_array_equal(contexts[name], expected.numpy())


def test_the_same_network_gives_the_same_bytes_and_no_chatter(capfd):
    torch.manual_seed(0)
    folded = FoldedAdapter(small_adapter()).eval()
    inputs = {"eps": torch.randn(2, 4, 5, 5), "mask": torch.ones(2, 1, 5, 5)}

    def content():
        model = convert(folded, inputs, "guided", opset=21)
        return onnx.ModelProto.SerializeToString(module.ir.to_proto(model))

    assert content() == content()
    assert capfd.readouterr() == ("", "")


def test_large_weights_lie_in_a_file_of_their_own(graphs, tmp_path, monkeypatch):
    model = module.ir.load(graphs("fp32") / "unet.onnx")
    monkeypatch.setattr(module, "EXTERNAL_DATA_BYTES", 1000)
    module._write(model, tmp_path / "unet.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"unet.onnx", "unet.onnx.data"}
    assert (tmp_path / "unet.onnx").stat().st_size < (graphs("fp32") / "unet.onnx").stat().st_size
    for found, expected in zip(
        onnx.load(tmp_path / "unet.onnx").graph.initializer,
        read(graphs("fp32"), "unet").graph.initializer,
        strict=True,
    ):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), onnx.numpy_helper.to_array(expected))


def test_no_weight_is_still_there_when_the_next_network_is_read(model_folder, tmp_path, monkeypatch):
    read_network, weights, seen = module._network, [], []

    def watched(graph, *arguments):
        alive = [name for name, weight in weights if weight() is not None]
        assert not alive, f"{len(alive)} weights are still there at {graph}, as {alive[0]}"
        network = read_network(graph, *arguments)
        weights[:] = [(f"{graph} {name}", weakref.ref(w)) for name, w in network.named_parameters()]
        seen.append(graph)
        return network

    monkeypatch.setattr(module, "_network", watched)
    export(model_folder, tmp_path / "graphs", dtype="fp16")
    assert seen == list(INPUTS)


def test_a_graph_that_disagrees_is_shown_and_leaves_nothing_behind(model_folder, tmp_path, monkeypatch):
    def written(source, folder, *_):
        (folder / "unet.onnx").touch()
        return load_description(source).spec

    wrong = Parity("unet", 1.0, 0.5, 1e-4)
    monkeypatch.setattr(module, "_write_graphs", written)
    monkeypatch.setattr(module, "compare", lambda *_: [wrong])
    shown = []
    with pytest.raises(ParityError, match="unet"):
        export(model_folder, tmp_path / "graphs", dtype="fp32", show=shown.extend)
    assert shown == [wrong]
    assert not list(tmp_path.iterdir())


def test_a_folder_with_content_is_refused_before_anything_is_done(model_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    said = []
    with pytest.raises(InputError, match="exists already"):
        export(model_folder, tmp_path, dtype="fp32", say=said.append)
    assert not said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not a model folder"):
        export(tmp_path, tmp_path / "graphs", dtype="fp32")
    assert not list(tmp_path.iterdir())
