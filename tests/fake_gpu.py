"""Stand-ins for the CUDA runtime and for TensorRT, so that the runtime's GPU path runs on a machine without one.

The driver keeps device memory in host memory of its own, refuses addresses it did not hand out, and does what is
enqueued on a stream only when that is synchronised. The library "deserialises" plans that hold an ONNX graph,
demands what TensorRT demands before it runs one (a profile, shapes that are those of the profile, an address for
every tensor, a workspace that is large enough), and then lets ONNX Runtime compute it from the bytes at those
addresses.

So the tests prove which calls are made in which order, on which sizes and addresses, and what becomes of the data on
its way. They do not prove that TensorRT or a GPU does what is asked of it here: only a GPU does.
"""

import ctypes
import json
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime

from stage_rt.spec import ENGINE_FILE, EngineSpec

VERSION = "9.8.7"
WORKSPACE = {"unet": 3000, "vae_decoder": 5000}
"""Bytes a graph asks for; 1000 for one that is not named."""

_MAGIC = b"PLAN"


class Status(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815


class Driver(ModuleType):
    """``cuda.bindings.runtime``, as far as `stage_rt.cuda.device` uses it."""

    cudaError_t = Status  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self, *, sm=(8, 6), devices=1, memory=2**30):
        super().__init__("cuda.bindings.runtime")
        self.sm = sm
        self.devices = devices
        self.free = memory
        self.allocations: dict[int, ctypes.Array] = {}
        self.streams: dict[int, list] = {}

    def cudaGetErrorString(self, status):  # noqa: N802
        texts = {2: b"out of memory", 100: b"no CUDA-capable device is detected"}
        return Status.cudaSuccess, texts.get(status, b"invalid argument")

    def cudaGetDevice(self):  # noqa: N802
        return (Status.cudaSuccess, 0) if self.devices else (Status.cudaErrorNoDevice, None)

    def cudaGetDeviceProperties(self, device):  # noqa: N802
        major, minor = self.sm
        properties = SimpleNamespace(name=b"Stand-in", major=major, minor=minor, totalGlobalMem=2**34)
        return Status.cudaSuccess, properties

    def cudaMalloc(self, size):  # noqa: N802
        if size > self.free:
            return Status.cudaErrorMemoryAllocation, None
        self.free -= size
        buffer = (ctypes.c_uint8 * size)()
        ctypes.memset(buffer, 0xCD, size)
        self.allocations[ctypes.addressof(buffer)] = buffer
        return Status.cudaSuccess, ctypes.addressof(buffer)

    def cudaFree(self, address):  # noqa: N802
        if address not in self.allocations:
            return (Status.cudaErrorInvalidValue,)
        self.free += len(self.allocations.pop(address))
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        handle = 1 + max(self.streams, default=0)
        self.streams[handle] = []
        return Status.cudaSuccess, handle

    def cudaStreamDestroy(self, stream):  # noqa: N802
        return (
            Status.cudaErrorInvalidValue if self.streams.pop(stream, None) is None else Status.cudaSuccess,
        )

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        for work in self.streams[stream]:
            work()
        self.streams[stream].clear()
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, destination, source, size, kind, stream):  # noqa: N802
        device = destination if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        if not self.holds(device, size):
            return (Status.cudaErrorInvalidValue,)
        if device == destination:
            # From pageable memory: the source may be gone once this returns.
            content = ctypes.string_at(source, size)
            self.streams[stream].append(lambda: ctypes.memmove(destination, content, size))
        else:
            self.streams[stream].append(lambda: ctypes.memmove(destination, source, size))
        return (Status.cudaSuccess,)

    def holds(self, address, size):
        return address in self.allocations and size <= len(self.allocations[address])


class Kind(IntEnum):
    FLOAT = 0
    HALF = 1
    INT64 = 8


_KINDS = {
    "tensor(float)": (Kind.FLOAT, np.float32),
    "tensor(float16)": (Kind.HALF, np.float16),
    "tensor(int64)": (Kind.INT64, np.int64),
}


class Logger:
    ERROR, INFO = 1, 3


