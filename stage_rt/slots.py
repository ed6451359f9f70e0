"""A batch whose samples stand at transitions of their own: what an executor offers, and how the host does it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stage_rt import kernels
from stage_rt.errors import InputError
from stage_rt.estimator import Condition, Estimator
from stage_rt.kernels.reference import clean_estimate
from stage_rt.networks import Backend
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe, StepCoefficients
from stage_rt.sampler import check_inputs
from stage_rt.spec import ModelSpec

Float32 = NDArray[np.float32]
Counters = NDArray[np.int32]

IDLE = -1
"""The counter of a slot that a step leaves alone."""


class Sampled(NamedTuple):
    """Float32 ``[B, C, h, w]`` and bool ``[B]``, False for a sample that was not finite at every step."""

    latent: Float32
    finite: NDArray[np.bool_]


class Slots(Protocol):
    """A batch of a fixed size, for samples that come and go, all with one pair of adapters or none.

    A slot holds one sample, with a table of its own (`Recipe.coefficients`), so that recipes, prompts and numbers of
    steps may differ. The caller keeps the counters: a sample's is the row of its table whose turn it is, which begins
    at what `put` returns and goes down by one a step; a sample is done behind row 0. A slot whose counter is `IDLE`,
    because it is empty, done or held back, stays as it is. Networks are called with all slots every time, so the bits
    of a sample depend on the size, and not on who is beside it or where they stand.
    """

    @property
    def size(self) -> int:
        """How many slots there are."""

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
        """Place a sample in a slot, whose last one is forgotten.

        Args:
            slot: its number.
            condition: the sample's prompt; its adapters are those of the slots.
            clean: latent of the good image, ``[1, C, h, w]``.
            mask: ``[1, 1, h, w]``, 0 or 1.
            recipe: schedule, branch plan and guidances.
            noise: the stream of this one sample.
            state: where the sample stands, if not at its beginning: a latent that `take` gave. The caller then knows
                its counter.
            label: what the adapters are handed in place of ``mask`` (`stage_rt.sampler.sample`).

        Returns:
            The counter of its first transition.

        Raises:
            InputError: there is no such slot, or the sample does not fit the model or the slots.
        """

    def step(self, counters: Sequence[int] | Counters, steps: int = 1) -> Counters:
        """Move every sample down its table, ``steps`` rows or to its end; those at `IDLE` are not touched.

        A device is left to work: the call returns when what the call before it began is done.

        Returns:
            The counters afterwards, int32 ``[size]``; `IDLE` for what is done.

        Raises:
            InputError: they are not one a slot, or one is no row of its slot's table.
            BackendError, DeviceMemoryError: the inference library or the device failed. Nobody knows then where the
                samples stand, so that all slots are empty.
        """

    def take(self, slot: int) -> Sampled:
        """The state of a slot's sample, a batch of one; waits for it. It stays where it is.

        Raises:
            InputError: the slot is empty.
        """

    def foreseen(self, slot: int) -> Float32 | None:
        """What the last step of a slot's sample took its end to be: the estimate of ``x0``, ``[1, C, h, w]``.

        It is on the way to the result from the first steps on and costs no network, so a preview is decoded from it.
        None before a sample's first step in this slot. A device gives it for the samples that its last step moved,
        and beyond the mask, where nothing is painted, the clean latent.

        Raises:
            InputError: the slot is empty.
        """

    def close(self) -> None:
        """Give memory and networks back."""


class Tables:
    """The table of every slot, none where it is empty, and what may be asked of it."""

    def __init__(self, model: ModelSpec, adapter: str | None, size: int) -> None:
        self._model, self._adapter = model, adapter
        self._latent = (1, model.latent_channels, model.latent_size, model.latent_size)
        self._rows: list[tuple[StepCoefficients, ...]] = [()] * size

    def __getitem__(self, slot: int) -> tuple[StepCoefficients, ...]:
        return self._rows[slot]

    def __setitem__(self, slot: int, rows: tuple[StepCoefficients, ...]) -> None:
        self._rows[slot] = rows

    def check(
        self,
        slot: int,
        condition: Condition,
        clean: Float32,
        mask: Float32,
        recipe: Recipe,
        noise: PhiloxNoise,
        state: Float32 | None,
        label: Float32 | None,
    ) -> None:
        """Refuse a sample as `Slots.put` says."""
        self._check(slot)
        check_inputs(clean, mask, label)
        self._model.check(recipe)
        for name, array in (("clean", clean), ("state", clean if state is None else state)):
            if array.shape != self._latent or array.dtype != np.float32:
                raise InputError(
                    f"`{name}` must be float32 of shape {self._latent}, got {array.dtype} {array.shape}"
                )
        if len(noise.seeds) != 1:
            raise InputError(f"`noise` must be the stream of one sample, not of {len(noise.seeds)}")
        if condition.adapter != self._adapter:
            raise InputError(
                f"slots for adapters `{self._adapter}` were handed a prompt of `{condition.adapter}`: samples of one "
                "batch share a pair of adapters"
            )
        if recipe.solver != "ancestral":
            raise InputError(
                f"solver `{recipe.solver}` keeps a history, for which slots have no room: use `ancestral` there"
            )
        if recipe.steps != self._model.recipe.steps:
            raise InputError(
                f"the recipe is for {recipe.steps} steps, this model has {self._model.recipe.steps}: use its own"
            )

    @contextmanager
    def moving(self) -> Iterator[None]:
        """A block that moves samples; if it fails, all slots are empty."""
        try:
            yield
        except BaseException:
            self._rows = [()] * len(self._rows)
            raise

    def taken(self, slot: int) -> None:
        """Raise `InputError` unless a slot holds a sample."""
        self._check(slot)
        if not self._rows[slot]:
            raise InputError(f"slot {slot} is empty: `put` a sample into it")

    def counters(self, counters: Sequence[int] | Counters) -> Counters:
        """``counters`` as an array; raises `InputError` where a slot has no such row."""
        array = np.array(counters, np.int32)
        if array.shape != (len(self._rows),):
            raise InputError(f"`counters` must be one a slot, {len(self._rows)}, got shape {array.shape}")
        for slot, (counter, rows) in enumerate(zip(array.tolist(), self._rows, strict=True)):
            if not IDLE <= counter < len(rows):
                raise InputError(f"slot {slot} has no transition {counter}: its sample has {len(rows)}")
        return array

    def _check(self, slot: int) -> None:
        if not 0 <= slot < len(self._rows):
            raise InputError(f"there is no slot {slot}: they are 0 to {len(self._rows) - 1}")


def moved(counters: Counters, steps: int) -> Counters:
    """Where counters stand ``steps`` later."""
    return np.where(counters == IDLE, IDLE, np.maximum(counters - steps, IDLE)).astype(np.int32)


class HostSlots:
    """`Slots` that call a backend's graphs one by one."""

    def __init__(self, backend: Backend, model: ModelSpec, adapter: str | None, size: int) -> None:
        self.size = size
        self._estimate = Estimator(backend, adapter)
        self._tables = Tables(model, adapter, size)
        latent = (size, model.latent_channels, model.latent_size, model.latent_size)
        self._state, self._clean = np.zeros(latent, np.float32), np.zeros(latent, np.float32)
        self._mask = np.zeros((size, 1, *latent[2:]), np.float32)
        self._label = np.zeros_like(self._mask)
        self._contexts = np.zeros((size, model.tokens, model.context_dim), np.float32)
        self._surfaces = np.zeros_like(self._contexts)
        self._seeds, self._samples = np.zeros(size, np.uint64), np.zeros(size, np.uint32)
        self._finite = np.ones(size, np.bool_)
        # Of every slot's last step, for whoever asks what it foresees.
        self._before, self._noise = np.zeros_like(self._state), np.zeros_like(self._state)
        self._last: list[StepCoefficients | None] = [None] * size

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
        """See `Slots`."""
        self._tables.check(slot, condition, clean, mask, recipe, noise, state, label)
        self._tables[slot] = recipe.coefficients
        self._state[slot] = (noise.initial(clean.shape) if state is None else state)[0]
        self._clean[slot], self._mask[slot] = clean[0], mask[0]
        self._label[slot] = (mask if label is None else label)[0]
        self._contexts[slot] = condition.context
        if condition.surface is not None:
            self._surfaces[slot] = condition.surface
        self._seeds[slot], self._samples[slot] = noise.seeds[0], noise.samples[0]
        self._finite[slot], self._last[slot] = True, None
        return len(recipe.coefficients) - 1

    def step(self, counters: Sequence[int] | Counters, steps: int = 1) -> Counters:
        """See `Slots`."""
        standing = self._tables.counters(counters)
        with self._tables.moving():
            for _ in range(steps):
                running = standing != IDLE
                if not running.any():
                    break
                self._step(standing, running)
                standing = moved(standing, 1)
        return standing

    def take(self, slot: int) -> Sampled:
        """See `Slots`."""
        self._tables.taken(slot)
        part = slice(slot, slot + 1)
        return Sampled(self._state[part].copy(), self._finite[part].copy())

    def foreseen(self, slot: int) -> Float32 | None:
        """See `Slots`."""
        self._tables.taken(slot)
        row, part = self._last[slot], slice(slot, slot + 1)
        if row is None:
            return None
        return clean_estimate(self._before[part], self._noise[part], self._clean[part], self._mask[part], row)

    def close(self) -> None:
        """See `Slots`; the networks are the executor's."""

    def _step(self, counters: Counters, running: NDArray[np.bool_]) -> None:
        """One transition of the samples that are running."""
        # Slots at rest do as one that runs, so that no network is called for them.
        first = int(np.flatnonzero(running)[0])
        rest = self._tables[first][counters[first]]
        rows = [self._tables[n][counters[n]] if run else rest for n, run in enumerate(running.tolist())]
        soft = self._label + _column([c.mix for c in rows]) * (1 - self._label)
        eps = self._estimate(
            self._state,
            np.array([c.timestep for c in rows], np.int64),
            soft,
            contexts=self._contexts,
            surfaces=self._surfaces,
            only=np.array([c.only for c in rows]),
            guidance=np.array([c.guidance for c in rows], np.float32),
            prompt_guidance=np.array([c.prompt_guidance for c in rows], np.float32),
        )
        estimate = np.ascontiguousarray(eps, dtype=np.float32)
        following, finite = kernels.fused_step(
            self._state, estimate, self._clean, self._mask, rows, self._seeds, self._samples
        )
        self._before[running], self._noise[running] = self._state[running], estimate[running]
        for slot in np.flatnonzero(running).tolist():
            self._last[slot] = rows[slot]
        self._state[running] = following[running]
        self._finite[running] &= finite[running]


def _column(numbers: Sequence[float]) -> Float32:
    return np.array(numbers, np.float32)[:, None, None, None]
