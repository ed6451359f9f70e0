"""Networks that PyTorch compiled for the CPU on the memory and in the streams of softcuda, for ``run.sh --dry``."""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.networks import STORAGE, Backend, narrow, tensors, widen
from stage_rt.spec import EngineSpec

sys.path.append(str(Path(__file__).parents[2] / "tests/support"))

from soft_gpu import SoftGpu


class OnSoftcuda:
    """A `stage_rt.networks.DeviceBackend` over a backend that runs on the host; softcuda's memory is the host's."""

    def __init__(self, backend: Backend, spec: EngineSpec) -> None:
        self._backend, self._spec = backend, spec
        self._machine = SoftGpu()

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        return self._backend.run(graph, **inputs)

    def network(self, graph: str, batch: int) -> "Network":
        return Network(self._machine, partial(self._backend.run, graph), self._spec, graph, batch)

    def recording(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._backend.close()


class Network:
    """A graph at one batch size; see `stage_rt.networks.DeviceNetwork`."""

    scratch = 0

    def __init__(self, machine: SoftGpu, run: Any, spec: EngineSpec, graph: str, batch: int) -> None:
        inputs, (self.output, result) = tensors(spec.model, spec.dtype, graph, batch)
        self.tensors = {**inputs, self.output: result}
        self._machine, self._run = machine, run
        self._addresses: Mapping[str, int] = {}

    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        self._addresses = dict(addresses)

    def enqueue(self, stream: int) -> None:
        self._machine.enqueue(stream, self._compute)

    def close(self) -> None:
        self._addresses = {}

    def _compute(self) -> None:
        arrays = {
            name: self._machine.view(self._addresses[name], tensor.shape, STORAGE[tensor.dtype])
            for name, tensor in self.tensors.items()
        }
        inputs = {
            name: array.copy() if name == "timestep" else widen(array, self.tensors[name].dtype)
            for name, array in arrays.items()
            if name != self.output
        }
        arrays[self.output][...] = narrow(self._run(**inputs), self.tensors[self.output].dtype)
