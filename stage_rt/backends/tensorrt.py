"""TensorRT and TensorRT-RTX on a GPU: one runtime for both flavours."""

from collections import deque
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.cuda import device
from stage_rt.errors import BackendError, DeviceError, EngineError, InputError, MissingExtraError
from stage_rt.spec import BackendName, EngineSpec

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
        errors = [text for is_error, text in self.lines if is_error]
        return errors[-1].strip().partition("\n")[0] if errors else "it gave no reason"


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


class TensorRTBackend:
    """The graphs of an engine folder, loaded onto the GPU; they take turns in one workspace.

    Raises:
        EngineError: the engine is for another version of the library or for other GPUs.
        DeviceError: there is no GPU.
        MissingExtraError: the library or ``cuda-bindings`` is not installed.
        BackendError: the library cannot load a graph, or the GPU's memory is too small for it.
    """

    def __init__(self, folder: Path, spec: EngineSpec) -> None:
        self._trt = library(spec.backend)
        _check_version(folder, spec, self._trt.__version__)
        _check_gpu(folder, spec)
        self._name = FLAVOURS[spec.backend].name
        self._journal, logger = journal(spec.backend)
        self._runtime: trt.Runtime = self._trt.Runtime(logger)
        self._buckets = sorted(spec.batch)
        self._stream = device.Stream()
        self._owned: list[device.Stream | device.Memory] = [self._stream]
        self._networks: dict[str, _Network] = {}
        try:
            self._networks = {graph: self._load(folder / f"{graph}{SUFFIX}") for graph in spec.model.graphs}
            # One allocation serves all of them: no two graphs run at once.
            workspace = self._allocate(max(network.workspace for network in self._networks.values()))
        except BaseException:
            self.close()
            raise
        for network in self._networks.values():
            network.share(workspace)

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `stage_rt.backends.Backend`; a batch is padded to the next size the engine was built for.

        Raises:
            InputError: the batch is larger than the largest of them.
        """
        network = self._networks[graph]
        count = max(len(inputs[name]) for name in network.batched)
        bucket = next((size for size in self._buckets if size >= count), None)
        if bucket is None:
            raise InputError(
                f"a batch of {count} is more than the {self._buckets[-1]} the engine was built for: split it or "
                f"build the engine with `--batch {count}`"
            )
        profile = self._buckets.index(bucket)
        self._journal.lines.clear()
        try:
            enqueued = network.run(profile, bucket, inputs, self._stream)
            output = network.output(bucket, self._stream)
        except BackendError as error:
            raise BackendError(f"{self._name} failed in graph `{graph}`: {error}") from error
        if not enqueued:
            raise BackendError(f"{self._name} failed in graph `{graph}`: {self._journal.error()}")
        return output[:count]

    def close(self) -> None:
        """Free the GPU's memory."""
        self._networks.clear()
        while self._owned:
            self._owned.pop().close()

    def _load(self, path: Path) -> "_Network":
        self._journal.lines.clear()
        engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BackendError(f"{self._name} cannot load `{path}`: {self._journal.error()}")
        return _Network(self._trt, engine, self._buckets, self._allocate)

    def _allocate(self, size: int) -> device.Memory:
        memory = device.Memory(size)
        self._owned.append(memory)
        return memory


