"""A GPU, its memory, streams, events and kernels: the only importer of PyCUDA.

Everything happens in the device's primary context, which PyTorch and TensorRT use as well, so addresses and
streams can be handed to them. Every call finds the context by itself; `active` keeps it in force for a block of
code that has to be quick or that calls other CUDA libraries.

What is made here is closed by hand and in any thread: PyCUDA leaks what it has to destroy without the context, which
is what happens when the last reference goes in another thread. Closing twice is closing once.
"""

import atexit
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from traceback import clear_frames
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt import extras
from stage_rt.cuda.plan import BLOCK, layout
from stage_rt.errors import (
    BackendError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    EngineError,
    MissingExtraError,
    first_line,
)

LIBRARY = "pycuda.driver"

_RESTART = "nothing more can be computed on the GPU by this process, start it again"

_SLEEPING = 0x02 | 0x01
"""Event flags: take no time stamps, and let a waiting thread sleep."""


_FULL = (
    "out of memory",
    "outofmemory",
    "out_of_memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "gpu memory allocation failed",
    "could not be allocated",
    "allocator error allocating",
)
"""How errors say that the GPU's memory is full, in lower case: those of CUDA, its libraries and TensorRT-RTX 1.7.
The word "memory" is in others too, as in "an illegal memory access was encountered", after which the GPU is lost.
"""


def says_full(error: str) -> bool:
    """Whether an error of a library on the GPU, which gave it no type, is that its memory is full."""
    return any(words in error.lower() for words in _FULL)


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
    return _primary().gpu


def driver_version() -> int:
    """The version of CUDA that the driver serves, 13000 for 13.0."""
    with active() as cuda:
        return int(cuda.get_driver_version())


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
        DeviceLostError: a CUDA call of the block failed, and no other one will do better.
        BackendError: a CUDA call of the block failed.
        DeviceError, MissingExtraError: as `current`.
    """
    cuda, primary = _library(), _primary()
    with _translated(cuda, primary), primary.entered():
        yield cuda


@contextmanager
def _translated(cuda: Any, primary: "_Primary") -> Iterator[None]:
    try:
        yield
    except cuda.Error as error:
        # Whoever keeps the error shall not keep the streams and modules that are locals of PyCUDA's frames.
        clear_frames(error.__traceback__)
        if isinstance(error, cuda.MemoryError):
            raise DeviceMemoryError(
                f"the memory of {primary.gpu.name} is full ({first_line(error)})"
            ) from error
        problem = f"CUDA failed: {first_line(error)}"
        raise (
            DeviceLostError(problem, _RESTART) if _lost(cuda, primary) else BackendError(problem)
        ) from error
    except BackendError as error:
        # Other libraries of CUDA do not say of what they raise whether anything can be done after it.
        if isinstance(error, DeviceLostError) or not _lost(cuda, primary):
            raise
        raise DeviceLostError(error.problem, _RESTART) from error


def _lost(cuda: Any, primary: "_Primary") -> bool:
    """Whether every call fails from now on, as after a kernel that wrote where no memory is.

    What is asked for is of no interest; it may be asked for while a stream is recorded.
    """
    try:
        with primary.entered():
            cuda.mem_get_info()
    except cuda.Error:
        return True
    except BackendError:
        # Python is ending.
        return False
    return False


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

    def close(self) -> None:
        """Destroy the event."""
        with active():
            self._event = None


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
            self._stream = None


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
            memory, self._memory = self._memory, None
            if memory is not None:
                memory.free()


class Arena:
    """Named buffers in one piece of device memory, which lives and dies as a whole.

    Raises:
        DeviceMemoryError: that much is not left.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._offsets, size = layout(sizes)
        self._memory = Memory(size)
        self.addresses = {name: self._memory.address + offset for name, offset in self._offsets.items()}

    def write(self, name: str, array: NDArray[Any], stream: Stream, offset: int = 0) -> None:
        """`Memory.write` to a buffer, from one of its bytes on."""
        self._memory.write(array, stream, self._offsets[name] + offset)

    def read_into(self, name: str, array: NDArray[Any], stream: Stream) -> None:
        """`Memory.read_into` from a buffer."""
        self._memory.read_into(array, stream, self._offsets[name])

    def read(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream, offset: int = 0
    ) -> NDArray[Any]:
        """`Memory.read` from a buffer, from one of its bytes on."""
        return self._memory.read(shape, dtype, stream, self._offsets[name] + offset)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


