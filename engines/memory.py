"""How much GPU memory a set of graphs will take, from the shapes in their ONNX files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx

from stage_rt.errors import InputError

from .builders import Notify

LARGEST_BATCH = 1024
"""Far beyond where the throughput of a GPU stops to grow."""

GIB = 2**30

LARGEST_GPU: dict[str, int] = {
    "sm75": 48 * GIB,  # Quadro RTX 8000
    "sm80": 80 * GIB,  # A100
    "sm86": 48 * GIB,  # RTX A6000
    "sm89": 48 * GIB,  # RTX 6000 Ada
    "sm120": 96 * GIB,  # RTX PRO 6000
    "sm121": 128 * GIB,  # GB10
}
"""Memory of the largest GPU of each compute capability, in bytes."""

_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten"}


class Need(NamedTuple):
    """GPU memory in bytes: weights, inputs and outputs of all graphs, and the workspace they take turns in."""

    weights: int
    buffers: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.buffers + self.workspace


def estimate(graphs: Mapping[str, Path], batch: int) -> Need:
    """What an engine of these graphs needs for ``batch`` samples.

    The workspace is the peak of the live intermediate results, as if every operator wrote its result to memory. A
    library that fuses operators, attention above all, needs less; TensorRT-RTX adds some 8 MiB to any graph.
    """
    needs = [_estimate(path, batch) for path in graphs.values()]
    return Need(
        sum(need.weights for need in needs),
        sum(need.buffers for need in needs),
        max(need.workspace for need in needs),
    )


def check(graphs: Mapping[str, Path], batch: Sequence[int], gpus: Mapping[str, int], notify: Notify) -> None:
    """Tell what the largest batch needs, and refuse one that no GPU can serve.

    Args:
        graphs: path of each by its name.
        batch: batch sizes the engine shall serve.
        gpus: memory in bytes of the largest GPU of each target.
        notify: told of the need.

    Raises:
        InputError: a batch is beyond `LARGEST_BATCH` or needs more than a target has.
    """
    largest = max(batch)
    need = estimate(graphs, largest)
    if largest > LARGEST_BATCH:
        raise InputError(
            f"a batch of {largest} would need about {text(need.total)} of GPU memory and is more than the "
            f"{LARGEST_BATCH} that can be built: use a smaller `--batch`"
        )
    for target, memory in gpus.items():
        if need.total > memory:
            raise InputError(
                f"a batch of {largest} would need about {text(need.total)} of GPU memory and no {target} GPU here "
                f"or on the market has more than {text(memory)}: use a smaller `--batch`"
            )
    notify(
        f"the engine will need about {text(need.total)} of GPU memory at batch {largest}: {text(need.weights)} "
        f"weights, {text(need.workspace)} workspace that its graphs share, {text(need.buffers)} inputs and outputs"
    )


def text(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def _estimate(path: Path, batch: int) -> Need:
    graph = onnx.load(path, load_external_data=False).graph
    weights = sum(math.prod(tensor.dims) * _item(tensor.data_type) for tensor in graph.initializer)
    sizes = {value.name: _size(value, batch) for value in graph.value_info}
    buffers = sum(_size(value, batch) for value in (*graph.input, *graph.output))
    return Need(math.ceil(weights), buffers, _peak(graph, sizes))


def _peak(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    """Largest sum of the results that are still to be read, over the nodes in their order."""
    home: dict[str, str] = {}
    last: dict[str, int] = {}
    for place, node in enumerate(graph.node):
        for name in node.input:
            last[home.get(name, name)] = place
        if node.op_type in _VIEWS:
            home[node.output[0]] = home.get(node.input[0], node.input[0])
    live = peak = 0
    for place, node in enumerate(graph.node):
        live += sum(sizes.get(name, 0) for name in node.output if name not in home)
        peak = max(peak, live)
        read = {home.get(name, name) for name in node.input}
        live -= sum(sizes.get(name, 0) for name in read if last[name] == place)
    return peak


def _size(value: onnx.ValueInfoProto, batch: int) -> int:
    """Bytes of a tensor; the only axis without a number in an exported graph is the batch."""
    tensor = value.type.tensor_type
    shape = (batch if dim.dim_param else dim.dim_value for dim in tensor.shape.dim)
    return math.ceil(math.prod(shape) * _item(tensor.elem_type))


def _item(kind: int) -> float:
    return float(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