class _Network:
    """One graph: a context for every bucket, made when it is first needed, and buffers for the largest."""

    def __init__(self, trt: Any, engine: "trt.ICudaEngine", buckets: list[int], allocate: Any) -> None:
        self._trt = trt
        self._engine = engine
        self._contexts: dict[int, trt.IExecutionContext] = {}
        self.workspace = int(engine.device_memory_size_v2)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        self._types = {name: engine.get_tensor_dtype(name).name for name in names}
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self._output,) = set(names) - set(self._inputs)
        # All but the timestep have the batch in front of other axes.
        self.batched = [name for name in self._inputs if len(self._shapes[name]) > 1]
        self._memory = {name: allocate(self._bytes(name, max(buckets))) for name in names}

    def share(self, workspace: device.Memory) -> None:
        """Say where intermediate results may lie."""
        self._workspace = workspace

    def run(self, profile: int, bucket: int, inputs: dict[str, NDArray[Any]], stream: device.Stream) -> bool:
        """Enqueue the graph on inputs padded to ``bucket``; whether the library took it."""
        context = self._context(profile, bucket, stream)
        for name in self._inputs:
            array = _as(inputs[name], self._types[name])
            if name in self.batched:
                # Copies of the last sample: what a network makes of zeros, no one has tested.
                rows = np.minimum(np.arange(bucket), len(array) - 1)
                array = np.ascontiguousarray(array[rows])
            self._memory[name].write(array, stream)
        return bool(context.execute_async_v3(stream.handle))

    def output(self, bucket: int, stream: device.Stream) -> NDArray[np.float32]:
        """What the graph made of ``bucket`` samples, once it is done."""
        shape = self._shape(self._output, bucket)
        kind = self._types[self._output]
        return _from(self._memory[self._output].read(shape, _STORED[kind], stream), kind)

    def _context(self, profile: int, bucket: int, stream: device.Stream) -> "trt.IExecutionContext":
        if profile not in self._contexts:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
            if context is None:
                raise BackendError(f"there is no GPU memory left for a batch of {bucket}: use a smaller one")
            context.set_device_memory(self._workspace.address, self._workspace.size)
            bound = [context.set_optimization_profile_async(profile, stream.handle)]
            bound += [context.set_input_shape(name, self._shape(name, bucket)) for name in self._inputs]
            bound += [
                context.set_tensor_address(name, memory.address) for name, memory in self._memory.items()
            ]
            if not all(bound):
                raise BackendError(
                    f"the engine has no profile for a batch of {bucket}: build it again with `stage-rt build`"
                )
            self._contexts[profile] = context
        return self._contexts[profile]

    def _shape(self, name: str, bucket: int) -> tuple[int, ...]:
        shape = self._shapes[name]
        return (bucket, *shape[1:]) if len(shape) > 1 else shape

    def _bytes(self, name: str, bucket: int) -> int:
        return int(np.prod(self._shape(name, bucket))) * _STORED[self._types[name]].itemsize


def _check_version(folder: Path, spec: EngineSpec, found: str) -> None:
    flavour = FLAVOURS[spec.backend]
    if found != spec.library_version:
        raise EngineError(
            f"`{folder}` was built with {flavour.name} {spec.library_version} but {found} is installed: build the "
            f"engine again with `stage-rt build` or `pip install {flavour.distribution}=={spec.library_version}`"
        )


def _check_gpu(folder: Path, spec: EngineSpec) -> None:
    try:
        gpu = device.current()
    except DeviceError as error:
        raise DeviceError(
            f"`{folder}` is an engine for {', '.join(spec.devices)} but {error}: run it on such a machine or build "
            "one with `--backend onnxruntime`"
        ) from error
    if gpu.sm not in spec.devices:
        known = gpu.sm in FLAVOURS["tensorrt-rtx"].targets
        options = f"--backend tensorrt-rtx --target {gpu.sm}" if known else "--backend tensorrt"
        raise EngineError(
            f"`{folder}` is an engine for {', '.join(spec.devices)} but the GPU here is {gpu.sm} ({gpu.name}): "
            f"build one with `stage-rt build {options}`"
        )


_STORED: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "INT64": np.dtype(np.int64),
}
"""How tensors of a TensorRT data type lie in NumPy arrays, which have no bfloat16."""


def _as(array: NDArray[Any], kind: str) -> NDArray[Any]:
    if kind == "BF16":
        return _to_bfloat16(array)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=_STORED[kind])


def _from(array: NDArray[Any], kind: str) -> NDArray[np.float32]:
    if kind == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def _to_bfloat16(array: NDArray[Any]) -> NDArray[np.uint16]:
    """The upper halves of float32 words, rounded to nearest even; a NaN stays one."""
    exact = np.ascontiguousarray(array, dtype=np.float32)
    words = exact.view(np.uint32)
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(exact), np.uint16(0x7FC0), (rounded >> np.uint32(16)).astype(np.uint16))
