"""The arithmetic of a graph, counted from its shapes."""

from collections.abc import Callable
from math import prod
from pathlib import Path

import onnx

Shape = tuple[int, ...]


def operations(graph: Path) -> int:
    """Twice the multiply-adds of an exported graph's convolutions and matrix products for one sample, 0 if unknown.

    A size that is not fixed is the batch and counts as 1. Weights are not read.
    """
    model = onnx.load(graph, load_external_data=False)
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else 1 for dim in dims)
    total = 0
    for node in model.graph.node:
        if node.op_type in _COUNTED:
            try:
                total += _COUNTED[node.op_type](*(shapes[name] for name in (*node.input[:2], node.output[0])))
            except KeyError:  # A shape that the exporter did not write.
                return 0
    return 2 * total


def _convolution(_: Shape, weight: Shape, output: Shape) -> int:
    return prod(output) * prod(weight[1:])


def _transposed(taken: Shape, weight: Shape, _: Shape) -> int:
    return prod(taken) * prod(weight[1:])


def _product(left: Shape, _: Shape, output: Shape) -> int:
    return prod(output) * left[-1]


_COUNTED: dict[str, Callable[[Shape, Shape, Shape], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "Gemm": _product,
}
