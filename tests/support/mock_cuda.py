"""A GPU made of NumPy: stands in for ``pycuda.driver`` and ``cuda.bindings.driver``.

Memory is host memory at its real addresses, so the step kernels compiled as C++ and networks written in NumPy work
on it. A stream only queues; what it was given runs when somebody waits for it, as late as a GPU might, so a result
read too early is wrong and an array freed too early is an error. What is queued while a stream is captured is
recorded; whatever CUDA forbids then breaks the capture. ``log`` holds one word for everything that was asked for.
"""

import ctypes
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Work = Callable[[], None]


class CudaError(Exception):
    pass


class OutOfMemoryError(CudaError):
    pass


class Machine:
    """``memory`` bytes; ``kernels`` is the library of the emulated kernels, needed where one is launched.

    ``name``, ``sm``, the number of ``devices`` and the ``total`` of bytes are what the driver tells of it.
    """

    def __init__(self, kernels: ctypes.CDLL | None = None, memory: int = 2**30) -> None:
        self.kernels, self.memory = kernels, memory
        self.name, self.sm, self.devices = "NumPy", (9, 0), 1
        self.total, self.driver = memory, 13000
        self.blocks: dict[int, np.ndarray] = {}
        self.queues: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work] | None] = {}
        self.graphs: dict[int, list[Work]] = {}
        self._contexts = threading.local()
        self.log: list[str] = []
        self._handles = iter(range(1000, 10**9))

    @property
    def depth(self) -> int:
        """How often the context is current on this thread."""
        return getattr(self._contexts, "depth", 0)

    @depth.setter
    def depth(self, depth: int) -> None:
        self._contexts.depth = depth

    @property
    def used(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def count(self, since: int = 0) -> Counter[str]:
        return Counter(self.log[since:])

    def handle(self) -> int:
        return next(self._handles)

    def enqueue(self, stream: int, word: str, work: Work) -> None:
        assert self.depth, "no context is current"
        self.log.append(word)
        recording = self.capturing.get(stream)
        if stream not in self.capturing:
            self.queues[stream].append(work)
        elif recording is not None:
            recording.append(work)

    def forbidden_while_capturing(self, word: str) -> None:
        assert self.depth, "no context is current"
        self.log.append(word)
        if self.capturing:
            self.capturing = dict.fromkeys(self.capturing)
            raise CudaError(f"{word}: operation not permitted when stream is capturing")

    def drain(self, stream: int, until: Work | None = None) -> None:
        queue = self.queues[stream]
        while queue and (until is None or until in queue):
            queue.pop(0)()

    def allocate(self, size: int) -> int:
        self.forbidden_while_capturing("alloc")
        if self.used + size > self.memory:
            raise OutOfMemoryError("cuMemAlloc failed: out of memory")
        block = np.full(size + 256, 0xA5, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self.blocks[address] = block
        return address

    def free(self, address: int) -> None:
        assert not any(self.queues.values()), "memory is freed while a stream may use it"
        self.forbidden_while_capturing("free")
        del self.blocks[address]

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Device memory as an array; only inside a block that was allocated."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert any(
            (start <= address and address + size <= start + block.nbytes - 256) or not size
            for start, block in self.blocks.items()
        ), "outside of what is allocated"
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype=dtype).reshape(shape)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        alive, source, size = weakref.ref(owner), array.ctypes.data, array.nbytes
        del owner

        def copy() -> None:
            assert alive() is not None, "the array was freed before the device read it"
            ctypes.memmove(self.view(address, (size,), np.uint8).ctypes.data, source, size)

        self.enqueue(stream, "copy", copy)

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        def copy() -> None:
            array.reshape(-1).view(np.uint8)[:] = self.view(address, (array.nbytes,), np.uint8)

        assert array.flags.c_contiguous
        self.enqueue(stream, "copy", copy)

    def launch(self, name: str, types: str, grid: Any, block: Any, stream: int, arguments: Any) -> None:
        converted = [
            {"P": ctypes.c_void_p, "I": ctypes.c_uint32}[t](a) for t, a in zip(types, arguments, strict=True)
        ]
        run = getattr(self.kernels, f"launch_{name}")
        size = ctypes.c_uint32
        self.enqueue(stream, name, lambda: run(size(grid[0]), size(grid[1]), size(block[0]), *converted))


