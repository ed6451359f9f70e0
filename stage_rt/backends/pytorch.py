"""PyTorch as a backend: an engine for any CUDA GPU that has PyTorch beside it.

Of ``inductor`` the networks were compiled ahead of time; of ``torch`` they are calls of PyTorch's own kernels, which
the loop records. These two alone need PyTorch at run time; it is imported when such an engine is opened. What
AOTInductor compiled is native code, so its hash is checked before it is loaded (`stage_rt.loading.open_backend`).
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from stage_rt import extras
from stage_rt.backends.packages import free, opened, package, weights
from stage_rt.batches import padded, parts
from stage_rt.cuda import device
from stage_rt.errors import BackendError, DeviceMemoryError, EngineError, first_line
from stage_rt.folders import verify_again
from stage_rt.networks import Tensor, TensorDType, narrow, tensors
from stage_rt.spec import EngineSpec

LIBRARY = "torch"
CPU = "cpu"

_TYPES: dict[TensorDType, tuple[str, str]] = {
    "fp32": ("float32", "<f4"),
    "fp16": ("float16", "<f2"),
    "bf16": ("bfloat16", "<i2"),
    "int64": ("int64", "<i8"),
}
"""Of a tensor: PyTorch's dtype, and how CUDA's array interface, which has no bf16, writes one of its size."""


def library() -> Any:
    """The module ``torch``.

    Raises:
        MissingExtraError: it is not installed.
    """
    return extras.library(LIBRARY, "this engine needs PyTorch", "export")


class PyTorchBackend:
    """Graphs at fixed batch sizes, with one copy of the weights on the device for all of them.

    Raises:
        EngineError: the engine is for another version of PyTorch or another GPU.
        DeviceError: it is for a GPU and there is none.
        MissingExtraError: PyTorch or PyCUDA is not installed.
    """

    def __init__(self, folder: Path, spec: EngineSpec) -> None:
        self._torch = library()
        self._folder, self._spec = folder, spec
        found = release(self._torch.__version__)
        if found != spec.library_version:
            raise EngineError(
                f"`{folder}` was built with PyTorch {spec.library_version} but {found} is installed: build the "
                f"engine again with `stage-rt build` or `pip install torch=={spec.library_version}`"
            )
        self._device = CPU if spec.devices == [CPU] else "cuda"
        if self._device != CPU:
            device.require(folder, spec.devices, lambda gpu: f"--backend {spec.backend}")
        self._weights: dict[str, dict[str, Any]] = {}
        self._runners: dict[tuple[str, int], Any] = {}
        self._pool: Any = None

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `stage_rt.networks.Backend`; any batch is split and padded to the sizes of the graph."""
        described, _ = tensors(self._spec.model, self._spec.dtype, graph, 1)
        count, results = len(next(iter(inputs.values()))), []
        for part in parts(count, self._sizes(graph)):
            rows = slice(part.start, part.start + part.length)
            feed = {
                name: self._tensor(padded(inputs[name][rows], part.bucket), tensor.dtype)
                for name, tensor in described.items()
            }
            with _running(self._torch, graph), self._torch.inference_mode():
                result = self._runner(graph, part.bucket)(**feed)
                results.append(result[: part.length].float().cpu().numpy())
        return np.concatenate(results)

    def network(self, graph: str, batch: int) -> "PyTorchNetwork":
        """See `stage_rt.networks.DeviceBackend`."""
        described, output = tensors(self._spec.model, self._spec.dtype, graph, batch)
        return PyTorchNetwork(self._torch, graph, self._runner(graph, batch), described, output)

    def recording(self) -> AbstractContextManager[Any]:
        """See `stage_rt.networks.DeviceBackend`.

        A pool of PyTorch's allocator, which does not hand its memory to others, not even what an attempt that failed
        has left in it. PyTorch does not let a capture that has begun enter one.
        """
        if self._pool is None:
            self._pool = self._torch.cuda.MemPool()
        pool: AbstractContextManager[Any] = self._torch.cuda.use_mem_pool(self._pool)
        return pool

    def forget_recorded(self) -> None:
        """See `stage_rt.networks.DeviceBackend`."""
        if self._pool is not None:
            self._pool = None
            # What a pool that is gone had reserved PyTorch keeps until then.
            self._torch.cuda.empty_cache()

    def close(self) -> None:
        """Drop every loaded graph, the weights and what recorded graphs have allocated."""
        self._runners.clear()
        self._pool = None
        if self._device != CPU:
            for held in self._weights.values():
                free(held)
            # PyTorch keeps what it freed for itself, and the next engine may be another library's.
            self._torch.cuda.empty_cache()
        self._weights.clear()

    def _sizes(self, graph: str) -> list[int]:
        sizes = [size for size in self._spec.batch if package(graph, size) in self._spec.files]
        if not sizes:
            raise EngineError(
                f"`{self._folder}` holds no `{graph}`: build the engine again with `stage-rt build`"
            )
        return sizes

    def _runner(self, graph: str, batch: int) -> Any:
        if (graph, batch) not in self._runners:
            path = self._folder / package(graph, batch)
            verify_again(self._folder, self._spec, [package(graph, batch)])
            with _running(self._torch, graph):
                self._runners[graph, batch] = opened(
                    self._torch, path, self._constants(graph), self._spec.backend
                )
                if self._device != CPU:
                    # The weights are laid out in PyTorch's own stream, for which the loop's do not wait.
                    self._torch.cuda.synchronize()
        return self._runners[graph, batch]

    def _constants(self, graph: str) -> dict[str, Any]:
        if graph not in self._weights:
            path = self._folder / weights(graph)
            verify_again(self._folder, self._spec, [weights(graph)])
            try:
                self._weights[graph] = import_module("safetensors.torch").load_file(path, device=self._device)
            except (OSError, SafetensorError) as error:
                raise EngineError(
                    f"`{path}` cannot be read ({error}): build the engine again with `stage-rt build`"
                ) from error
        return self._weights[graph]

    def _tensor(self, array: NDArray[Any], dtype: TensorDType) -> Any:
        stored = narrow(array, dtype)
        tensor = self._torch.from_numpy(stored.view(np.int16) if dtype == "bf16" else stored)
        if dtype == "bf16":
            tensor = tensor.view(self._torch.bfloat16)
        return tensor.to(self._device)


