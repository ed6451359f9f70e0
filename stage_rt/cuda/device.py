"""A GPU, its memory and a stream, through the CUDA runtime of ``cuda-bindings``."""

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import BackendError, DeviceError, MissingExtraError


class Gpu(NamedTuple):
    """A GPU: its name, compute capability as ``sm86``, and memory in bytes."""

    name: str
    sm: str
    memory: int


def current() -> Gpu:
    """The GPU that CUDA calls of this process go to.

    Raises:
        DeviceError: there is none, or its driver does not serve this CUDA; the message has no remedy.
        MissingExtraError: ``cuda-bindings`` is not installed.
    """
    cuda = _runtime()
    try:
        found = _call(cuda.cudaGetDeviceProperties(_call(cuda.cudaGetDevice())))
    except BackendError as error:
        raise DeviceError(f"no NVIDIA GPU can be used here ({error})") from error
    return Gpu(found.name.decode(), f"sm{found.major}{found.minor}", found.totalGlobalMem)


class Stream:
    """A stream of its own; ``handle`` is its address."""

    def __init__(self) -> None:
        self._cuda = _runtime()
        self._stream = _call(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        self.handle = int(self._stream)

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""
        _call(self._cuda.cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        """Destroy the stream."""
        _call(self._cuda.cudaStreamDestroy(self._stream))


class Memory:
    """``size`` bytes on the device from ``address`` on; CUDA aligns them to 256 bytes at least."""

    def __init__(self, size: int) -> None:
        self._cuda = _runtime()
        self.size = size
        try:
            self.address = int(_call(self._cuda.cudaMalloc(max(size, 1))))
        except BackendError as error:
            raise BackendError(
                f"the GPU has no {size / 2**20:.0f} MiB left ({error}): use an engine with a smaller `--batch`"
            ) from error

    def write(self, array: NDArray[Any], stream: Stream) -> None:
        """Enqueue a copy of a contiguous array to the beginning."""
        assert array.flags.c_contiguous
        assert array.nbytes <= self.size
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(self._cuda.cudaMemcpyAsync(self.address, array.ctypes.data, array.nbytes, kind, stream.handle))

    def read(self, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> NDArray[Any]:
        """An array of what lies at the beginning, once the stream has come to it."""
        array = np.empty(shape, dtype)
        assert array.nbytes <= self.size
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(self._cuda.cudaMemcpyAsync(array.ctypes.data, self.address, array.nbytes, kind, stream.handle))
        stream.synchronize()
        return array

    def close(self) -> None:
        """Give the memory back."""
        _call(self._cuda.cudaFree(self.address))


def _runtime() -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as missing:
        raise MissingExtraError(
            "a GPU is reached through `cuda-bindings`, which is not installed: `pip install 'stage-rt[gpu]'`"
        ) from missing


def _call(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call that went well.

    Raises:
        BackendError: it failed; the message is CUDA's own.
    """
    cuda = _runtime()
    status, *values = result
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        raise BackendError(f"CUDA: {text.decode()}")
    return values[0] if values else None