class Library(ModuleType):
    """``tensorrt`` or ``tensorrt_rtx``, as far as `stage_rt.backends.tensorrt` uses it at run time."""

    ILogger = Logger
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    def __init__(self, name, driver):
        super().__init__(name)
        self.__version__ = VERSION
        self.driver = driver
        self.contexts: list[Context] = []
        self.deserialised = 0

    def Runtime(self, logger):  # noqa: N802
        def deserialise(plan):
            self.deserialised += 1
            if not plan.startswith(_MAGIC):
                logger.log(1, "magicTag does not match\nand more")
                return None
            return Plan(self, plan[len(_MAGIC) :], logger)

        return SimpleNamespace(deserialize_cuda_engine=deserialise)


class Plan:
    def __init__(self, library, content, logger):
        header, _, graph = content.partition(b"\n")
        described = json.loads(header)
        self.library, self.logger = library, logger
        self.buckets = described["batch"]
        self.device_memory_size_v2 = described["workspace"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.inputs = {node.name for node in inputs}
        self.tensors = {node.name: node for node in (*inputs, *outputs)}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_shape(self, name):
        return tuple(-1 if isinstance(size, str) else size for size in self.tensors[name].shape)

    def get_tensor_dtype(self, name):
        return _KINDS[self.tensors[name].type][0]

    def get_tensor_mode(self, name):
        return "input" if name in self.inputs else "output"

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        self.library.contexts.append(Context(self))
        return self.library.contexts[-1]


class Context:
    def __init__(self, plan):
        self.plan = plan
        self.bucket = None
        self.shapes = {}
        self.addresses = {}
        self.workspace = (0, 0)

    def set_device_memory(self, address, size):
        self.workspace = (address, size)

    def set_optimization_profile_async(self, profile, stream):
        assert stream in self.plan.library.driver.streams
        if not 0 <= profile < len(self.plan.buckets):
            return False
        self.bucket = self.plan.buckets[profile]
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        expected = tuple(self.bucket if n == -1 else n for n in self.plan.get_tensor_shape(name))
        return name in self.plan.inputs and shape == expected

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name in self.plan.tensors

    def execute_async_v3(self, stream):
        driver, plan = self.plan.library.driver, self.plan
        address, size = self.workspace
        ready = (
            self.bucket is not None
            and set(self.shapes) == plan.inputs
            and set(self.addresses) == set(plan.tensors)
            and size >= plan.device_memory_size_v2
            and address % 16 == 0
            and driver.holds(address, plan.device_memory_size_v2)
        )
        if not ready:
            plan.logger.log(1, "enqueueV3: not everything was set")
            return False
        driver.streams[stream].append(self.compute)
        return True

    def compute(self):
        feed = {name: self.array(name).copy() for name in self.plan.inputs}
        (result,) = self.plan.session.run(None, feed)
        (output,) = set(self.plan.tensors) - self.plan.inputs
        self.array(output)[...] = result

    def array(self, name):
        shape = tuple(self.bucket if n == -1 else n for n in self.plan.get_tensor_shape(name))
        dtype = np.dtype(_KINDS[self.plan.tensors[name].type][1])
        size = int(np.prod(shape)) * dtype.itemsize
        assert self.plan.library.driver.holds(self.addresses[name], size)
        buffer = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(buffer, dtype).reshape(shape)


def write_engine(folder: Path, graphs: Path, backend, batch=(1, 4), devices=("sm86", "sm89")) -> EngineSpec:
    """An engine folder of plans that `Library` reads, made of a graphs folder."""
    from stage_rt.files import digests
    from stage_rt.spec import GRAPHS_FILE, PROMPTS_FILE, GraphsSpec

    described = GraphsSpec.model_validate_json((graphs / GRAPHS_FILE).read_bytes())
    for graph in described.model.graphs:
        header = json.dumps({"batch": list(batch), "workspace": WORKSPACE.get(graph, 1000)})
        path = folder / f"{graph}.engine"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_MAGIC + header.encode() + b"\n" + (graphs / f"{graph}.onnx").read_bytes())
    (folder / PROMPTS_FILE).write_bytes((graphs / PROMPTS_FILE).read_bytes())
    spec = EngineSpec(
        model=described.model,
        backend=backend,
        library="stand-in",
        library_version=VERSION,
        devices=list(devices),
        dtype=described.dtype,
        batch=list(batch),
        graphs_fingerprint=described.fingerprint,
        workspace=5000,
        files=digests(folder),
    )
    (folder / ENGINE_FILE).write_text(spec.model_dump_json(indent=2) + "\n")
    return spec
