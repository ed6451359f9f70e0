"""Samples of one batch on the device, each at a transition of its own; equal ones are the lockstep of `cuda.loop`."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.cuda import device, plan, recording
from stage_rt.cuda.plan import Kind
from stage_rt.cuda.step import Step
from stage_rt.estimator import Condition
from stage_rt.kernels.reference import Draw, guide, normal, recalled_estimate
from stage_rt.kernels.table import rows
from stage_rt.networks import DeviceBackend
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.slots import IDLE, Counters, Sampled, Tables, moved
from stage_rt.spec import ModelSpec

Float32 = NDArray[np.float32]
Notify = Callable[[str], None]


class DeviceSlots:
    """`stage_rt.slots.Slots` on the device; every buffer they will ever use is allocated here.

    A step is recorded once a kind as a CUDA graph and replayed. The device counts by itself: its counters are written
    only where the caller's differ, and it has a call's steps in hand while the host waits for the call before.
    ``closed`` is whether all was given back.

    Args:
        backend: where the networks come from.
        model: sizes of its latents.
        recipe: has the longest table there will be, and is rehearsed.
        adapter: which pair of adapters, None for the UNet's own estimate.
        size: one of the engine's batch sizes.
        kinds: what the steps may need.
        stream: what everything is launched in.
        notify: told, in one sentence, when steps are not replayed, or not to the bit.

    Raises:
        DeviceMemoryError: they do not fit.
        BackendError: a network or a kernel cannot be loaded or run.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        model: ModelSpec,
        recipe: Recipe,
        adapter: str | None,
        size: int,
        kinds: Collection[Kind],
        stream: device.Stream,
        notify: Notify,
    ) -> None:
        self.size, self._guided, self._stream = size, adapter is not None, stream
        self._tables = Tables(model, adapter, size)
        self._needed: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)] * size
        # Where samples stood before the last call, and how many steps it took.
        self._ran: tuple[Counters, int] = np.full(size, IDLE, np.int32), 1
        # Where the device's counters stand, if that is known.
        self._standing: Counters | None = None
        # Calls since all was waited for, and what was copied for the last two of them.
        self._calls = 0
        self._copying: list[list[NDArray[Any]]] = [[], []]
        self._opened, self.closed = ExitStack(), False
        with device.active(), ExitStack() as failed:
            failed.callback(self.close)
            longest = max(len(recipe.coefficients), model.recipe.steps)
            self._step = Step(backend, model, adapter, size, longest, kinds, stream)
            self._opened.callback(self._step.close)
            self._launches = recording.launches(self._step, kinds, backend, recipe, notify, self._opened)
            self._events = []
            for _ in range(2):
                self._events.append(device.Event())
                self._opened.callback(self._events[-1].close)
            failed.pop_all()

    def put(
        self,
        slot: int,
        condition: Condition,
        clean: Float32,
        mask: Float32,
        *,
        recipe: Recipe,
        noise: PhiloxNoise,
        state: Float32 | None = None,
        label: Float32 | None = None,
    ) -> int:
        """See `stage_rt.slots.Slots`."""
        self._tables.check(slot, condition, clean, mask, recipe, noise, state, label)
        at = None if state is None else state.copy()
        told = (mask if label is None else label).copy()
        return self._place(slot, condition, clean.copy(), mask.copy(), told, recipe, noise, at)

    def fill(
        self,
        condition: Condition,
        clean: Float32,
        mask: Float32,
        label: Float32,
        recipe: Recipe,
        noise: PhiloxNoise,
    ) -> Counters:
        """Place a sample in every slot at once; arrays and errors as `put`, unchecked. Returns where they begin."""
        first = self._place(0, condition, clean, mask, label, recipe, noise, None)
        return np.full(self.size, first, np.int32)

    def step(self, counters: Sequence[int] | Counters, steps: int = 1) -> Counters:
        """See `stage_rt.slots.Slots`."""
        standing = self._tables.counters(counters)
        known, self._standing = self._standing, None
        self._ran = standing.copy(), steps
        with device.active(), self._tables.moving():
            if known is None or not np.array_equal(known, standing):
                self._step.write("counter", standing)
            for kind in plan.launched(self._needed, standing.tolist(), steps):
                self._launches[kind]()
            self._mark()
        self._standing = moved(standing, steps)
        return self._standing.copy()

    def take(self, slot: int) -> Sampled:
        """See `stage_rt.slots.Slots`."""
        self._tables.taken(slot)
        return self.taken(slice(slot, slot + 1))

    def foreseen(self, slot: int) -> Float32 | None:
        """See `stage_rt.slots.Slots`; waits for the step.

        The kernel has it in registers and overwrites the state it was made from, so it is calculated back from what
        the step left behind; a step of which nobody asks costs nothing.
        """
        self._tables.taken(slot)
        standing, steps = self._ran
        if standing[slot] == IDLE:
            return None
        row = self._tables[slot][max(standing[slot] - steps + 1, 0)]
        part, branch = slice(slot, slot + 1), "only" if row.only else "aware"
        with device.active():
            left = {
                name: self._step.read(name, part) for name in ("state", "clean", "mask", "seeds", "samples")
            }
            plain = self._step.read_floats("eps", part)
            own = self._step.read_floats(branch, part) if self._guided else plain
        noise = normal(left["seeds"], left["samples"], row.timestep, Draw.POSTERIOR, plain.shape[1:])
        eps = guide(plain, own, row.guidance)
        return recalled_estimate(left["state"], eps, left["clean"], left["mask"], row, noise)

    def taken(self, part: slice) -> Sampled:
        """The states of some slots; waits for them."""
        with device.active():
            return Sampled(self._step.read("state", part), self._step.read("finite", part) != 0)

    def wait(self) -> None:
        """Wait for all that was begun."""
        with device.active():
            self._stream.synchronize()
        self._step.copying.clear()
        self._copying, self._calls = [[], []], 0

    def enqueue_networks(self, kind: Kind) -> None:
        """See `cuda.step.Step`."""
        self._step.enqueue_networks(kind)

    def close(self) -> None:
        """Wait for what is running, then give graphs, memory and networks back, in that order; only once."""
        if self.closed:
            return
        self.closed = True
        with device.active(), self._opened:
            self._stream.synchronize()

    def _place(
        self,
        first: int,
        condition: Condition,
        clean: Float32,
        mask: Float32,
        label: Float32,
        recipe: Recipe,
        noise: PhiloxNoise,
        state: Float32 | None,
    ) -> int:
        """Write all that steps read of samples from slot ``first`` on; returns their counter."""
        count, needed, step = len(clean), plan.kinds(recipe, self._guided), self._step
        x = noise.initial(clean.shape) if state is None else state
        arrays: dict[str, NDArray[Any]] = {
            "state": x,
            "sample": x,
            "clean": clean,
            "mask": mask,
            "label": label,
        }
        arrays |= {"seeds": noise.seeds, "samples": noise.samples, "finite": np.ones(count, np.uint32)}
        arrays["context"] = np.repeat(condition.context[None], count, axis=0)
        if condition.surface is not None and step.contrasts:
            arrays["surface_context"] = np.repeat(condition.surface[None], count, axis=0)
        slots = range(first, first + count)
        for slot in slots:
            self._tables[slot] = ()
            self._ran[0][slot] = IDLE
        with device.active():
            for name, array in arrays.items():
                step.write(name, array, first)
            step.write_tables([_packed(recipe)] * count, first)
        for slot in slots:
            self._tables[slot] = recipe.coefficients
            self._needed[slot] = needed
        return len(needed) - 1

    def _mark(self) -> None:
        """End a call: remember where it ends, and wait for the end of the one before it."""
        number, self._calls = self._calls, self._calls + 1
        self._copying[number % 2], self._step.copying = self._step.copying, []
        self._events[number % 2].record(self._stream)
        if number:
            self._events[1 - number % 2].synchronize()
            self._copying[1 - number % 2] = []


@lru_cache(maxsize=64)
def _packed(recipe: Recipe) -> NDArray[Any]:
    return rows(recipe.coefficients)
