"""One half of the autoencoder on the device, in a stream of its own choosing: started now, waited for later."""

import threading
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt import batches
from stage_rt.cuda import device
from stage_rt.errors import InputError, StageError
from stage_rt.networks import STORAGE, DeviceBackend, Tensor, narrow, size, widen

Float32 = NDArray[np.float32]


class Pending:
    """Results the device is still at work on; any thread may ask for them."""

    def __init__(self, event: device.Event, stored: NDArray[Any], tensor: Tensor) -> None:
        self._event, self._stored, self._tensor = event, stored, tensor
        self._lock = threading.Lock()
        self._result: Float32 | StageError | None = None

    def result(self) -> Float32:
        """The results, float32; waits for the device the first time.

        Raises:
            BackendError: the device failed.
        """
        self.finish()
        if isinstance(self._result, StageError):
            raise self._result
        assert self._result is not None
        return self._result

    def finish(self) -> None:
        """Wait for the results or the error there is instead; nothing of the device is used afterwards."""
        with self._lock:
            if self._result is not None:
                return
            try:
                self._event.synchronize()
                self._result = widen(self._stored, self._tensor.dtype)
            except StageError as error:
                self._result = error
            del self._event, self._stored


class Half:
    """Encoder or decoder for up to ``capacity`` samples a call, ``batch`` at once; all its memory is its own.

    So it can run beside the loop in another stream. ``graph`` is its name, ``name`` that of its input.

    Raises:
        DeviceMemoryError: it does not fit.
        BackendError: the network cannot be loaded.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        graph: str,
        name: str,
        *,
        batch: int,
        capacity: int,
        stream: device.Stream,
    ) -> None:
        self._batch, self._stream = batch, stream
        self._pending: Pending | None = None
        with device.active(), ExitStack() as opened:
            self._network = backend.network(graph, batch)
            opened.callback(self._network.close)
            self._allocate(name, -(-capacity // batch) * batch, opened)
            opened.callback(self._finish)
            self._opened = opened.pop_all()

    def _allocate(self, name: str, rows: int, opened: ExitStack) -> None:
        self._input, self._output = (self._network.tensors[each] for each in (name, self._network.output))
        self._event = device.Event()
        opened.callback(self._event.close)
        self._sent, self._received = (
            self._pinned((rows, *tensor.shape[1:]), tensor, opened) for tensor in (self._input, self._output)
        )
        sizes = {"input": size(self._input), "output": size(self._output), "scratch": self._network.scratch}
        self._arena = device.Arena(sizes)
        opened.callback(self._arena.close)
        at = self._arena.addresses
        self._network.bind({name: at["input"], self._network.output: at["output"]}, at["scratch"])

    @staticmethod
    def _pinned(shape: tuple[int, ...], tensor: Tensor, opened: ExitStack) -> NDArray[Any]:
        memory = device.Pinned(shape, STORAGE[tensor.dtype])
        opened.callback(memory.close)
        return memory.array

    def start(self, samples: Float32) -> Pending:
        """Enqueue ``samples``, float32; results of an earlier call are fetched first.

        Raises:
            InputError: they are more than the capacity.
            BackendError, DeviceMemoryError: the device failed.
        """
        count = len(samples)
        if count > len(self._sent):
            raise InputError(f"a batch of {count} is more than the engine's largest, {len(self._sent)}")
        if self._pending is not None:
            self._pending.finish()
        rows = -(-count // self._batch) * self._batch
        self._sent[:rows] = narrow(batches.padded(samples, rows), self._input.dtype)
        with device.active():
            for start in range(0, rows, self._batch):
                part = slice(start, start + self._batch)
                self._arena.write("input", self._sent[part], self._stream)
                self._network.enqueue(self._stream.handle)
                self._arena.read_into("output", self._received[part], self._stream)
            self._event.record(self._stream)
        self._pending = Pending(self._event, self._received[:count], self._output)
        return self._pending

    def close(self) -> None:
        """Wait for what is running, then give the memory back; a second time nothing is left to be done."""
        with device.active():
            self._opened.close()

    def _finish(self) -> None:
        if self._pending is not None:
            self._pending.finish()
        self._stream.synchronize()
