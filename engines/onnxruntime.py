"""Graphs optimised ahead by ONNX Runtime for the CPU."""

from pathlib import Path

from stage_rt.backends.onnxruntime import library
from stage_rt.errors import BackendError

EXTERNAL_DATA_BYTES = 2**30
"""Graphs whose files are larger get their weights in a file of their own: a protobuf holds 2 GiB at most."""


def optimise(source: Path, destination: Path) -> None:
    """Write ``source`` as ONNX Runtime simplifies and fuses it.

    The extended level is the last one whose result runs on every CPU; the layout for the CPU at hand is chosen
    when the engine is loaded.

    Raises:
        BackendError: ONNX Runtime cannot read or compile the graph.
    """
    ort = library()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(destination)
    if sum(path.stat().st_size for path in source.parent.glob(f"{source.name}*")) > EXTERNAL_DATA_BYTES:
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", f"{destination.name}.data")
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
    destination.parent.mkdir(exist_ok=True)
    try:
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # The library's exceptions have no common base.
        reason = str(error).strip().partition("\n")[0]
        raise BackendError(f"ONNX Runtime cannot compile `{source}`: {reason}") from error