class PyTorchNetwork:
    """One network on device memory; see `stage_rt.networks.DeviceNetwork`."""

    scratch = 0

    def __init__(
        self,
        torch: Any,
        graph: str,
        runner: Any,
        inputs: Mapping[str, Tensor],
        output: tuple[str, Tensor],
    ) -> None:
        self._torch, self._graph, self._runner = torch, graph, runner
        self._names = list(inputs)
        self.output = output[0]
        self.tensors = {**inputs, self.output: output[1]}
        self._bound: dict[str, Any] = {}

    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        """See `stage_rt.networks.DeviceNetwork`."""
        with _running(self._torch, self._graph):
            self._bound = {
                name: _at(self._torch, addresses[name], tensor) for name, tensor in self.tensors.items()
            }

    def enqueue(self, stream: int) -> None:
        """See `stage_rt.networks.DeviceNetwork`."""
        cuda = self._torch.cuda
        inputs = {name: self._bound[name] for name in self._names}
        with (
            _running(self._torch, self._graph),
            cuda.stream(cuda.ExternalStream(stream)),
            self._torch.inference_mode(),
        ):
            self._bound[self.output].copy_(self._runner(**inputs))

    def close(self) -> None:
        """Forget the memory it was bound to, and the weights."""
        self._bound.clear()
        self._runner = None


@contextmanager
def exact(torch: Any) -> Iterator[None]:
    """A block in which convolutions of float32 are computed in float32.

    By default cuDNN rounds what goes into them to TF32, eleven bits, which is off by more than parity allows.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


@contextmanager
def _running(torch: Any, graph: str) -> Iterator[None]:
    """A block in which graphs run; PyTorch's errors become ours, with the name of the graph.

    What was compiled ahead of time gives an error no type: that memory ran out is known by the allocator's count.
    What CUDA and its libraries take beside the allocator, as a workspace, is known by what they say.
    """
    before = _times_full(torch)
    try:
        with exact(torch):
            yield
    except RuntimeError as error:
        counted = isinstance(error, torch.OutOfMemoryError) or _times_full(torch) > before
        if counted or device.says_full(first_line(error)):
            raise DeviceMemoryError(f"the GPU's memory is full in graph `{graph}`") from error
        raise BackendError(f"PyTorch failed in graph `{graph}`: {first_line(error)}") from error


def _times_full(torch: Any) -> int:
    return int(torch.cuda.memory_stats_as_nested_dict().get("num_ooms", 0))


class _Address:
    """Device memory as CUDA's array interface describes it."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": kind,
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _at(torch: Any, address: int, tensor: Tensor) -> Any:
    name, kind = _TYPES[tensor.dtype]
    view = torch.as_tensor(_Address(address, tensor.shape, kind), device="cuda").view(getattr(torch, name))
    if view.data_ptr() != address:
        raise BackendError("PyTorch copied the device memory it was to share, as it does for another GPU's")
    return view


def release(version: str) -> str:
    """A version of PyTorch without what names its build: ``2.13.0+cu130`` to ``2.13.0``."""
    return version.partition("+")[0]
