"""One step of a batch on the device: its buffers, its networks and the loop's own kernels, launched one by one."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from stage_rt import kernels
from stage_rt.cuda import device, plan
from stage_rt.cuda.plan import Kind
from stage_rt.errors import BackendError
from stage_rt.kernels.table import ROW
from stage_rt.networks import STORAGE, DeviceBackend, Tensor, narrow, size, widen
from stage_rt.recipe import Branch
from stage_rt.spec import UNET, ModelSpec, adapter_graph

FATBIN = "step_cuda.fatbin"


class _Closes(Protocol):
    def close(self) -> None: ...


_Closable = TypeVar("_Closable", bound=_Closes)


class Step:
    """Every buffer and network that steps of ``kinds`` will ever use is allocated here.

    ``contrasts`` is whether a prompt can be weighed against good surface. ``copying`` holds what copies to the device
    may still read; whoever has waited for them clears it.

    A step is: gather the timesteps and the adapters' masks by the counters on the device, the UNet, for good surface
    too where a prompt is weighed against it, the adapters of the branches that samples are in, the fused step, which
    selects, the counters minus one.

    Args:
        backend: where the networks come from.
        model: sizes of its latents.
        adapter: which pair of adapters, None for the UNet's own estimate.
        batch: one of the engine's batch sizes.
        rows: most transitions of a table.
        kinds: what the steps may need.
        stream: what everything is launched in.

    Raises:
        DeviceMemoryError: it does not fit.
        BackendError: a network or a kernel cannot be loaded.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        model: ModelSpec,
        adapter: str | None,
        batch: int,
        rows: int,
        kinds: Collection[Kind],
        stream: device.Stream,
    ) -> None:
        self.batch, self.rows, self.stream = batch, rows, stream
        self.shape = (batch, model.latent_channels, model.latent_size, model.latent_size)
        self.contrasts = any(Kind.SURFACE in kind for kind in kinds)
        self.copying: list[NDArray[Any]] = []
        self._opened, self._closed = ExitStack(), False
        with device.active(), ExitStack() as failed:
            failed.callback(self.close)
            self._load(backend, adapter, kinds)
            self._bind()
            self._launch = self._own_kernels()
            failed.pop_all()

    def enqueue(self, kind: Kind) -> None:
        """Launch one step kernel by kernel."""
        self._launch["gather"]()
        self.enqueue_networks(kind)
        self._launch["step"]()
        self._launch["advance"]()

    def enqueue_networks(self, kind: Kind) -> None:
        """Launch the networks of a step and what joins the UNet's two estimates: what a step costs at least."""
        handle = self.stream.handle
        if Kind.SURFACE in kind:
            self._unets["surface"].enqueue(handle)
        self._unets["eps"].enqueue(handle)
        if Kind.SURFACE in kind:
            self._launch["contrast"]()
        for branch in kind.branches:
            self._adapters[branch].enqueue(handle)

    def write(self, name: str, array: NDArray[Any], first: int = 0) -> None:
        """Enqueue a copy into a buffer from its sample ``first`` on; the array must stay as it is until then."""
        tensor = self.tensors[name]
        stored = narrow(array, tensor.dtype)
        assert stored.shape[1:] == tensor.shape[1:], (name, stored.shape, tensor.shape)
        assert first + len(stored) <= self.batch, (name, first, stored.shape)
        self.copying.append(stored)
        self._arena.write(name, stored, self.stream, first * stored[:1].nbytes)

    def write_tables(self, tables: Sequence[NDArray[Any]], first: int = 0) -> None:
        """`write` of tables of `ROW`, one a sample."""
        array = np.zeros((len(tables), self.rows), ROW)
        for whole, table in zip(array, tables, strict=True):
            whole[: len(table)] = table
        self.write("table", array.view(np.uint32), first)

    def read(self, name: str, samples: slice = slice(None)) -> NDArray[Any]:
        """Storage of some samples of a buffer, once the stream has come to it."""
        shape, dtype = self.tensors[name]
        first, stop, _ = samples.indices(self.batch)
        offset = first * (size(self.tensors[name]) // self.batch)
        return self._arena.read(name, (stop - first, *shape[1:]), STORAGE[dtype], self.stream, offset)

    def read_floats(self, name: str, samples: slice) -> NDArray[np.float32]:
        """`read` of a buffer of floats, as float32."""
        return widen(self.read(name, samples), self.tensors[name].dtype)

    def close(self) -> None:
        """Wait for what is running, then give memory and networks back; only once."""
        if self._closed:
            return
        self._closed = True
        with device.active(), self._opened:
            self.stream.synchronize()

    def _load(self, backend: DeviceBackend, adapter: str | None, kinds: Collection[Kind]) -> None:
        names = ["eps", *(["surface"] if self.contrasts else [])]
        self._unets = {name: self._closing(backend.network(UNET, self.batch)) for name in names}
        needed = {branch for kind in kinds for branch in kind.branches} if adapter is not None else set()
        self._adapters = {
            branch: self._closing(backend.network(adapter_graph(str(adapter), branch), self.batch))
            for branch in Branch
            if branch in needed
        }
        self.tensors = self._buffers()
        networks = [*self._unets.values(), *self._adapters.values()]
        sizes = {name: size(tensor) for name, tensor in self.tensors.items()}
        self._arena = self._closing(
            device.Arena(sizes | {"scratch": max(network.scratch for network in networks)})
        )

    def _closing(self, resource: _Closable) -> _Closable:
        self._opened.callback(resource.close)
        return resource

    def _buffers(self) -> dict[str, Tensor]:
        """Every array on the device, by name, a sample first; the networks' own are described by the networks."""
        batch, _, height, width = self.shape
        unet = self._unets["eps"]
        self.dtype = unet.tensors["sample"].dtype
        networks = {name: unet.tensors[name] for name in ("sample", "timestep", "context")}
        networks |= dict.fromkeys(self._unets, unet.tensors[unet.output])
        if self.contrasts:
            networks["surface_context"] = unet.tensors["context"]
        for branch, adapter in self._adapters.items():
            networks |= {"adapter_mask": adapter.tensors["mask"], branch: adapter.tensors[adapter.output]}
        mask = Tensor((batch, 1, height, width), "fp32")
        return {
            # What a step without adapters gathers nobody reads.
            "adapter_mask": mask._replace(dtype=self.dtype),
            **networks,
            "state": Tensor(self.shape, "fp32"),
            "clean": Tensor(self.shape, "fp32"),
            "mask": mask,
            "label": mask,
            "table": Tensor((batch, self.rows * ROW.itemsize // 4), "uint32"),
            "counter": Tensor((batch,), "int32"),
            "seeds": Tensor((batch,), "uint64"),
            "samples": Tensor((batch,), "uint32"),
            "finite": Tensor((batch,), "uint32"),
        }

    def _bind(self) -> None:
        at = self._arena.addresses
        for name, unet in self._unets.items():
            context = at["context" if name == "eps" else "surface_context"]
            inputs = {"sample": at["sample"], "timestep": at["timestep"], "context": context}
            unet.bind(inputs | {unet.output: at[name]}, at["scratch"])
        for branch, adapter in self._adapters.items():
            addresses = {"eps": at["eps"], "mask": at["adapter_mask"], adapter.output: at[branch]}
            adapter.bind(addresses, at["scratch"])

    def _own_kernels(self) -> dict[str, Any]:
        """How each of the loop's own kernels is launched."""
        # No sample is in a branch without an adapter: what stands in its place is not read, or is the UNet's.
        at = {branch.value: self._arena.addresses["eps"] for branch in Branch} | dict(self._arena.addresses)
        calls = _calls(at, self.shape, self.rows, self.dtype)
        types = {call.function: call.types for call in calls.values()}
        compiled = self._closing(device.Module(fatbin(), types)).kernels
        return {
            name: partial(compiled[call.function].launch, call.grid, self.stream, *call.values)
            for name, call in calls.items()
        }


_ARGUMENTS = {
    "gather": ("label", "table", "counter", "rows", "plane", "timestep", "adapter_mask"),
    "contrast": ("surface", "table", "counter", "rows", "elements", "eps"),
    "step": (
        *("state", "eps", "aware", "only", "clean", "mask", "table", "counter", "seeds", "samples"),
        *("rows", "channels", "plane", "state", "sample", "finite"),
    ),
    "advance": ("batch", "counter"),
}
"""Arguments of the kernels of step_cuda.cu in their order: buffers by name, and counts."""


class _Call(NamedTuple):
    """A kernel's name, the types of its arguments, its grid and its arguments."""

    function: str
    types: str
    grid: tuple[int, int]
    values: tuple[int, ...]


def _calls(at: Mapping[str, int], shape: tuple[int, ...], rows: int, dtype: str) -> dict[str, _Call]:
    """How the loop's own kernels are launched; ``at`` are the buffers there are."""
    batch, channels, height, width = shape
    plane, elements = height * width, channels * height * width
    counts = {"batch": batch, "channels": channels, "plane": plane, "rows": rows, "elements": elements}
    grids = {
        "gather": plan.gather_grid(batch, plane),
        "contrast": plan.step_grid(batch, elements),
        "step": plan.step_grid(batch, elements),
        "advance": plan.advance_grid(batch),
    }
    return {
        name: _Call(
            "stage_advance" if name == "advance" else f"stage_{name}_{dtype}",
            "".join("I" if each in counts else "P" for each in arguments),
            grids[name],
            tuple({**at, **counts}[each] for each in arguments),
        )
        for name, arguments in _ARGUMENTS.items()
        if name != "contrast" or "surface" in at
    }


def fatbin() -> bytes:
    """The compiled kernels.

    Raises:
        BackendError: they were not built.
    """
    for folder in kernels.__path__:
        path = Path(folder) / FATBIN
        if path.is_file():
            return path.read_bytes()
    raise BackendError(
        f"the CUDA kernels `{FATBIN}` are missing, install again where CUDA's compiler `nvcc` is found: "
        "`pip install --force-reinstall --no-deps .` in a checkout of stage-rt"
    )