def pycuda_driver(machine: Machine) -> ModuleType:
    """What `stage_rt.cuda.device` uses of ``pycuda.driver``, with the names and arguments of PyCUDA 2026.1."""

    class Context:
        def push(self) -> None:
            machine.depth += 1

        @staticmethod
        def pop() -> None:
            assert machine.depth > 0
            machine.depth -= 1

        def detach(self) -> None:
            """At the end of the interpreter."""

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def name(self) -> str:
            return machine.name

        def compute_capability(self) -> tuple[int, int]:
            return machine.sm

        def total_memory(self) -> int:
            return machine.total

        def retain_primary_context(self) -> Context:
            return Context()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            assert machine.depth
            assert flags == 1, "the default stream would be waited for"
            self.handle = machine.handle()
            machine.queues[self.handle] = []

        def __del__(self) -> None:
            machine.queues.pop(self.handle, None)

        def synchronize(self) -> None:
            machine.forbidden_while_capturing("sync")
            machine.drain(self.handle)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            assert machine.depth
            self._mark: tuple[int, Work] | None = None

        def record(self, stream: Stream) -> "Event":
            def mark() -> None:
                """Nothing; its place in the queue is what counts."""

            self._mark = stream.handle, mark
            machine.enqueue(stream.handle, "record", mark)
            return self

        def synchronize(self) -> "Event":
            machine.forbidden_while_capturing("wait")
            if self._mark is not None:
                machine.drain(*self._mark)
            return self

    class Allocation:
        def __init__(self, size: int) -> None:
            self._address = machine.allocate(size)

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            machine.free(self._address)

    class Function:
        def __init__(self, name: str) -> None:
            self._name = name

        def prepare(self, types: list[str]) -> "Function":
            self._types = "".join(types)
            return self

        def prepared_async_call(self, grid: Any, block: Any, stream: Stream, *arguments: int) -> None:
            machine.launch(self._name, self._types, grid, block, stream.handle, arguments)

    class Pagelocked(np.ndarray):
        def free(self) -> None:
            assert not any(machine.queues.values()), "memory is freed while a stream may use it"

    def pagelocked_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return Pagelocked(shape, dtype).view(np.ndarray)

    def init() -> None:
        if not machine.devices:
            raise CudaError("cuInit failed: no CUDA-capable device is detected")

    module = ModuleType("pycuda.driver")
    vars(module).update(
        get_driver_version=lambda: machine.driver,
        Error=CudaError,
        MemoryError=OutOfMemoryError,
        init=init,
        Device=Device,
        Stream=Stream,
        Event=Event,
        mem_alloc=Allocation,
        mem_get_info=lambda: (machine.memory - machine.used, machine.total),
        memcpy_htod_async=lambda dest, src, stream: machine.copy_in(dest, src, stream.handle),
        memcpy_dtoh_async=lambda dest, src, stream: machine.copy_out(dest, src, stream.handle),
        pagelocked_empty=pagelocked_empty,
        module_from_buffer=lambda buffer: SimpleNamespace(get_function=Function),
    )
    return module


def cuda_bindings_driver(machine: Machine) -> ModuleType:
    """What `stage_rt.cuda.graphs` uses of ``cuda.bindings.driver``, with the names of cuda-bindings 13."""

    class CUresult(IntEnum):
        CUDA_SUCCESS = 0
        CUDA_ERROR_OUT_OF_MEMORY = 2
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901

    class Stream(int):
        pass

    def begin(stream: Stream, mode: str) -> tuple[CUresult]:
        assert isinstance(stream, Stream)
        assert mode == "thread local"
        assert not machine.queues[stream], "capturing began before the warm-up was over"
        machine.capturing[int(stream)] = []
        return (CUresult.CUDA_SUCCESS,)

    def end(stream: Stream) -> tuple[CUresult, int | None]:
        recorded = machine.capturing.pop(int(stream))
        if recorded is None:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        graph = machine.handle()
        machine.graphs[graph] = recorded
        return CUresult.CUDA_SUCCESS, graph

    def instantiate(graph: int, flags: int) -> tuple[CUresult, int]:
        executable = machine.handle()
        machine.graphs[executable] = machine.graphs[graph]
        return CUresult.CUDA_SUCCESS, executable

    def launch(executable: int, stream: Stream) -> tuple[CUresult]:
        works = machine.graphs[executable]
        machine.enqueue(int(stream), "graph", lambda: [work() for work in works] and None)
        return (CUresult.CUDA_SUCCESS,)

    def destroy(graph: int) -> tuple[CUresult]:
        del machine.graphs[graph]
        return (CUresult.CUDA_SUCCESS,)

    module = ModuleType("cuda.bindings.driver")
    vars(module).update(
        CUresult=CUresult,
        CUstream=Stream,
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local"),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=end,
        cuGraphInstantiate=instantiate,
        cuGraphLaunch=launch,
        cuGraphExecDestroy=destroy,
        cuGraphDestroy=destroy,
    )
    return module


@contextmanager
def installed(machine: Machine, patch: Any) -> Iterator[Machine]:
    """``machine`` in place of the GPU's libraries for as long as the block lasts."""
    from stage_rt.cuda import device, graphs, step

    caches = (device._library, device._retained, graphs.library)
    for cached in caches:
        cached.cache_clear()
    patch.setitem(sys.modules, "pycuda.driver", pycuda_driver(machine))
    patch.setitem(sys.modules, "cuda.bindings.driver", cuda_bindings_driver(machine))
    patch.setattr(step, "fatbin", lambda: b"")
    yield machine
    for cached in caches:
        cached.cache_clear()
