"""OpenVINO on the CPU."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt import extras
from stage_rt.backends.forks import protect
from stage_rt.backends.versions import require_minor
from stage_rt.batches import padded
from stage_rt.errors import BackendError, EngineError, first_line
from stage_rt.folders import verify_again
from stage_rt.machine import cores
from stage_rt.names import DType
from stage_rt.spec import EngineSpec

LIBRARY = "openvino"

PRECISION: dict[DType, str] = {"fp32": "f32", "bf16": "bf16"}
"""What a dtype is called there; fp16 has no arithmetic on most CPUs."""


def library() -> ModuleType:
    """The ``openvino`` module.

    Raises:
        MissingExtraError: it is not installed.
    """
    return extras.library(LIBRARY, "this engine needs OpenVINO", "openvino")


def version() -> str:
    """Its version without the build's number: what the package index knows it by."""
    return str(library().__version__).partition("-")[0]


@cache
def core() -> Any:
    """The one ``openvino.Core`` of this process.

    The last one that goes unloads the plugin for CPUs, which unmaps the stack for signals that it gave to the thread
    that loaded it and leaves it registered (seen with 2026.4): the next signal with a handler would end the process.
    """
    return library().Core()


def computes(core: Any, dtype: DType) -> bool:
    """Whether this CPU has instructions for a dtype; without them OpenVINO would compute in float32."""
    return dtype == "fp32" or dtype.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class _Network(NamedTuple):
    """A graph compiled for one number of samples, and a request for each part of the largest batch there was."""

    compiled: Any
    types: dict[str, np.dtype[Any]]
    requests: list[Any]


class OpenVinoBackend:
    """Graphs in OpenVINO's own form, compiled for this CPU when they are first run.

    A batch is cut into equal parts, one a stream. There is a stream for every sample of the engine's largest batch,
    up to one a core: threads that share a sample round otherwise, so how many do must not follow from what was
    painted before. A graph is compiled for the number of samples that a part of the engine's batches has, and for
    one: any other batch, as the last of a run, goes sample by sample, to the same bits. A size left open has others.

    Raises:
        EngineError: the engine was made by another minor version of OpenVINO, or needs bf16 on a CPU without it.
    """

    def __init__(self, folder: Path, spec: EngineSpec) -> None:
        found = version()
        require_minor(folder, spec, found)
        self._core = core()
        if not computes(self._core, spec.dtype):
            raise EngineError(
                f"`{folder}` computes in {spec.dtype}, which this CPU cannot: build it with `--dtype fp32`"
            )
        self._folder, self._spec, self._cores = folder, spec, cores()
        self._precision = PRECISION[spec.dtype]
        self._streams = min(max(spec.batch), self._cores)
        self._sizes = {self._part(batch) for batch in spec.batch}
        self._networks: dict[tuple[str, int], _Network] = {}
        self._alone = Lock()
        protect(self)

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `stage_rt.networks.Backend`; ``graph`` runs at any batch."""
        batch = max((len(array) for array in inputs.values()), default=1)
        size = self._part(batch) if self._part(batch) in self._sizes else 1
        # The last part may have fewer samples, or none.
        starts = range(0, batch, size)
        with self._alone:
            network = self._network(graph, size, len(starts))
            feed = {name: np.ascontiguousarray(inputs[name], kind) for name, kind in network.types.items()}
            feeds = [
                {name: padded(array[start : start + size], size) for name, array in feed.items()}
                for start in starts
            ]
            requests = network.requests[: len(feeds)]
            # The library's exceptions have no base of their own.
            try:
                for request, part in zip(requests, feeds, strict=True):
                    request.start_async(part, share_inputs=True)
                for request in requests:
                    request.wait()
            except Exception as error:
                raise BackendError(f"OpenVINO failed in graph `{graph}`: {_reason(error)}") from error
            outputs = [request.get_output_tensor(0).data for request in requests]
            return np.concatenate(outputs, dtype=np.float32)[:batch]

    def close(self) -> None:
        """Drop every compiled graph."""
        self._networks.clear()

    def held(self) -> Iterable[object]:
        """See `stage_rt.backends.forks.Holder`."""
        yield self._core
        for network in self._networks.values():
            yield network.compiled
            yield from network.requests

    def _part(self, batch: int) -> int:
        """How many samples a part of a batch has."""
        return -(-batch // min(batch, self._streams))

    def _network(self, graph: str, size: int, parts: int) -> _Network:
        """``graph`` for ``size`` samples a part, with requests for at least so many parts."""
        path = self._folder / f"{graph}.xml"
        if (graph, size) not in self._networks:
            verify_again(self._folder, self._spec, (f"{graph}.xml", f"{graph}.bin"))
        try:
            if (graph, size) not in self._networks:
                self._networks[graph, size] = self._compiled(path, size)
            network = self._networks[graph, size]
            while len(network.requests) < parts:
                network.requests.append(network.compiled.create_infer_request())
        except Exception as error:
            raise BackendError(f"OpenVINO cannot load `{path}`: {_reason(error)}") from error
        return network

    def _compiled(self, path: Path, size: int) -> _Network:
        model = self._core.read_model(path)
        model.reshape({port.any_name: [size, *list(port.partial_shape)[1:]] for port in model.inputs})
        compiled = self._core.compile_model(model, "CPU", self._settings())
        types = {port.any_name: np.dtype(port.element_type.to_dtype()) for port in compiled.inputs}
        return _Network(compiled, types, [])

    def _settings(self) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": self._precision,
            "NUM_STREAMS": self._streams,
            "INFERENCE_NUM_THREADS": self._cores,
            # Several processes that paint side by side would all be pinned to the first cores.
            "ENABLE_CPU_PINNING": False,
        }


def _reason(error: BaseException) -> str:
    """What went wrong; the first lines of the library's messages are places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [
        line for line in lines if not line.startswith(("Exception from", "Check '")) and ".cpp" not in line
    ]
    return told[-1] if told else first_line(error)