class Pinned:
    """An array in memory that the device copies from and to while the host goes on; gone after `close`.

    Raises:
        DeviceMemoryError: that much cannot be pinned.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        with active() as cuda:
            self.array: NDArray[Any] = cuda.pagelocked_empty(shape, dtype)
        self._memory: Any = self.array.base

    def close(self) -> None:
        """Give the memory back; no view of the array may be looked at any more."""
        with active():
            memory, self._memory = self._memory, None
            if memory is not None:
                memory.free()


class Kernel:
    """A kernel and the types of its arguments, ``P`` for an address and ``I`` for an unsigned integer."""

    def __init__(self, function: Any, types: str) -> None:
        self._function = function.prepare(list(types))

    def forget(self) -> None:
        """Let go of the module it is from."""
        self._function = None

    def launch(self, grid: Sequence[int], stream: Stream, *arguments: int) -> None:
        """Enqueue it with `stage_rt.cuda.plan.BLOCK` threads a block."""
        with active():
            self._function.prepared_async_call(tuple(grid), (BLOCK, 1, 1), stream._stream, *arguments)


class Module:
    """The kernels of a fatbin.

    ``types`` are those of their arguments, by name of the kernel; ``kernels`` holds them by the same names.

    Raises:
        BackendError: there is no code for this GPU in it, or no kernel of a name.
    """

    def __init__(self, binary: bytes, types: Mapping[str, str]) -> None:
        self.kernels: dict[str, Kernel] = {}
        with active() as cuda, ExitStack() as failed:
            failed.callback(self.close)
            self._module = cuda.module_from_buffer(binary)
            for name, each in types.items():
                self.kernels[name] = Kernel(self._module.get_function(name), each)
            failed.pop_all()

    def close(self) -> None:
        """Unload it; nothing that runs may use it any more."""
        with active():
            for kernel in self.kernels.values():
                kernel.forget()
            self._module = None


@cache
def _library() -> Any:
    try:
        return extras.library(LIBRARY, "a GPU is reached through PyCUDA", "gpu")
    except MissingExtraError as refusal:
        broken = refusal.__cause__
        if broken is None or isinstance(broken, ModuleNotFoundError):
            raise
        # Without a driver there is nothing that PyCUDA could load.
        raise DeviceError(f"no NVIDIA GPU can be used here ({first_line(broken)})") from broken


class _Primary:
    """The device's primary context, kept until the interpreter ends, and who is inside of it."""

    def __init__(self, gpu: Gpu, context: Any) -> None:
        self.gpu, self._context = gpu, context
        self._thread = threading.local()
        self._changed = threading.Condition()
        self._inside, self._ending = 0, False
        self._process = os.getpid()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The context is current on this thread; blocks may be nested."""
        if getattr(self._thread, "inside", False):
            self._check()
            yield
            return
        with self._changed:
            self._check()
            self._inside += 1
        try:
            with self._current():
                yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _check(self) -> None:
        if self._ending:
            raise BackendError(
                "Python is ending and has given the GPU back: join the threads that use it first"
            )

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._context.push()
        self._thread.inside = True
        try:
            yield
        finally:
            self._thread.inside = False
            self._context.pop()

    def end(self) -> None:
        """Send every thread out, then release the context.

        PyCUDA aborts a process that ends while a context is current on one of its threads, as a daemon's may be, and
        does not know at its own end how to release a primary context. A forked child has neither threads nor context.
        """
        if os.getpid() != self._process:
            return
        with self._changed:
            self._ending = True
            empty = self._changed.wait_for(lambda: not self._inside, _PATIENCE)
        if empty:
            self._context.push()
            self._context.detach()


_PATIENCE = 60.0
"""Seconds the interpreter's end waits for the threads on the device, which look up after every stretch of steps."""

_first = threading.Lock()


def _primary() -> _Primary:
    with _first:
        return _retained()


@cache
def _retained() -> _Primary:
    cuda = _library()
    try:
        cuda.init()
        device = cuda.Device(0)
        major, minor = device.compute_capability()
        gpu = Gpu(device.name(), f"sm{major}{minor}", device.total_memory())
        primary = _Primary(gpu, device.retain_primary_context())
    except cuda.Error as error:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f"; `CUDA_VISIBLE_DEVICES` is `{visible}`"
        raise DeviceError(f"no NVIDIA GPU can be used here ({first_line(error)}{hidden})") from error
    atexit.register(primary.end)
    return primary
