"""ONNX Runtime on the CPU: the default backend, and the oracle of the others."""

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import BackendError, EngineError, MissingExtraError
from stage_rt.spec import EngineSpec

LIBRARY = "onnxruntime"

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def library() -> ModuleType:
    """The ``onnxruntime`` module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(LIBRARY)
    except ModuleNotFoundError as missing:
        raise MissingExtraError(
            "this engine needs ONNX Runtime, which is not installed: `pip install 'stage-rt[cpu]'`"
        ) from missing


class OnnxRuntimeBackend:
    """Graphs optimised by ONNX Runtime; each is loaded when it is first run.

    Raises:
        EngineError: the engine was made by another minor version of ONNX Runtime. The optimised graphs hold
            operators of its own, which it may change between minor versions.
    """

    def __init__(self, folder: Path, spec: EngineSpec) -> None:
        self._library = library()
        self._folder = folder
        self._sessions: dict[str, Any] = {}
        found, expected = self._library.__version__, spec.library_version
        if _minor(found) != _minor(expected):
            raise EngineError(
                f"`{folder}` was built with {LIBRARY} {expected} but {found} is installed: build the engine "
                f"again with `stage-rt build` or `pip install {LIBRARY}=={_minor(expected)}.*`"
            )

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `stage_rt.backends.Backend`; ``graph`` runs at any batch."""
        session = self._session(graph)
        with np.errstate(over="ignore"):
            feed = {node.name: _cast(inputs[node.name], node.type) for node in session.get_inputs()}
        # The library's exceptions have no common base of their own.
        try:
            (output,) = session.run(None, feed)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph `{graph}`: {_first_line(error)}") from error
        return np.asarray(output, dtype=np.float32)

    def close(self) -> None:
        """Drop every loaded graph."""
        self._sessions.clear()

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            options = self._library.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = _cores()
            path = self._folder / f"{graph}.onnx"
            try:
                self._sessions[graph] = self._library.InferenceSession(
                    path, options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise BackendError(f"ONNX Runtime cannot load `{path}`: {_first_line(error)}") from error
        return self._sessions[graph]


def _cores() -> int:
    # Left to itself the library starts a thread for every core of the machine, also for those that a container
    # or `taskset` keeps from this process, where they only wait for each other.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def _cast(array: NDArray[Any], kind: str) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=_FLOATS.get(kind, array.dtype))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
