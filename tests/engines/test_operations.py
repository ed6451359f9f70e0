"""What a graph's products compute and move, on one that can be counted by hand."""

import onnx
import pytest
from onnx import TensorProto, helper

from stage_rt.engines.operations import Product, operations, products

FLOATS = TensorProto.FLOAT


def tensor(name, *dims):
    return helper.make_tensor_value_info(name, FLOATS, dims)


def weight(name, *dims):
    count = 1
    for dim in dims:
        count *= dim
    return helper.make_tensor(name, FLOATS, dims, [0.0] * count)


@pytest.fixture
def graph(tmp_path):
    """A convolution, a product with weights and an attention of 6 tokens."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("MatMul", ["t", "w"], ["q"]),
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "v"], ["out"]),
    ]
    inputs = [tensor("x", "batch", 2, 4, 4), tensor("t", "batch", 6, 5)]
    inputs += [tensor("k", "batch", 8, 6), tensor("v", "batch", 6, 8)]
    inner = [tensor("y", "batch", 3, 4, 4), tensor("q", "batch", 6, 8)]
    inner += [tensor(name, "batch", 6, 6) for name in ("scores", "shares")]
    weights = [weight("kernel", 3, 2, 3, 3), weight("bias", 3), weight("w", 5, 8)]
    outputs = [tensor("z", "batch", 3, 4, 4), tensor("out", "batch", 6, 8)]
    made = helper.make_graph(nodes, "g", inputs, outputs, weights, value_info=inner)
    onnx.save(helper.make_model(made), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_weights_are_read_once_and_the_scores_of_an_attention_moved_by_nobody(graph):
    assert products(graph) == [
        Product(2 * 48 * 18, 54 + 3, 32 + 48),
        Product(2 * 48 * 5, 40, 30 + 48),
        Product(2 * 36 * 8, 0, 48 + 48),
        Product(2 * 48 * 6, 0, 48 + 48),
    ]
    assert operations(graph) == sum(product.operations for product in products(graph))


def test_a_graph_with_an_unknown_shape_has_nothing_counted(graph):
    model = onnx.load(graph)
    del model.graph.value_info[:]
    onnx.save(model, graph)
    assert (products(graph), operations(graph)) == ([], 0)
