"""Networks as the runtime sees them: tensors and how NumPy stores them, and what a backend and its graphs can do."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stage_rt.names import DType
from stage_rt.spec import UNET, VAE_DECODER, VAE_ENCODER, ModelSpec, is_foreground

TensorDType = Literal["fp32", "fp16", "bf16", "int32", "int64", "uint32", "uint64"]


class Tensor(NamedTuple):
    """An input or output of a graph on a device: C-contiguous."""

    shape: tuple[int, ...]
    dtype: TensorDType


STORAGE: dict[TensorDType, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
}
"""How NumPy holds a dtype: bf16, which it lacks, as the upper halves of float32 in uint16."""


TOLERANCE: dict[DType, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Largest error allowed, relative to the largest value of the reference.

float32 differs by the order of its sums, some 1e-6. In fp16 and bf16 every weight is off by up to 2**-11 and
2**-9 of itself; random as that is, it grows with the depth of the network rather than cancels, to 1e-3 and 1e-2
in the networks measured. A wrong graph is off by a tenth and more.
"""


def narrow(array: NDArray[Any], dtype: TensorDType) -> NDArray[Any]:
    """``array`` as C-contiguous storage of ``dtype``; floats are float32 and rounded to nearest, ties to even."""
    if dtype != "bf16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=STORAGE[dtype])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )
    # Rounding could carry a NaN's payload into its sign.
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)


def widen(array: NDArray[Any], dtype: TensorDType) -> NDArray[np.float32]:
    """Storage of a float dtype as float32, exactly."""
    if dtype != "bf16":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return int(np.prod(tensor.shape)) * STORAGE[tensor.dtype].itemsize


def tensors(
    model: ModelSpec, dtype: DType, graph: str, batch: int
) -> tuple[dict[str, Tensor], tuple[str, Tensor]]:
    """A graph's inputs in their order, by name, and its output, at a batch size; floats of ``dtype``."""
    latent = Tensor((batch, model.latent_channels, model.latent_size, model.latent_size), dtype)
    image = Tensor((batch, model.image_channels, model.image_size, model.image_size), dtype)
    if graph == UNET:
        context = Tensor((batch, model.tokens, model.context_dim), dtype)
        return {"sample": latent, "timestep": Tensor((batch,), "int64"), "context": context}, ("eps", latent)
    if graph == VAE_ENCODER:
        _, channels, *size = latent.shape
        return {"image": image}, ("moments", Tensor((batch, 2 * channels, *size), dtype))
    if graph == VAE_DECODER:
        return {"latent": latent}, ("image", image)
    mask = Tensor((batch, 1, model.latent_size, model.latent_size), dtype)
    if is_foreground(graph):
        timestep = Tensor((batch,), "int64")
        return {"sample": latent, "timestep": timestep, "mask": mask}, ("foreground", latent)
    return {"eps": latent, "mask": mask}, ("guided", latent)


class Backend(Protocol):
    """The graphs of one engine folder, ready to run."""

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run a graph, named without suffix as in `stage_rt.spec`.

        Args:
            graph: its name.
            inputs: arrays by the names of the graph's inputs; floats are cast to the engine's dtype.

        Returns:
            Its output, as float32.

        Raises:
            BackendError: the library failed.
        """

    def close(self) -> None:
        """Give the library's memory back; the backend cannot be used afterwards."""


class DeviceNetwork(Protocol):
    """One graph at one batch size, working on device memory that it was told of once."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its inputs and its output, by name."""

    @property
    def output(self) -> str:
        """Name of the output."""

    @property
    def scratch(self) -> int:
        """Bytes of device memory it needs while it runs; networks that take turns may share them."""

    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        """Fix the addresses of every tensor, by name, and of the scratch memory; all aligned to 256 bytes.

        Raises:
            BackendError: the library refuses one of them.
        """

    def enqueue(self, stream: int) -> None:
        """Launch the graph in the stream of that address and return at once.

        From the third call on nothing is allocated or waited for, so that a CUDA graph can record it.

        Raises:
            BackendError: the library failed.
            DeviceMemoryError: the device's memory is full.
        """

    def close(self) -> None:
        """Give its memory back."""


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend whose graphs run where CUDA's streams and addresses are known."""

    def network(self, graph: str, batch: int) -> DeviceNetwork:
        """A graph at one of the engine's batch sizes, for its caller alone; weights are shared.

        Raises:
            BackendError: the library cannot load it.
            DeviceMemoryError: the device's memory is full.
        """

    def recording(self) -> AbstractContextManager[Any]:
        """A block in which steps are rehearsed and recorded: what the library allocates in it stays until
        `forget_recorded` or `close`.

        It is entered before a capture begins and left after it has ended. What was recorded in such blocks runs in
        one stream, so it may share that memory.
        """

    def forget_recorded(self) -> None:
        """Give back what was allocated in `recording`, of which nothing may run any more; again it may be used."""
