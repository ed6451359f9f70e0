"""A stand-in for TensorRT on the GPU of `mock_cuda`, so that the runtime's GPU path runs on a machine without one.

The library "deserialises" plans that hold an ONNX graph, demands what TensorRT demands before it runs one (a
profile, shapes that are those of the profile, an address for every tensor, a workspace that is large enough), and
then lets ONNX Runtime compute it from the bytes at those addresses.

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
from mock_cuda import Machine

from stage_rt.spec import ENGINE_FILE, EngineSpec

VERSION = "9.8.7"
WORKSPACE = {"unet": 3000, "vae_decoder": 5000}
"""Bytes a graph asks for; 1000 for one that is not named."""

_MAGIC = b"PLAN"


class Driver(Machine):
    """A GPU of NumPy that a TensorRT engine finds itself on."""

    def __init__(self, kernels=None):
        super().__init__(kernels)
        self.name, self.sm, self.total = "Stand-in", (8, 6), 2**34

    @property
    def left(self):
        return self.memory - self.used

    @left.setter
    def left(self, size):
        self.memory = self.used + size

    def holds(self, address, size):
        return any(
            start <= address and address + size <= start + len(block) for start, block in self.blocks.items()
        )


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
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

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
        self.get_device_memory_size_for_profile_v2 = lambda profile: self.device_memory_size_v2
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

    def create_runtime_config(self):
        assert self.library.__name__ == "tensorrt_rtx"
        return RuntimeConfig()

    def create_execution_context(self, wanted):
        if self.library.__name__ == "tensorrt_rtx":
            assert wanted.complete, (
                "TensorRT-RTX would choose the memory, or change kernels in the middle of a run"
            )
            wanted.cache.compile(self)
        else:
            assert wanted == "user managed"
        self.library.contexts.append(Context(self))
        return self.library.contexts[-1]


class RuntimeConfig:
    """How TensorRT-RTX shall run an engine."""

    def __init__(self):
        self.strategy = self.cache = self.dynamic_shapes_kernel_specialization_strategy = None

    @property
    def complete(self):
        specialised = self.dynamic_shapes_kernel_specialization_strategy == "eager"
        return self.strategy == "user managed" and specialised and self.cache is not None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class RuntimeCache:
    """Kernels that were compiled; ``taken`` tells how often those of another process were enough."""

    compiled = taken = 0

    def __init__(self):
        self.content = b""

    def deserialize(self, blob):
        self.content = bytes(blob)
        return True

    def serialize(self):
        return self.content

    def compile(self, plan):
        kernels = b"kernels of " + ",".join(sorted(plan.tensors)).encode()
        if self.content == kernels:
            RuntimeCache.taken += 1
        else:
            RuntimeCache.compiled += 1
            self.content = kernels


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
        assert stream in self.plan.library.driver.queues
        if not 0 <= profile < len(self.plan.buckets):
            return False
        self.bucket = self.plan.buckets[profile]
        # What was enough for another profile need not be for this one.
        self.workspace = (0, 0)
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
        driver.enqueue(stream, "network", self.compute)
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
    (folder / ENGINE_FILE).write_text(spec.sealed())
    return spec
