"""A GPU, its memory, streams, events and kernels: the only importer of PyCUDA.

Everything happens in the device's primary context, which PyTorch and TensorRT use as well, so addresses and
streams can be handed to them. Every call finds the context by itself; `active` keeps it in force for a block of
code that has to be quick or that calls other CUDA libraries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt import extras
from stage_rt.cuda.plan import BLOCK, layout
from stage_rt.errors import BackendError, DeviceError, DeviceMemoryError, EngineError, first_line

LIBRARY = "pycuda.driver"

_SLEEPING = 0x02 | 0x01
"""Event flags: take no time stamps, and let a waiting thread sleep."""


class Gpu(NamedTuple):
    """A GPU: its name, compute capability as ``sm86``, and memory in bytes."""

    name: str
    sm: str
    memory: int


def current() -> Gpu:
    """The GPU that CUDA calls of this process go to: the first that ``CUDA_VISIBLE_DEVICES`` lets through.

    Raises:
        DeviceError: there is none, or its driver does not serve this CUDA.
        MissingExtraError: PyCUDA is not installed.
    """
    device, _ = _primary()
    major, minor = device.compute_capability()
    return Gpu(device.name(), f"sm{major}{minor}", device.total_memory())


def require(folder: Path, devices: Sequence[str], options: Callable[[Gpu], str]) -> None:
    """Check that the GPU here is one of those an engine folder was built for.

    Args:
        folder: the engine folder, for the messages.
        devices: compute capabilities.
        options: of ``stage-rt build``, to build for another GPU with.

    Raises:
        DeviceError: there is no GPU.
        EngineError: it is another one.
        MissingExtraError: PyCUDA is not installed.
    """
    needed = f"`{folder}` is an engine for {', '.join(devices)}"
    try:
        gpu = current()
    except DeviceError as error:
        raise DeviceError(
            f"{needed} but {error.problem}",
            "run it on such a machine or build one with `--backend onnxruntime`",
        ) from error
    if gpu.sm not in devices:
        raise EngineError(
            f"{needed} but the GPU here is {gpu.sm} ({gpu.name})",
            f"build one with `stage-rt build {options(gpu)}`",
        )


@contextmanager
def active() -> Iterator[Any]:
    """Keep the device's context current on this thread; hands out PyCUDA's driver module.

    Raises:
        DeviceMemoryError: a CUDA call of the block found the memory full.
        BackendError: a CUDA call of the block failed.
        DeviceError, MissingExtraError: as `current`.
    """
    cuda = _library()
    _, context = _primary()
    context.push()
    try:
        yield cuda
    except cuda.MemoryError as error:
        raise DeviceMemoryError(f"the memory of {current().name} is full ({first_line(error)})") from error
    except cuda.Error as error:
        raise BackendError(f"CUDA failed: {first_line(error)}") from error
    finally:
        context.pop()


class Event:
    """A mark in a stream; a thread that waits for it sleeps."""

    def __init__(self) -> None:
        with active() as cuda:
            self._event = cuda.Event(_SLEEPING)

    def record(self, stream: "Stream") -> None:
        """Set the mark behind what ``stream`` was given so far."""
        with active():
            self._event.record(stream._stream)

    def synchronize(self) -> None:
        """Wait until the stream has come to the mark."""
        with active():
            self._event.synchronize()


class Stream:
    """A stream of its own, which does not wait for the default stream; ``handle`` is its address."""

    def __init__(self) -> None:
        with active() as cuda:
            self._stream = cuda.Stream(1)
            self.handle = int(self._stream.handle)

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""
        with active():
            self._stream.synchronize()

    def close(self) -> None:
        """Destroy the stream."""
        with active():
            del self._stream


class Memory:
    """``size`` bytes on the device from ``address`` on, aligned to 256 bytes at least.

    Raises:
        DeviceMemoryError: that much is not left.
    """

    def __init__(self, size: int) -> None:
        with active() as cuda:
            self._memory = cuda.mem_alloc(max(size, 1))
        self.size = size
        self.address = int(self._memory)

    def write(self, array: NDArray[Any], stream: Stream, offset: int = 0) -> None:
        """Enqueue a copy of a contiguous array, which must stay as it is until the stream has come to it."""
        assert array.flags.c_contiguous
        assert offset + array.nbytes <= self.size
        with active() as cuda:
            cuda.memcpy_htod_async(self.address + offset, array, stream._stream)

    def read_into(self, array: NDArray[Any], stream: Stream, offset: int = 0) -> None:
        """Enqueue a copy from here into a contiguous array."""
        assert array.flags.c_contiguous
        assert offset + array.nbytes <= self.size
        with active() as cuda:
            cuda.memcpy_dtoh_async(array, self.address + offset, stream._stream)

    def read(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream, offset: int = 0
    ) -> NDArray[Any]:
        """An array of what lies here, once the stream has come to it."""
        array = np.empty(shape, dtype)
        self.read_into(array, stream, offset)
        stream.synchronize()
        return array

    def close(self) -> None:
        """Give the memory back; nothing that runs may use it any more."""
        with active():
            self._memory.free()


class Arena:
    """Named buffers in one piece of device memory, which lives and dies as a whole.

    Raises:
        DeviceMemoryError: that much is not left.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._offsets, size = layout(sizes)
        self._memory = Memory(size)
        self.addresses = {name: self._memory.address + offset for name, offset in self._offsets.items()}

    def write(self, name: str, array: NDArray[Any], stream: Stream) -> None:
        """`Memory.write` to a buffer."""
        self._memory.write(array, stream, self._offsets[name])

    def read_into(self, name: str, array: NDArray[Any], stream: Stream) -> None:
        """`Memory.read_into` from a buffer."""
        self._memory.read_into(array, stream, self._offsets[name])

    def read(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> NDArray[Any]:
        """`Memory.read` from a buffer."""
        return self._memory.read(shape, dtype, stream, self._offsets[name])

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


def pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in memory that the device copies from and to while the host goes on."""
    with active() as cuda:
        array: NDArray[Any] = cuda.pagelocked_empty(shape, dtype)
    return array


class Kernel:
    """A kernel and the types of its arguments, ``P`` for an address and ``I`` for an unsigned integer."""

    def __init__(self, function: Any, types: str) -> None:
        self._function = function.prepare(list(types))

    def launch(self, grid: Sequence[int], stream: Stream, *arguments: int) -> None:
        """Enqueue it with `stage_rt.cuda.plan.BLOCK` threads a block."""
        with active():
            self._function.prepared_async_call(tuple(grid), (BLOCK, 1, 1), stream._stream, *arguments)


def kernels(binary: bytes, types: Mapping[str, str]) -> dict[str, Kernel]:
    """The kernels of a fatbin, by name.

    Raises:
        BackendError: there is no code for this GPU in it, or no kernel of a name.
    """
    with active() as cuda:
        module = cuda.module_from_buffer(binary)
        return {name: Kernel(module.get_function(name), each) for name, each in types.items()}


@cache
def _library() -> Any:
    try:
        return extras.library(LIBRARY, "a GPU is reached through PyCUDA", "gpu")
    except ImportError as broken:
        raise DeviceError(f"no NVIDIA GPU can be used here ({first_line(broken)})") from broken


@cache
def _primary() -> tuple[Any, Any]:
    """The device and its primary context, kept for as long as the process lives."""
    cuda = _library()
    try:
        cuda.init()
        device = cuda.Device(0)
        return device, device.retain_primary_context()
    except cuda.Error as error:
        raise DeviceError(f"no NVIDIA GPU can be used here ({first_line(error)})") from error
