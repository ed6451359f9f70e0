"""Every exported graph in ONNX Runtime against its network in torch."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from stage_rt.errors import ParityError
from stage_rt.names import DType
from stage_rt.networks import TOLERANCE
from stage_rt.spec import UNET, is_foreground

from ..training.folder import Description, Model, load_description
from .hoist import projected
from .memory import collect
from .networks import Denoiser, load, networks, random_inputs
from .verify import Error, error_of

BATCHES = (1, 3)
SEED = 0


@dataclass(frozen=True)
class Case:
    """Inputs of a network by name and what torch computes from them in float32."""

    inputs: Mapping[str, NDArray[Any]]
    output: NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """The largest error of a graph over its cases; ``max_rel`` is relative to the largest value."""

    graph: str
    max_abs: float
    max_rel: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; a non-finite one is not."""
        return self.max_rel <= self.tolerance


def references(model: Model) -> dict[str, list[Case]]:
    """Cases for every graph of ``model``, at each batch of `BATCHES`; those with a timestep at three, mixed."""
    return {graph: _cases(graph, network, model) for graph, network in networks(model).items()}


class StoredReferences(Mapping[str, list[Case]]):
    """The `references` of a model folder; its networks are read one by one, as their cases are asked for.

    At full size, the UNet in float32 is all that shall be in memory. ``hoist``: the context of a case is what the
    hoisted UNet takes, while the output is that of the UNet as it is.

    Raises:
        ModelError: the folder is incomplete or inconsistent.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], *, hoist: bool = False) -> None:
        self._folder, self._say, self._hoist = folder, say, hoist
        self._description = load_description(folder)

    def __getitem__(self, graph: str) -> list[Case]:
        self._say(f"comparing {graph} with torch")
        network = load(self._folder, graph, torch.float32)
        cases = _cases(graph, network, self._description)
        if self._hoist and isinstance(network, Denoiser):
            cases = [_hoisted(case, network) for case in cases]
        del network
        collect()
        return cases

    def __iter__(self) -> Iterator[str]:
        return iter(self._description.spec.graphs)

    def __len__(self) -> int:
        return len(self._description.spec.graphs)


@torch.no_grad()
def _cases(graph: str, network: nn.Module, model: Description) -> list[Case]:
    generator = torch.Generator().manual_seed(SEED)
    last = model.spec.recipe.steps - 1
    turns = [[last, last // 2, 0], [last // 2, 0, last], [0, last, last // 2]]
    cases = []
    for batch in BATCHES:
        for timesteps in turns if graph == UNET or is_foreground(graph) else ([0],):
            inputs = random_inputs(graph, model, batch=batch, timesteps=timesteps, generator=generator)
            arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
            cases.append(Case(arrays, network(**inputs).numpy()))
    return cases


def _hoisted(case: Case, network: Denoiser) -> Case:
    context = projected(network.unet, torch.from_numpy(case.inputs["context"]))
    return replace(case, inputs={**case.inputs, "context": context.numpy()})


def compare(folder: Path, cases: Mapping[str, Sequence[Case]], dtype: DType) -> list[Parity]:
    """Run every graph of ``folder`` on its cases in ONNX Runtime on the CPU.

    It has no bf16 convolution there, so a bf16 graph is run with its bf16 weights in float32 arithmetic.
    """
    return [_compare(folder, graph, graph_cases, dtype) for graph, graph_cases in cases.items()]


def require(parities: Sequence[Parity]) -> None:
    """Raise `ParityError` for the graph that is furthest off, if any is too far."""
    failed = [parity for parity in parities if not parity.passed]
    if failed:
        worst = max(failed, key=lambda parity: np.nan_to_num(parity.max_rel, nan=np.inf))
        raise ParityError(
            f"graph `{worst.graph}` differs from torch by {worst.max_rel:.1e} of its largest value, more than "
            f"{worst.tolerance:.0e}: nothing was written, export with `--dtype fp32` or another opset"
        )


def _compare(folder: Path, graph: str, cases: Sequence[Case], dtype: DType) -> Parity:
    with tempfile.TemporaryDirectory() as scratch:
        path = folder / f"{graph}.onnx"
        session = _session(_in_float32(path, Path(scratch)) if dtype == "bf16" else path)
        errors = [_error(session, case) for case in cases]
    max_abs, max_rel, _ = np.max(errors, axis=0)
    return Parity(graph, float(max_abs), float(max_rel), TOLERANCE[dtype])


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # What was exported is judged, not what ONNX Runtime would make of it; and folding casts, which it does first
    # of all, would keep a float32 copy of every fp16 weight.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Each cast runs just before what needs it, and its memory is given back at once. At full size, the library's
    # own order and arena hold 6.5 GB, this 3.1 GB.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _error(session: onnxruntime.InferenceSession, case: Case) -> Error:
    half = {node.name for node in session.get_inputs() if node.type == "tensor(float16)"}
    inputs = {name: a.astype(np.float16) if name in half else a for name, a in case.inputs.items()}
    (output,) = session.run(None, inputs)
    return error_of(output, case.output)


def _in_float32(path: Path, scratch: Path) -> Path:
    """A copy of a bf16 graph that computes in float32 with the same, rounded, weights."""
    model = ir.load(path)
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in [*values, *model.graph.initializers.values()]:
        if value.dtype == ir.DataType.BFLOAT16:
            value.dtype = ir.DataType.FLOAT
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.BFLOAT16:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.BFLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    copy = scratch / "graph.onnx"
    ir.save(model, copy, external_data="graph.onnx.data")
    return copy
