"""TensorRT and TensorRT-RTX on a GPU: one runtime for both flavours."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt import batches
from stage_rt.backends import kept, rtx
from stage_rt.cuda import device
from stage_rt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    InputError,
    MissingExtraError,
)
from stage_rt.names import BackendName
from stage_rt.networks import STORAGE, Tensor, TensorDType, narrow, size, widen
from stage_rt.spec import EngineSpec

if TYPE_CHECKING:
    import tensorrt as trt

SUFFIX = ".engine"


class Flavour(NamedTuple):
    """One of the two libraries: its name, module, distribution on the package index, and extra of stage-rt.

    ``targets`` are the compute capabilities it compiles for without such a GPU; TensorRT has none.
    """

    name: str
    module: str
    distribution: str
    extra: str
    targets: tuple[str, ...]


FLAVOURS: dict[BackendName, Flavour] = {
    "tensorrt": Flavour("TensorRT", "tensorrt", "tensorrt", "tensorrt", ()),
    "tensorrt-rtx": Flavour(
        "TensorRT-RTX",
        "tensorrt_rtx",
        "tensorrt-rtx-cu13",
        "rtx",
        ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
    ),
}


def library(backend: BackendName) -> Any:
    """The module of a flavour.

    Raises:
        MissingExtraError: it is not installed, or its libraries are not.
    """
    flavour = FLAVOURS[backend]
    try:
        module = import_module(flavour.module)
        # Its type stubs alone leave an empty package of its name behind.
        module.Runtime  # noqa: B018
    except (ImportError, OSError, AttributeError) as missing:
        raise MissingExtraError(
            f"this needs {flavour.name}, which is not installed: `pip install 'stage-rt[{flavour.extra}]'`"
        ) from missing
    return module


class Journal:
    """What a flavour logs, without its small talk; ``lines`` are (is it an error, message)."""

    def __init__(self) -> None:
        self.lines: deque[tuple[bool, str]] = deque(maxlen=10_000)

    def error(self) -> str:
        """The first line of the last error, or a word for that there was none."""
        return next(self._errors(), "it gave no reason")

    def failure(self, what: str) -> BackendError:
        """``what`` failed for the last error's reason; a `DeviceMemoryError` where one was that the GPU's memory is
        full, which the library lets others follow.
        """
        for reason in self._errors():
            if device.says_full(reason):
                return DeviceMemoryError(f"{what}: {reason}")
        return BackendError(f"{what}: {self.error()}")

    def _errors(self) -> Iterator[str]:
        """First lines of the errors, the last one first."""
        return (text.strip().partition("\n")[0] for is_error, text in reversed([*self.lines]) if is_error)


@cache
def journal(backend: BackendName) -> tuple[Journal, Any]:
    """The journal of a flavour and the ``ILogger`` that writes it.

    A process has one: the library ignores every logger but the first it is handed.
    """
    module = library(backend)
    written = Journal()

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= int(module.ILogger.INFO):
                written.lines.append((int(severity) <= int(module.ILogger.ERROR), text))

    return written, Logger()


@contextmanager
def started(name: str, journal: Journal) -> Iterator[None]:
    """A block in which the library called ``name`` starts: without a driver that it works with, it only says that
    it gave nothing.
    """
    try:
        yield
    except TypeError as nothing:
        raise BackendError(
            f"{name} does not start ({journal.error()}): update the GPU's driver or install a version of {name} "
            "for the one that is there"
        ) from nothing


class TensorRTBackend:
    """The graphs of an engine folder on the GPU, driven from the host (`run`) or bound to a loop (`network`).

    Raises:
        EngineError: the engine is for another version of the library or for other GPUs.
        DeviceError: there is no GPU.
        MissingExtraError: the library or PyCUDA is not installed.
        BackendError: the library cannot load a graph.
        DeviceMemoryError: the GPU's memory is too small for it.
    """

    def __init__(self, folder: Path, spec: EngineSpec) -> None:
        self._trt, self._spec = library(spec.backend), spec
        _check_version(folder, spec, self._trt.__version__)
        device.require(folder, spec.devices, _options)
        self._name = FLAVOURS[spec.backend].name
        self._journal, logger = journal(spec.backend)
        self._buckets = sorted(spec.batch)
        self._host: _Host | None = None
        with device.active():
            with started(self._name, self._journal):
                self._runtime: trt.Runtime = self._trt.Runtime(logger)
            self._engines = {graph: self._load(folder / f"{graph}{SUFFIX}") for graph in spec.model.graphs}
            self._kernels = {graph: self._compiled(graph) for graph in self._engines if _is_rtx(spec)}

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `stage_rt.networks.Backend`; a batch is padded to the next size the engine was built for.

        Raises:
            InputError: the batch is larger than the largest of them.
        """
        count = len(next(iter(inputs.values())))
        bucket = next((size for size in self._buckets if size >= count), None)
        if bucket is None:
            raise InputError(
                f"a batch of {count} is more than the {self._buckets[-1]} the engine was built for: split it or "
                f"build the engine with `--batch {count}`"
            )
        padded = {name: batches.padded(array, bucket) for name, array in inputs.items()}
        if self._host is None:
            self._host = _Host()
        return self._host.run(graph, bucket, partial(self.network, graph, bucket), padded)[:count]

    def network(self, graph: str, batch: int) -> "TensorRTNetwork":
        """See `stage_rt.networks.DeviceBackend`."""
        engine, profile = self._engines[graph], self._buckets.index(batch)
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        create = (
            self._kernels[graph].context
            if graph in self._kernels
            else partial(engine.create_execution_context, strategy)
        )
        return TensorRTNetwork(self._trt, self._name, self._journal, graph, engine, create, profile, batch)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """See `stage_rt.networks.DeviceBackend`; all memory is the caller's as it is.

        What was compiled for it is kept at once: a process that is killed does not come to its `close`.
        """
        yield
        self._keep()

    def forget_recorded(self) -> None:
        """See `stage_rt.networks.DeviceBackend`; there is nothing to give back."""

    def close(self) -> None:
        """Free the GPU's memory."""
        if self._host is not None:
            self._host.close()
        self._host = None
        with device.active():
            self._keep()
            self._kernels.clear()
            self._engines.clear()

    def _keep(self) -> None:
        for kernels in self._kernels.values():
            kernels.keep()

    def _compiled(self, graph: str) -> rtx.Kernels:
        plan = self._spec.files[f"{graph}{SUFFIX}"]
        file = kept.place(self._spec.backend, self._spec.library_version, plan)
        return rtx.Kernels(self._trt, self._engines[graph], file)

    def _load(self, path: Path) -> "trt.ICudaEngine":
        self._journal.lines.clear()
        engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise self._journal.failure(f"{self._name} cannot load `{path}`")
        return engine


