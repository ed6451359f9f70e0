"""Inference libraries, one file each; `open_backend` imports the one an engine was built for."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import EngineError
from stage_rt.files import verify
from stage_rt.spec import ENGINE_FILE, EngineSpec

__all__ = ["Backend", "open_backend"]


class Backend(Protocol):
    """The graphs of one engine folder, ready to run."""

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run a graph, named without suffix as in `stage_rt.spec`.

        Args:
            graph: its name.
            inputs: arrays by the names of the graph's inputs; floats are cast to the engine's dtype.

        Returns:
            Its output, as float32.

        Raises:
            BackendError: the library failed.
        """

    def close(self) -> None:
        """Give the library's memory back; the backend cannot be used afterwards."""


def open_backend(folder: Path, spec: EngineSpec) -> Backend:
    """Open the engine in ``folder``; its files and the library are checked before the library reads anything.

    Raises:
        EngineError: a file was changed, or the engine is for another version of the library or another GPU.
        DeviceError: the engine needs a GPU and there is none.
        MissingExtraError: the library is not installed.
    """
    verify(folder, spec.files, ENGINE_FILE, EngineError, "build the engine again with `stage-rt build`")
    if spec.backend == "onnxruntime":
        from stage_rt.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(folder, spec)
    from stage_rt.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(folder, spec)
