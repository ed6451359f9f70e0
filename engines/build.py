"""Graphs to an engine folder: optimised graphs, contexts, ``engine.json``."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from stage_rt.backends.onnxruntime import LIBRARY, library
from stage_rt.engine import read_spec
from stage_rt.errors import EngineError, InputError
from stage_rt.files import digests, staged_folder, verify
from stage_rt.spec import ENGINE_FILE, PROMPTS_FILE, BackendName, DType, EngineSpec, GraphsSpec

from . import onnxruntime
from .graphs import read_graphs


def build(
    source: Path,
    folder: Path,
    *,
    backend: BackendName,
    batch: Sequence[int],
    dtype: DType | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Compile a graphs folder for a backend; the engine appears whole or not at all.

    An engine that is already there and was made from the same graphs for the same library version and batches
    is left alone; any other engine there is replaced.

    Args:
        source: graphs folder made by ``stage-rt export``.
        folder: engine folder to write.
        backend: inference library to build for.
        batch: batch sizes the engine shall serve.
        dtype: the graphs' own, or None.
        say: told what is being done.

    Returns:
        Whether an engine was written; False when it was up to date.

    Raises:
        GraphsError: the graphs folder is incomplete or changed.
        InputError: the dtype is not the graphs' own or not one of the backend's, or ``folder`` has content that
            is no engine.
        BackendError: the library could not compile a graph.
    """
    graphs = read_graphs(source)
    _check_dtype(source, graphs, dtype)
    require_dtype(backend, graphs.dtype)
    wanted = EngineSpec(
        model=graphs.model,
        backend=backend,
        library=LIBRARY,
        library_version=library().__version__,
        devices=["cpu"],
        dtype=graphs.dtype,
        batch=sorted(set(batch)),
        graphs_fingerprint=graphs.fingerprint,
        files={},
    )
    exists = (folder / ENGINE_FILE).is_file()
    if exists and _up_to_date(folder, wanted):
        return False
    with staged_folder(folder, replace=exists) as staged:
        for graph in graphs.model.graphs:
            say(f"building {graph}")
            onnxruntime.optimise(source / f"{graph}.onnx", staged / f"{graph}.onnx")
        shutil.copyfile(source / PROMPTS_FILE, staged / PROMPTS_FILE)
        spec = wanted.model_copy(update={"files": digests(staged)})
        (staged / ENGINE_FILE).write_text(spec.sealed())
    return True


def require_dtype(backend: BackendName, dtype: DType) -> None:
    """Raise `InputError` for a dtype that ``backend`` cannot run."""
    if backend == "onnxruntime" and dtype == "bf16":
        raise InputError(
            "ONNX Runtime has no bf16 convolution on a CPU: use `--dtype fp32` or `--dtype fp16` for this backend"
        )


def _check_dtype(source: Path, graphs: GraphsSpec, dtype: DType | None) -> None:
    if dtype is not None and dtype != graphs.dtype:
        raise InputError(
            f"the graphs in `{source}` are {graphs.dtype}: leave `--dtype` out or export the model again with "
            f"`stage-rt export --dtype {dtype}`"
        )


def _up_to_date(folder: Path, wanted: EngineSpec) -> bool:
    try:
        found = read_spec(folder)
        verify(folder, found.files, ENGINE_FILE, EngineError, "it is built again")
    except EngineError:
        return False
    return found.model_copy(update={"files": wanted.files}) == wanted
