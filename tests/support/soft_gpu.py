"""The GPU of ``softcuda`` as a test sees it: what lives on it, what it was asked for, and what shall fail.

Above it are the real PyCUDA and the real cuda-bindings, below them a ``libcuda.so.1`` of C++ whose memory is host
memory, whose streams run as late as CUDA allows, and whose kernels are ``step_cuda.cu`` as C++. So the tests prove
which calls are made in which order, on which addresses, and what becomes of the data; not what a GPU does.
"""

import ctypes
import gc
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from stage_rt.cuda import device
from stage_rt.errors import BackendError

ANY = ""
"""In the place of a function's name: whichever comes."""

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Result(IntEnum):
    """Of ``CUresult`` what tests let happen."""

    OUT_OF_MEMORY = 2
    NO_DEVICE = 100
    LAUNCH_FAILED = 719
    ILLEGAL_ADDRESS = 700
    CAPTURE_INVALIDATED = 901


class Kind(IntEnum):
    """How a failure shows: in one call, in that and every later one, or by breaking the capture in silence."""

    ONCE = 0
    STICKY = 1
    BREAKS_CAPTURE = 2


class Counts(NamedTuple):
    """What is alive; `used` in bytes, `contexts` on this thread's stack."""

    used: int
    blocks: int
    pinned: int
    streams: int
    events: int
    modules: int
    graphs: int
    executables: int
    queued: int
    capturing: int
    contexts: int
    retained: int
    faults: int

    @property
    def leaks(self) -> dict[str, int]:
        """What should be gone when everything is closed."""
        return {name: count for name, count in self._asdict().items() if count and name != "retained"}


class SoftGpu:
    """The one GPU of this process."""

    name, sm = "Soft H100", "sm90"

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.soft_log.restype = ctypes.c_uint64
        self._library.soft_queued.restype = ctypes.c_long
        self._kept: list[object] = []
        self._allocations: dict[int, device.Memory] = {}
        self.raised: list[BaseException] = []
        self._begun = self.calls
        self.memory = 2**30
        self.heal()

    @property
    def counts(self) -> Counts:
        found = (ctypes.c_size_t * len(Counts._fields))()
        self._library.soft_counts(found)
        return Counts(*found)

    @property
    def used(self) -> int:
        return self.counts.used

    @property
    def memory(self) -> int:
        """Bytes of memory, which a test may change at any time."""
        return self._memory

    @memory.setter
    def memory(self, size: int) -> None:
        self._memory = size
        self._library.soft_memory(ctypes.c_size_t(size))

    @property
    def calls(self) -> int:
        """How many calls the driver has had."""
        return int(self._library.soft_log(ctypes.c_uint64(2**63), None, ctypes.c_size_t(0)))

    def log(self, since: int | None = None) -> list[str]:
        """The calls from number ``since`` on, or of this test, but those that change contexts; kernels by name."""
        since = self._begun if since is None else since
        room = 64 * (self.calls - since) + 1
        text = ctypes.create_string_buffer(room)
        self._library.soft_log(ctypes.c_uint64(since), text, ctypes.c_size_t(room))
        return [line for line in text.value.decode().split("\n") if line and not line.startswith("cuCtx")]

    def count(self, since: int | None = None) -> Counter[str]:
        return Counter(self.log(since))

    @property
    def faults(self) -> str:
        """What no program may do and was done, a line each."""
        text = ctypes.create_string_buffer(10_000)
        self._library.soft_faults(text, ctypes.c_size_t(len(text)))
        return text.value.decode()

    def queued(self, stream: int) -> int:
        """How many items wait in a stream."""
        return int(self._library.soft_queued(ctypes.c_void_p(stream)))

    def fail(self, function: str, result: int, *, call: int = 1, kind: Kind = Kind.ONCE) -> None:
        """Let the ``call``th call from now of a function fail; 0 for every call."""
        self._library.soft_fail(function.encode(), call, int(result), int(kind))

    def break_captures(self, function: str) -> None:
        """Let every capture in which ``function`` is called come to nothing, which its end tells."""
        self.fail(function, Result.CAPTURE_INVALIDATED, call=0, kind=Kind.BREAKS_CAPTURE)

    def heal(self) -> None:
        """Forget every failure, planned and past."""
        self._library.soft_heal()

    def allocate(self, size: int) -> int:
        memory = device.Memory(size)
        self._allocations[memory.address] = memory
        return memory.address

    def free(self, address: int) -> None:
        self._allocations.pop(address).close()

    def view(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Device memory as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype=dtype).reshape(shape)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Give a stream, or the capture of it, a function of the host in the place of a library's kernels."""

        def run(_: object) -> None:
            try:
                work()
            except BaseException as error:
                self.raised.append(error)

        function = _HOST_FUNCTION(run)
        # A graph may call it for as long as there are graphs.
        self._kept.append(function)
        result = self._library.cuLaunchHostFunc(ctypes.c_void_p(stream), function, None)
        if result:
            raise BackendError(f"a network failed: CUDA's error {result}")

    def check(self) -> None:
        """Nothing is left, and nothing went wrong on the way.

        Raises:
            AssertionError: with what it is.
        """
        gc.collect()
        assert not self.raised, self.raised[:3]
        assert not self.faults, self.faults
        assert not self.counts.leaks, self.counts.leaks
