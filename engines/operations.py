"""The arithmetic of a graph, and what it moves, counted from its shapes."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import NamedTuple

import onnx

Shape = tuple[int, ...]


class Product(NamedTuple):
    """A convolution or matrix product: twice its multiply-adds for one sample, and the numbers it has to move.

    ``weights`` are read once for a whole batch, ``activations`` read and written for every sample.
    """

    operations: int
    weights: int
    activations: int


def operations(graph: Path) -> int:
    """Twice the multiply-adds of an exported graph's convolutions and matrix products a sample, 0 if unknown."""
    return sum(product.operations for product in products(graph))


def products(graph: Path) -> list[Product]:
    """The convolutions and matrix products of an exported graph, none if a shape is unknown.

    A size that is not fixed is the batch and counts as 1. Weights are not read. The scores of an attention, before
    and behind its softmax, do not count as moved: kernels that do an attention in one go keep them.
    """
    model = onnx.load(graph, load_external_data=False)
    weights: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = dict(weights)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else 1 for dim in dims)
    softmax = [node for node in model.graph.node if node.op_type == "Softmax"]
    scores = {name for node in softmax for name in (*node.input, *node.output)}
    found = []
    try:
        for node in model.graph.node:
            if node.op_type in _COUNTED:
                names = [*node.input[:2], node.output[0]]
                count = _COUNTED[node.op_type](*(shapes[name] for name in names))
                moved = [name for name in names if name not in weights and name not in scores]
                found.append(
                    Product(
                        2 * count,
                        sum(prod(weights[name]) for name in node.input if name in weights),
                        sum(prod(shapes[name]) for name in moved),
                    )
                )
    except KeyError:  # A shape that the exporter did not write.
        return []
    return found


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
