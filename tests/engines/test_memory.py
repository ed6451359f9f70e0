"""The need of GPU memory, on graphs whose need is known."""

import onnx
import pytest
from onnx import TensorProto, helper

from stage_rt.engines import memory
from stage_rt.errors import InputError

CELLS = 1000


def graph(path, nodes, results, *, kind=TensorProto.FLOAT16, weight=()):
    """A graph from ``x`` to ``y``, both ``[batch, 1000]``, with ``results`` of the same shape between."""
    shape = ["batch", CELLS]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y", *results)]
    weights = [helper.make_tensor("w", kind, weight, b"\0" * 2 * weight[0], raw=True)] if weight else []
    made = helper.make_graph(nodes, "g", values[:1], values[1:2], weights, value_info=values[2:])
    onnx.save(helper.make_model(made), path)
    return path


def node(kind, inputs, output):
    return helper.make_node(kind, inputs.split(), [output])


def test_a_chain_needs_its_two_largest_neighbours(tmp_path):
    chain = [node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "c"), node("Relu", "c", "y")]
    need = memory.estimate({"g": graph(tmp_path / "g.onnx", chain, "abc")}, batch=8)
    assert need == (0, 2 * 8 * CELLS * 2, 2 * 8 * CELLS * 2)


def test_a_result_that_is_needed_later_is_held(tmp_path):
    skip = [
        node("Relu", "x", "a"),
        node("Relu", "a", "b"),
        node("Relu", "b", "c"),
        node("Add", "a c", "y"),
    ]
    assert memory.estimate({"g": graph(tmp_path / "g.onnx", skip, "abc")}, 1).workspace == 3 * CELLS * 2


def test_a_view_takes_no_memory_and_holds_what_it_shows(tmp_path):
    view = [
        node("Relu", "x", "a"),
        node("Identity", "a", "v"),
        node("Relu", "x", "b"),
        node("Add", "v b", "y"),
    ]
    assert memory.estimate({"g": graph(tmp_path / "g.onnx", view, "avb")}, 1).workspace == 2 * CELLS * 2


def test_graphs_add_their_weights_and_share_the_workspace(tmp_path):
    one = graph(tmp_path / "a.onnx", [node("Add", "x w", "y")], "", weight=(CELLS,))
    chain = [node("Relu", "x", "a"), node("Relu", "a", "y")]
    two = graph(tmp_path / "b.onnx", chain, "a", kind=TensorProto.FLOAT)
    need = memory.estimate({"a": one, "b": two}, batch=2)
    assert need.weights == CELLS * 2
    assert need.buffers == 2 * 2 * CELLS * (2 + 4)
    assert need.workspace == 2 * CELLS * 4
    assert need.total == need.weights + need.buffers + need.workspace


@pytest.fixture
def one(tmp_path):
    return {"g": graph(tmp_path / "g.onnx", [node("Relu", "x", "a"), node("Relu", "a", "y")], "a")}


def test_the_need_is_told_before_building(one):
    told = []
    memory.check(one, [1, 32], {"sm86": 2**30}, told.append)
    assert told == [
        "the engine will need about 0.2 MiB of GPU memory at batch 32: 0.0 MiB weights, 0.1 MiB workspace that its "
        "graphs share, 0.1 MiB inputs and outputs"
    ]


def test_a_batch_beyond_the_smallest_target_is_refused(one):
    gpus = {"sm120": 2**30, "sm86": 3 * 100 * CELLS * 2 - 1}
    memory.check(one, [99], gpus, lambda line: None)
    with pytest.raises(
        InputError, match=r"a batch of 100 would need about 0.6 MiB .* no sm86 GPU .* than 0.6 MiB"
    ):
        memory.check(one, [1, 100], gpus, lambda line: None)


def test_a_batch_beyond_reason_is_refused_with_its_need(one):
    with pytest.raises(InputError, match=r"a batch of 1025 would need about 5.9 MiB .* more than the 1024"):
        memory.check(one, [1025], {"sm86": 2**40}, lambda line: None)


def test_the_estimate_of_a_real_graph_grows_with_the_batch(graphs):
    paths = {name: graphs("fp16") / f"{name}.onnx" for name in ("unet", "vae_decoder")}
    small, large = memory.estimate(paths, 1), memory.estimate(paths, 8)
    assert large.weights == small.weights > 100_000
    assert large.workspace == pytest.approx(8 * small.workspace, rel=0.1)
    assert 2**17 < small.workspace < 2**20
