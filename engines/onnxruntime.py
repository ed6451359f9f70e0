"""Graphs optimised ahead by ONNX Runtime for the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stage_rt.backends.onnxruntime import LIBRARY, library
from stage_rt.errors import BackendError, InputError, first_line
from stage_rt.names import DType
from stage_rt.progress import Progress

from .builders import Compiled, Notify, check_room

EXTERNAL_DATA_BYTES = 2**30
"""Larger graphs get their weights in a file of their own: a protobuf holds 2 GiB at most."""


def builder(dtype: DType, targets: Sequence[str] | None) -> "OnnxRuntimeBuilder":
    """See `builders.choose`."""
    if targets:
        raise InputError("`--target` names GPUs, but this backend runs on the CPU: leave it out")
    if dtype == "bf16":
        raise InputError(
            "ONNX Runtime has no bf16 convolution on a CPU: use `--dtype fp32` or `--dtype fp16` for this backend"
        )
    return OnnxRuntimeBuilder()


class OnnxRuntimeBuilder:
    """See `builders.Builder`."""

    def __init__(self) -> None:
        self.library = LIBRARY
        self.version: str = library().__version__
        self.devices = ["cpu"]
        self.gpu: str | None = None

    def prepare(self, graphs: Mapping[str, Path], batch: Sequence[int], notify: Notify) -> None:
        """Nothing: its graphs serve any batch."""

    def compile(self, graph: Path, destination: Path, batch: Sequence[int], progress: Progress) -> Compiled:
        """Write ``graph`` as ONNX Runtime simplifies and fuses it.

        The extended level is the last one whose result runs on every CPU; the layout for the CPU at hand is
        chosen when the engine is loaded.
        """
        ort = library()
        optimised = destination.with_name(f"{destination.name}.onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimised)
        if graph.stat().st_size > EXTERNAL_DATA_BYTES or _weights_beside(graph):
            prefix = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{prefix}_file_name", f"{optimised.name}.data")
            options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # The library's exceptions have no common base.
            check_room(graph, destination)
            raise BackendError(f"ONNX Runtime cannot compile `{graph}`: {first_line(error)}") from error
        return Compiled(0, _shapes(session.get_inputs()), _shapes(session.get_outputs()))


def _weights_beside(graph: Path) -> bool:
    """Whether weights lie beside a graph: left there, the library would look for them beside the engine's own."""
    return any(
        path.suffix not in (".onnx", ".json", ".safetensors")
        for path in graph.parent.iterdir()
        if path.is_file()
    )


def _shapes(nodes: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    return {node.name: tuple(size if isinstance(size, int) else -1 for size in node.shape) for node in nodes}