class TensorRTNetwork:
    """A graph at one batch size, with an execution context of its own; see `stage_rt.networks.DeviceNetwork`."""

    def __init__(
        self,
        trt: Any,
        name: str,
        written: Journal,
        graph: str,
        engine: "trt.ICudaEngine",
        create: "Callable[[], trt.IExecutionContext | None]",
        profile: int,
        batch: int,
    ) -> None:
        self._name, self._journal, self._graph = name, written, graph
        self._create: Callable[[], trt.IExecutionContext | None] | None = create
        self._profile, self._batch = profile, batch
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.tensors = {name: _tensor(engine, name, batch) for name in names}
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self.output,) = set(names) - set(self._inputs)
        self.scratch = int(engine.get_device_memory_size_for_profile_v2(profile))
        self._context: trt.IExecutionContext | None = None

    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        """See `stage_rt.networks.DeviceNetwork`."""
        assert self._create is not None
        self._journal.lines.clear()
        context = self._create()
        if context is None:
            raise self._journal.failure(
                f"{self._name} cannot run `{self._graph}` in a batch of {self._batch}"
            )
        with closing(device.Stream()) as stream:
            bound = [context.set_optimization_profile_async(self._profile, stream.handle)]
            stream.synchronize()
        # How much memory is enough depends on the profile.
        context.set_device_memory(scratch, self.scratch)
        bound += [context.set_input_shape(name, self.tensors[name].shape) for name in self._inputs]
        bound += [context.set_tensor_address(name, addresses[name]) for name in self.tensors]
        if not all(bound):
            raise BackendError(
                f"the engine has no profile for a batch of {self._batch}: build it again with `stage-rt build`"
            )
        self._context = context

    def enqueue(self, stream: int) -> None:
        """See `stage_rt.networks.DeviceNetwork`."""
        assert self._context is not None
        self._journal.lines.clear()
        if not self._context.execute_async_v3(stream):
            raise self._journal.failure(f"{self._name} failed in graph `{self._graph}`")

    def close(self) -> None:
        """See `stage_rt.networks.DeviceNetwork`; the engine is let go of too."""
        self._context = self._create = None


