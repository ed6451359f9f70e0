"""Networks that PyTorch compiled for the CPU on the memory and in the streams of softcuda, for ``run.sh --dry``."""

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.networks import Backend, tensors
from stage_rt.spec import EngineSpec

sys.path.append(str(Path(__file__).parents[2] / "tests/support"))

from mock_networks import Network
from soft_gpu import SoftGpu


class OnSoftcuda:
    """A `stage_rt.networks.DeviceBackend` over a backend that runs on the host; softcuda's memory is the host's."""

    def __init__(self, backend: Backend, spec: EngineSpec) -> None:
        self._backend, self._spec = backend, spec
        self._machine = SoftGpu()

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        return self._backend.run(graph, **inputs)

    def network(self, graph: str, batch: int) -> Network:
        inputs, (output, result) = tensors(self._spec.model, self._spec.dtype, graph, batch)
        return Network(
            self._machine, partial(self._backend.run, graph), {**inputs, output: result}, output, scratch=0
        )

    def recording(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forget_recorded(self) -> None:
        """See `stage_rt.networks.DeviceBackend`; there is nothing to give back."""

    def close(self) -> None:
        self._backend.close()
