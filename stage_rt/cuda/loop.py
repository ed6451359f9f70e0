"""The sampling loop on the device: nothing is allocated, copied or waited for between the first step and the last."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from stage_rt import batches, kernels
from stage_rt.cuda import device, graphs, plan, replay
from stage_rt.errors import BackendError, DeviceMemoryError
from stage_rt.kernels.table import ROW, rows
from stage_rt.networks import STORAGE, DeviceBackend, DeviceNetwork, Tensor, narrow, size, widen
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress, silent
from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import UNET, ModelSpec, adapter_graph

Float32 = NDArray[np.float32]
Notify = Callable[[str], None]

FATBIN = "step_cuda.fatbin"

_WARM_UPS = 2
"""Runs before a recording; libraries allocate and choose kernels in them."""


class _Closes(Protocol):
    def close(self) -> None: ...


_Closable = TypeVar("_Closable", bound=_Closes)


class Sampled(NamedTuple):
    """Float32 ``[B, C, h, w]`` and bool ``[B]``, False for a sample that was not finite at every step."""

    latent: Float32
    finite: NDArray[np.bool_]


class Loop:
    """The loop at one batch size with one pair of adapters; every buffer it will ever use is allocated here.

    A step is: gather the timestep and the adapter's mask by a counter on the device, the UNet, the adapter of the
    branch, the fused step, the counter minus one. It is recorded once a branch as a CUDA graph and replayed. A
    recording that fails, or whose replay gives something else than running the step, is told of and not used.

    Args:
        backend: where the networks come from.
        model: sizes of its latents.
        recipe: schedule and branch plan.
        adapter: which pair of adapters.
        batch: one of the engine's batch sizes.
        stream: what everything is launched in.
        notify: told, in one sentence, when steps are not replayed, or not to the bit.

    Raises:
        DeviceMemoryError: it does not fit.
        BackendError: a network or a kernel cannot be loaded or run.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        model: ModelSpec,
        recipe: Recipe,
        adapter: str,
        batch: int,
        stream: device.Stream,
        notify: Notify,
    ) -> None:
        self._backend, self._recipe, self._stream, self._batch = backend, recipe, stream, batch
        self._shape = (batch, model.latent_channels, model.latent_size, model.latent_size)
        self._branches = plan.branches(self._recipe)
        self._opened, self._closed = ExitStack(), False
        self._in_flight: list[NDArray[Any]] = []
        with device.active(), ExitStack() as failed:
            failed.callback(self.close)
            self._load(adapter)
            self._launches = self._record(notify)
            self._events = [self._closing(device.Event()), self._closing(device.Event())]
            failed.pop_all()

    def run(
        self,
        clean: Float32,
        mask: Float32,
        context: Float32,
        noise: PhiloxNoise,
        progress: Progress = silent,
    ) -> Sampled:
        """Sample up to ``batch`` latents (`stage_rt.sampler.sample`).

        Args:
            clean: float32 ``[B, C, h, w]``.
            mask: float32 ``[B, 1, h, w]``, 0 or 1.
            context: float32 ``[tokens, dim]``, the same for every sample.
            noise: the streams of the B samples.
            progress: told the share of the steps that are done, every `plan.PROGRESS_STEPS` steps.

        Raises:
            BackendError, DeviceMemoryError: the device failed.
        """
        count = len(clean)
        with device.active():
            try:
                self._start(noise.initial(clean.shape), clean, mask, context, noise)
                self._steps(progress)
            finally:
                # Whatever went wrong, the buffers are free again only once the device is done with them.
                self._stream.synchronize()
            state, finite = self._read("state"), self._read("finite")
        return Sampled(state[:count], finite[:count] != 0)

    def close(self) -> None:
        """Wait for what is running, then give graphs, memory and networks back, in that order; only once."""
        if self._closed:
            return
        self._closed = True
        with device.active(), self._opened:
            self._stream.synchronize()

    def enqueue(self, branch: Branch) -> None:
        """Launch one step kernel by kernel."""
        self._kernels["gather"]()
        self.enqueue_networks(branch)
        self._kernels["step"]()
        self._kernels["advance"]()

    def enqueue_networks(self, branch: Branch) -> None:
        """Launch the UNet and an adapter and nothing else: what a step costs at least."""
        self._unet.enqueue(self._stream.handle)
        self._adapters[branch].enqueue(self._stream.handle)

    def replay(self, branch: Branch) -> None:
        """Launch one step as `run` does."""
        self._launches[branch]()

    def rewind(self, row: int) -> None:
        """Make the transition of that row of `Recipe.coefficients` the next step."""
        self._write("counter", np.array([row], np.int32))
        self._stream.synchronize()
        self._in_flight.clear()

    def _load(self, adapter: str) -> None:
        self._unet = self._closing(self._backend.network(UNET, self._batch))
        self._adapters = {
            branch: self._closing(self._backend.network(adapter_graph(adapter, branch), self._batch))
            for branch in self._branches
        }
        networks = [self._unet, *self._adapters.values()]
        self._tensors = self._buffers(next(iter(self._adapters.values())))
        sizes = {name: size(tensor) for name, tensor in self._tensors.items()}
        sizes["scratch"] = max(network.scratch for network in networks)
        self._arena = self._closing(
            device.Arena(sizes | {"table": len(self._recipe.coefficients) * ROW.itemsize})
        )
        self._bind()
        calls = _own_kernels(self._arena.addresses, self._shape, self._dtype)
        types = {call.function: call.types for call in calls.values()}
        compiled = self._closing(device.Module(_fatbin(), types)).kernels
        self._kernels = {
            name: partial(compiled[call.function].launch, call.grid, self._stream, *call.values)
            for name, call in calls.items()
        }
        table = rows(self._recipe.coefficients)
        self._arena.write("table", table, self._stream)
        self._stream.synchronize()

    def _closing(self, resource: _Closable) -> _Closable:
        self._opened.callback(resource.close)
        return resource

    def _buffers(self, adapter: DeviceNetwork) -> dict[str, Tensor]:
        """Every array on the device, by name; the networks' own are described by the networks."""
        batch, _, height, width = self._shape
        self._dtype = self._unet.tensors["sample"].dtype
        return {
            "sample": self._unet.tensors["sample"],
            "timestep": self._unet.tensors["timestep"],
            "context": self._unet.tensors["context"],
            "eps": self._unet.tensors[self._unet.output],
            "adapter_mask": adapter.tensors["mask"],
            "guided": adapter.tensors[adapter.output],
            "state": Tensor(self._shape, "fp32"),
            "clean": Tensor(self._shape, "fp32"),
            "mask": Tensor((batch, 1, height, width), "fp32"),
            "counter": Tensor((1,), "int32"),
            "seeds": Tensor((batch,), "uint64"),
            "samples": Tensor((batch,), "uint32"),
            "finite": Tensor((batch,), "uint32"),
        }

    def _bind(self) -> None:
        at = self._arena.addresses
        inputs = {name: at[name] for name in ("sample", "timestep", "context")}
        self._unet.bind(inputs | {self._unet.output: at["eps"]}, at["scratch"])
        for adapter in self._adapters.values():
            addresses = {"eps": at["eps"], "mask": at["adapter_mask"], adapter.output: at["guided"]}
            adapter.bind(addresses, at["scratch"])

    def _record(self, notify: Notify) -> dict[Branch, Callable[[], None]]:
        """How each branch's step is launched."""
        try:
            recorded = {branch: self._recorded(branch, row) for branch, row in self._branches.items()}
        except DeviceMemoryError:
            raise
        except BackendError as error:
            notify(f"the loop runs kernel by kernel, which is slower, as it could not be recorded: {error}")
            return {branch: partial(self.enqueue, branch) for branch in self._branches}
        found = {branch: self._check(branch, graph) for branch, graph in recorded.items()}
        wrong = [text for right, text in found.values() if not right]
        if wrong:
            notify(f"the loop runs kernel by kernel, which is slower, as {wrong[0]}")
            return {branch: partial(self.enqueue, branch) for branch in recorded}
        for _, text in found.values():
            if text:
                notify(f"images of one seed are alike and not equal here, as {text}")
        return {branch: graph.launch for branch, graph in recorded.items()}

    def _check(self, branch: Branch, graph: graphs.Graph) -> tuple[bool, str]:
        """Whether a recorded step may be replayed, and how it differs from running it, nothing for not at all."""
        # Not at the row that was recorded, where a number of the host that has been recorded would be right.
        row = plan.rows(self._recipe)[branch][-1]
        replayed = self._after(graph.launch, row)
        apart = replay.difference(replayed, self._after(partial(self.enqueue, branch), row))
        allowed = replay.TOLERANCE[self._dtype]
        told = f"the recorded step of branch `{branch}` differs from running it by {apart:.1e} of its largest value"
        return apart <= allowed, f"{told}, where {allowed:.1e} is allowed" if apart else ""

    def _recorded(self, branch: Branch, row: int) -> graphs.Graph:
        with self._backend.recording():
            for _ in range(_WARM_UPS):
                self._rehearse(row)
                self.enqueue(branch)
            self._stream.synchronize()
            return self._closing(graphs.capture(self._stream.handle, partial(self.enqueue, branch)))

    def _after(self, launch: Callable[[], None], row: int) -> dict[str, NDArray[Any]]:
        """All that a step leaves behind that is rehearsed at a row."""
        self._rehearse(row)
        launch()
        self._stream.synchronize()
        left = {name: self._read(name) for name in ("state", "sample", "guided", "counter", "finite")}
        return {name: self._plain(name, array) for name, array in left.items()}

    def _plain(self, name: str, stored: NDArray[Any]) -> NDArray[Any]:
        dtype = self._tensors[name].dtype
        return widen(stored, dtype) if dtype == "bf16" else stored

    def _rehearse(self, row: int) -> None:
        """Inputs like those of a run, at the transition of ``row``."""
        noise = PhiloxNoise(range(self._batch))
        x, clean = noise.initial(self._shape), noise.encode(self._shape)
        mask = (clean[:, :1] > 0).astype(np.float32)
        tokens, width = self._tensors["context"].shape[1:]
        context = noise.initial((self._batch, tokens, width))[0]
        self._start(x, clean, mask, context, noise, row)

    def _start(
        self,
        x: Float32,
        clean: Float32,
        mask: Float32,
        context: Float32,
        noise: PhiloxNoise,
        row: int | None = None,
    ) -> None:
        """Fill every buffer the first step reads; what is over in the batch is never looked at."""
        for name, array in (("state", x), ("clean", clean), ("mask", mask), ("sample", x)):
            self._write(name, batches.padded(array, self._batch))
        self._write("context", np.repeat(context[None], self._batch, axis=0))
        self._write("seeds", batches.padded(noise.seeds, self._batch))
        self._write("samples", batches.padded(noise.samples, self._batch))
        self._write("finite", np.ones(self._batch, np.uint32))
        self.rewind(len(self._recipe.coefficients) - 1 if row is None else row)

    def _steps(self, progress: Progress) -> None:
        """Launch every step; the device always has a stretch in hand while the host waits for the one before."""
        waiting: tuple[device.Event, float] | None = None
        for number, stretch in enumerate(plan.stretches(self._recipe)):
            for branch in stretch.branches:
                self._launches[branch]()
            event = self._events[number % 2]
            event.record(self._stream)
            if waiting is not None:
                _wait(*waiting, progress)
            waiting = event, stretch.done
        assert waiting is not None
        _wait(*waiting, progress)

    def _write(self, name: str, array: NDArray[Any]) -> None:
        tensor = self._tensors[name]
        stored = narrow(array, tensor.dtype)
        assert stored.shape == tensor.shape, (name, stored.shape, tensor.shape)
        self._arena.write(name, stored, self._stream)
        self._in_flight.append(stored)

    def _read(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        return self._arena.read(name, tensor.shape, STORAGE[tensor.dtype], self._stream)


def _wait(event: device.Event, done: float, progress: Progress) -> None:
    event.synchronize()
    progress(done)


_ARGUMENTS = {
    "gather": ("mask", "table", "counter", "cells", "timestep", "adapter_mask"),
    "step": (
        *("state", "eps", "guided", "clean", "mask", "table", "counter", "seeds", "samples"),
        *("channels", "plane", "state", "sample", "finite"),
    ),
    "advance": ("counter",),
}
"""Arguments of the kernels of step_cuda.cu in their order: buffers by name, and counts."""


class _Launch(NamedTuple):
    """A kernel's name, the types of its arguments, its grid and its arguments."""

    function: str
    types: str
    grid: tuple[int, int]
    values: tuple[int, ...]


def _own_kernels(at: Mapping[str, int], shape: tuple[int, ...], dtype: str) -> dict[str, _Launch]:
    """How the loop's own kernels are launched: `stage_gather_*`, `stage_step_*`, `stage_advance`."""
    batch, channels, height, width = shape
    plane = height * width
    values = {**at, "channels": channels, "plane": plane, "cells": batch * plane}
    grids = {
        "gather": plan.gather_grid(batch * plane),
        "step": plan.step_grid(batch, channels * plane),
        "advance": (1, 1),
    }
    functions = {name: f"stage_{name}_{dtype}" for name in ("gather", "step")} | {"advance": "stage_advance"}
    return {
        name: _Launch(
            functions[name],
            "".join("P" if each in at else "I" for each in arguments),
            grids[name],
            tuple(values[each] for each in arguments),
        )
        for name, arguments in _ARGUMENTS.items()
    }


def _fatbin() -> bytes:
    for folder in kernels.__path__:
        path = Path(folder) / FATBIN
        if path.is_file():
            return path.read_bytes()
    raise BackendError(
        f"the CUDA kernels `{FATBIN}` are missing, install again where CUDA's compiler `nvcc` is found: "
        "`pip install --force-reinstall --no-deps stage-rt`"
    )
