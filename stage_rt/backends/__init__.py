"""Inference libraries, one file each; `open_backend` imports the one an engine was built for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import EngineError
from stage_rt.files import verify
from stage_rt.spec import ENGINE_FILE, UNET, VAE_DECODER, VAE_ENCODER, EngineSpec

__all__ = ["Backend", "DeviceBackend", "DeviceNetwork", "Tensor", "TensorDType", "open_backend", "tensors"]

TensorDType = Literal["fp32", "fp16", "bf16", "int32", "int64", "uint32", "uint64"]


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


class Tensor(NamedTuple):
    """An input or output of a graph on a device: C-contiguous."""

    shape: tuple[int, ...]
    dtype: TensorDType


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


def open_backend(folder: Path, spec: EngineSpec) -> Backend:
    """Open the engine in ``folder``; its files and the library are checked before the library reads anything.

    Raises:
        EngineError: a file was changed, or the engine is for another version of the library or another GPU.
        DeviceError: the engine needs a GPU and there is none.
        MissingExtraError: the library is not installed.
    """
    verify(folder, spec.files, ENGINE_FILE, EngineError, "build the engine again with `stage-rt build`")
    if spec.backend == "onnxruntime":
        from stage_rt.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(folder, spec)
    if spec.backend == "inductor":
        from stage_rt.backends.inductor import InductorBackend

        return InductorBackend(folder, spec)
    from stage_rt.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(folder, spec)


def tensors(spec: EngineSpec, graph: str, batch: int) -> tuple[dict[str, Tensor], tuple[str, Tensor]]:
    """A graph's inputs in their order, by name, and its output, at a batch size; floats in the engine's dtype."""
    model, dtype = spec.model, spec.dtype
    latent = Tensor((batch, model.latent_channels, model.latent_size, model.latent_size), dtype)
    image = Tensor((batch, model.image_channels, model.image_size, model.image_size), dtype)
    if graph == UNET:
        context = Tensor((batch, model.tokens, model.context_dim), dtype)
        return {"sample": latent, "timestep": Tensor((1,), "int64"), "context": context}, ("eps", latent)
    if graph == VAE_ENCODER:
        _, channels, *size = latent.shape
        return {"image": image}, ("moments", Tensor((batch, 2 * channels, *size), dtype))
    if graph == VAE_DECODER:
        return {"latent": latent}, ("image", image)
    mask = Tensor((batch, 1, model.latent_size, model.latent_size), dtype)
    return {"eps": latent, "mask": mask}, ("guided", latent)
