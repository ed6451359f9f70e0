"""ONNX Runtime on the CPU: the default backend, and the oracle of the others."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt import extras
from stage_rt.backends.forks import protect
from stage_rt.backends.versions import require_minor
from stage_rt.errors import BackendError, first_line
from stage_rt.folders import verify_again
from stage_rt.machine import cores
from stage_rt.spec import EngineSpec

LIBRARY = "onnxruntime"

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def library() -> ModuleType:
    """The ``onnxruntime`` module.

    Raises:
        MissingExtraError: it is not installed.
    """
    return extras.library(LIBRARY, "this engine needs ONNX Runtime", "cpu")


class OnnxRuntimeBackend:
    """Graphs optimised by ONNX Runtime; each is loaded when it is first run.

    A batch is cut into a part for every core, which run side by side: the library's own threads share the work
    of one operator, and small ones cost them more waiting than work. A batch of fewer samples than cores leaves
    every part several threads; how many is settled by the first batch of a graph.

    Raises:
        EngineError: the engine was made by another minor version of ONNX Runtime. The optimised graphs hold
            operators of its own, which it may change between minor versions.
    """

    def __init__(self, folder: Path, spec: EngineSpec) -> None:
        self._library = library()
        self._folder, self._spec = folder, spec
        self._sessions: dict[str, Any] = {}
        self._cores = cores()
        self._pool = ThreadPoolExecutor(self._cores)
        protect(self)
        require_minor(folder, spec, self._library.__version__)

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `stage_rt.networks.Backend`; ``graph`` runs at any batch."""
        batch = max((len(array) for array in inputs.values()), default=1)
        parts = min(batch, self._cores)
        session = self._session(graph, threads=self._cores // parts)
        nodes = session.get_inputs()
        with np.errstate(over="ignore"):
            feed = {node.name: _cast(inputs[node.name], node.type) for node in nodes}
        bounds = [batch * part // parts for part in range(parts + 1)]
        feeds = [
            {name: array[start:stop] for name, array in feed.items()} for start, stop in pairwise(bounds)
        ]
        # The library's exceptions have no common base of their own.
        try:
            outputs = list(self._pool.map(lambda part: session.run(None, part)[0], feeds))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph `{graph}`: {first_line(error)}") from error
        return np.concatenate(outputs, dtype=np.float32, casting="same_kind")

    def close(self) -> None:
        """Drop every loaded graph."""
        self._sessions.clear()

    def held(self) -> Iterable[object]:
        """See `stage_rt.backends.forks.Holder`."""
        return self._sessions.values()

    def _session(self, graph: str, threads: int) -> Any:
        if graph not in self._sessions:
            options = self._library.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = threads
            # Every graph has threads of its own; waiting awake, they would take the cores from the one that runs.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            path = self._folder / f"{graph}.onnx"
            verify_again(self._folder, self._spec, (f"{graph}.onnx", f"{graph}.onnx.data"))
            try:
                self._sessions[graph] = self._library.InferenceSession(
                    path, options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise BackendError(f"ONNX Runtime cannot load `{path}`: {first_line(error)}") from error
        return self._sessions[graph]


def _cast(array: NDArray[Any], kind: str) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=_FLOATS.get(kind, array.dtype))
