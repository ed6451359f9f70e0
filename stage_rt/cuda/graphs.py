"""CUDA graphs, which PyCUDA does not know: the only importer of cuda-bindings."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

from stage_rt import extras
from stage_rt.errors import BackendError, DeviceMemoryError

LIBRARY = "cuda.bindings.driver"


class Graph:
    """A recorded sequence of launches; made by `capture`."""

    def __init__(self, executable: Any, stream: int) -> None:
        self._driver = library()
        self._executable = executable
        self._stream = self._driver.CUstream(stream)

    def launch(self) -> None:
        """Enqueue the whole sequence in the stream it was recorded from.

        Raises:
            BackendError: the launch failed.
        """
        _call(self._driver.cuGraphLaunch(self._executable, self._stream))

    def close(self) -> None:
        """Destroy the graph once nothing of it runs; a second time there is nothing to destroy."""
        executable, self._executable = self._executable, None
        if executable is not None:
            _call(self._driver.cuGraphExecDestroy(executable))


def capture(stream: int, enqueue: Callable[[], None]) -> Graph:
    """Record what ``enqueue`` launches in the stream of that address, without running it.

    ``enqueue`` must have run before, as libraries allocate and load kernels the first time. Only this thread is
    held to the rules of capturing.

    Raises:
        BackendError: something of it cannot be recorded; the stream can be used again.
        DeviceMemoryError: the graph does not fit.
    """
    driver = library()
    handle = driver.CUstream(stream)
    _call(driver.cuStreamBeginCapture(handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    try:
        enqueue()
    except BaseException:
        # Only ending the capture frees the stream; its own error would hide the one that matters.
        status, graph = driver.cuStreamEndCapture(handle)
        if status == driver.CUresult.CUDA_SUCCESS:
            driver.cuGraphDestroy(graph)
        raise
    graph = _call(driver.cuStreamEndCapture(handle))
    with ExitStack() as opened:
        try:
            executable = Graph(_call(driver.cuGraphInstantiate(graph, 0)), stream)
            opened.callback(executable.close)
        finally:
            _call(driver.cuGraphDestroy(graph))
        opened.pop_all()
    return executable


@cache
def library() -> Any:
    """The module ``cuda.bindings.driver``.

    Raises:
        MissingExtraError: it is not installed.
    """
    return extras.library(LIBRARY, "CUDA graphs are reached through `cuda-bindings`", "gpu")


def _call(result: tuple[Any, ...]) -> Any:
    """The value of a driver call that went well; `BackendError` with CUDA's name for what went wrong."""
    driver = library()
    status, *values = result
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise DeviceMemoryError("the GPU's memory is full (CUDA_ERROR_OUT_OF_MEMORY)")
    if status != driver.CUresult.CUDA_SUCCESS:
        raise BackendError(f"CUDA failed: {status.name}")
    return values[0] if values else None