class _Host:
    """What it takes to run graphs from the host: a stream, buffers for every graph and batch, and one workspace.

    One workspace serves all, as no two graphs run at once. It is as large as those that ran have needed: a loop that
    is driven from the host encodes and decodes a few pictures at a time, however many it paints.
    """

    def __init__(self) -> None:
        self._stream = device.Stream()
        self._bound: dict[tuple[str, int], tuple[TensorRTNetwork, device.Arena]] = {}
        self._workspace: device.Arena | None = None
        self._size = 0

    def run(
        self,
        graph: str,
        bucket: int,
        make: "Callable[[], TensorRTNetwork]",
        inputs: Mapping[str, NDArray[Any]],
    ) -> NDArray[np.float32]:
        """The output of a whole bucket.

        Raises:
            DeviceMemoryError: it does not fit.
        """
        with device.active():
            if (graph, bucket) not in self._bound:
                self._bound[graph, bucket] = self._opened(make())
            network, arena = self._bound[graph, bucket]
            stored = {
                name: narrow(inputs[name], tensor.dtype)
                for name, tensor in network.tensors.items()
                if name != network.output
            }
            shape, dtype = network.tensors[network.output]
            try:
                for name, array in stored.items():
                    arena.write(name, array, self._stream)
                network.enqueue(self._stream.handle)
                output = arena.read(network.output, shape, STORAGE[dtype], self._stream)
            finally:
                # What a network that failed was to read may not be copied yet.
                self._stream.synchronize()
        return widen(output, dtype)

    def close(self) -> None:
        """Give stream, contexts and memory back."""
        self._forget()
        self._stream.close()

    def _opened(self, network: "TensorRTNetwork") -> "tuple[TensorRTNetwork, device.Arena]":
        with ExitStack() as opened:
            arena = device.Arena({name: size(tensor) for name, tensor in network.tensors.items()})
            opened.callback(arena.close)
            if self._workspace is None or network.scratch > self._size:
                # Contexts know where the smaller one was: they are made anew when they are called again.
                self._forget()
                self._workspace = device.Arena({"workspace": network.scratch})
                self._size = network.scratch
            network.bind(arena.addresses, self._workspace.addresses["workspace"])
            opened.pop_all()
        return network, arena

    def _forget(self) -> None:
        for network, arena in self._bound.values():
            network.close()
            arena.close()
        self._bound.clear()
        if self._workspace is not None:
            self._workspace.close()
        self._workspace = None


_DTYPES: dict[str, TensorDType] = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT64": "int64"}


def _tensor(engine: "trt.ICudaEngine", name: str, batch: int) -> Tensor:
    _, *shape = engine.get_tensor_shape(name)
    return Tensor((batch, *shape), _DTYPES[engine.get_tensor_dtype(name).name])


def _is_rtx(spec: EngineSpec) -> bool:
    return spec.backend == "tensorrt-rtx"


def _check_version(folder: Path, spec: EngineSpec, found: str) -> None:
    flavour = FLAVOURS[spec.backend]
    if found != spec.library_version:
        raise EngineError(
            f"`{folder}` was built with {flavour.name} {spec.library_version} but {found} is installed: build the "
            f"engine again with `stage-rt build` or `pip install {flavour.distribution}=={spec.library_version}`"
        )


def _options(gpu: device.Gpu) -> str:
    """What to build for a GPU with."""
    known = gpu.sm in FLAVOURS["tensorrt-rtx"].targets
    return f"--backend tensorrt-rtx --target {gpu.sm}" if known else "--backend tensorrt"
