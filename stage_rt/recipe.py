"""STAGE's loop but for its networks: which branch runs when, the EMA factor, and the scalars of every step.

Everything is computed in float64. Equation numbers are the paper's; the indices are the network's:
``i = 0 .. steps - 1`` is what the UNet is handed, the paper's ``t`` is ``i + 1``.
"""

from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stage_rt.errors import InputError
from stage_rt.names import MaskRule, RecipeName, SolverName
from stage_rt.schedule import FEWEST_CALLS, Schedule
from stage_rt.solvers import Drawn, extrapolations, weights


class Branch(StrEnum):
    """Which mask-guidance adapter replaces the UNet's estimate at a step."""

    AWARE = "aware"
    ONLY = "only"


class StepCoefficients(NamedTuple):
    """One transition of the single-state loop: a row of the table that the kernels read, field by field.

    With ``m`` the latent mask, ``c`` the clean latent, ``n`` and ``z`` standard normal noise of ``timestep``::

        x0 = x * sqrt_recip_abar - eps * sqrt_recipm1_abar
        M  = m + max(mix, free) * (1 - m);    x0 = M * x0 + (1 - M) * c            (AIF, Eq. 6)
        y  = posterior_x0 * x0 + posterior_xt * x + sigma * z                      (Eq. 2)
        Q  = m + blend * (1 - m)
        x' = Q * y + (1 - Q) * (background_signal * c + background_noise * n)      (Eq. 7)
    """

    sqrt_recip_abar: float
    sqrt_recipm1_abar: float
    posterior_x0: float
    posterior_xt: float
    sigma: float
    mix: float
    blend: float
    background_signal: float
    background_noise: float
    shared_noise: bool
    """True when ``n`` is the mask draw: one channel, broadcast to all latent channels."""
    timestep: int
    """What the networks are handed, and the address of the draws (`stage_rt.noise`)."""
    guidance: float = 1.0
    """Weight of the adapter's estimate against the UNet's (`kernels.reference.guide`); ``eps`` is the result."""
    free: float = 0.0
    """1 where the estimate is not mixed with the clean latent, which leaves AIF out."""
    only: bool = False
    """True where the adapter is that of the only branch."""
    prompt_guidance: float = 1.0
    """Weight of the UNet's estimate for the prompt against that for good surface (`kernels.reference.guide`)."""


class Recipe(BaseModel):
    """Everything about the loop that is not a network: schedule, ``t_s``, branch intervals, mask rule.

    ``steps`` levels were trained, between ``beta_start`` and ``beta_end``; the loop visits ``calls`` of them, all if
    None. ``only_intervals`` are inclusive ranges of network indices ``i`` handed to the anomaly-only branch.
    ``ema_stop`` is the paper's ``t_s``: from there on the EMA mask is the real mask. ``mask_rule`` says how
    the image-sized label becomes the latent mask: ``cover`` sets every cell that any labelled pixel touches,
    ``authors`` is the bilinear resize without antialiasing of the authors' code, which loses small defects.
    ``guidance`` moves the UNet's estimate that many times as far as the adapter does; 1 is the authors' loop, 0 does
    without adapters. ``prompt_guidance`` moves the UNet's estimate for good surface that many times as far as the
    prompt does (classifier-free guidance, Ho and Salimans, 2022), at a second UNet call a step. Without ``aif`` the
    estimate is not mixed with the clean latent (Eq. 6), without ``blended`` the noised photograph is not laid around
    the mask (Eq. 7), without ``soft_mask`` the mask is the real one from the beginning (Eq. 8): parts of the paper's
    ablation. ``solver`` is how a transition is made (`stage_rt.solvers`);
    ``ancestral`` is the authors' way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    name: str
    steps: int = Field(default=1000, ge=2, le=1000)
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    ema_stop: int = Field(default=200, ge=1)
    only_intervals: tuple[tuple[int, int], ...]
    mask_rule: MaskRule = "cover"
    # Left out of the JSON where it says nothing, so that digests of older descriptions stay what they are.
    calls: int | None = Field(default=None, exclude_if=lambda calls: calls is None)
    guidance: float = Field(
        default=1.0, ge=0, le=20, allow_inf_nan=False, exclude_if=lambda weight: weight == 1
    )
    prompt_guidance: float = Field(
        default=1.0, ge=0, le=20, allow_inf_nan=False, exclude_if=lambda weight: weight == 1
    )
    aif: bool = Field(default=True, exclude_if=lambda mixed: mixed)
    blended: bool = Field(default=True, exclude_if=lambda blended: blended)
    soft_mask: bool = Field(default=True, exclude_if=lambda soft: soft)
    solver: SolverName = Field(default="ancestral", exclude_if=lambda solver: solver == "ancestral")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ema_stop >= self.steps:
            raise ValueError(f"ema_stop {self.ema_stop} must be below steps {self.steps}")
        for low, high in self.only_intervals:
            if not 0 <= low <= high < self.steps:
                raise ValueError(f"only_intervals {low}..{high} is not a range of steps 0..{self.steps - 1}")
        fewest = self.fewest_calls
        if self.calls is not None and not fewest <= self.calls <= self.steps:
            raise ValueError(f"calls {self.calls} must be between {fewest} and {self.steps}")
        if not self.aif and not self.blended:
            raise ValueError("one of aif and blended must keep what is around the mask")
        return self

    @classmethod
    def authors(cls) -> Self:
        """The authors' released loop: only branch at ``i`` in 700..800 and 300..400 (202 steps)."""
        return cls(name="authors", only_intervals=((700, 800), (300, 400)))

    @classmethod
    def paper(cls) -> Self:
        """The same loop with the paper's intervals: only branch at ``i`` in 800..999 and 300..400 (301 steps)."""
        return cls(name="paper", only_intervals=((800, 999), (300, 400)))

    @classmethod
    def masked(cls) -> Self:
        """The loop that fills its mask: only branch at ``i`` in 300..999 (700 steps), adapter guidance 2.

        Not of the paper. Where a small model leaves half of a label unpainted, this fills it (docs/labels.md).
        """
        return cls(name="masked", only_intervals=((300, 999),), guidance=2.0)

    @classmethod
    def fast(cls) -> Self:
        """The schedule of FAST, whose sampler has one branch and no use for the rest of a recipe."""
        return cls(name="fast", only_intervals=())

    @classmethod
    def ablated(cls, name: RecipeName) -> Self:
        """The paper's ablation (Fig. 5 and 6): the baseline with one part of the method, or with all.

        ``baseline`` is the UNet alone in a loop that blends the noised photograph in around the mask at every step
        (Eq. 7 with a hard mask, as RePaint does). ``+mga`` adds the adapters; ``+aif`` mixes the estimate with the
        clean latent (Eq. 6) in place of that blend, under which with a hard mask nothing of the mixing would be left;
        ``+gd`` adds the only branch (Algorithm 1), ``+ema`` the mask that hardens (Eq. 8). ``full`` is the authors'
        loop, which mixes and blends.
        """
        full = cls.authors()
        if name == "full":
            return full._with(name=name)
        return full._with(
            name=name,
            guidance=float(name == "+mga"),
            aif=name == "+aif",
            blended=name != "+aif",
            only_intervals=full.only_intervals if name == "+gd" else (),
            soft_mask=name == "+ema",
        )

    def named(self, name: RecipeName) -> Self:
        """This schedule and mask rule with the branch plan and the guidance of a preset.

        Raises:
            InputError: the preset's intervals do not fit these steps.
        """
        own = {"authors": type(self).authors, "paper": type(self).paper, "masked": type(self).masked}
        preset = own[name]() if name in own else type(self).ablated(name)
        if preset.steps != self.steps:
            raise InputError(
                f"recipe `{name}` is for {preset.steps} steps, this model has {self.steps}: leave `--recipe` out"
            )
        return self._with(
            name=name,
            ema_stop=preset.ema_stop,
            only_intervals=preset.only_intervals,
            guidance=preset.guidance,
            aif=preset.aif,
            blended=preset.blended,
            soft_mask=preset.soft_mask,
        )

    def guided(self, weight: float) -> Self:
        """The same loop with another guidance.

        Raises:
            InputError: ``weight`` is not a number from 0 to 20.
        """
        return self._weighed("guidance", weight)

    def contrasted(self, weight: float) -> Self:
        """The same loop with another guidance by the prompt against good surface.

        Raises:
            InputError: ``weight`` is not a number from 0 to 20.
        """
        return self._weighed("prompt_guidance", weight)

    def solved(self, solver: SolverName) -> Self:
        """The same loop with another solver."""
        return self._with(solver=solver)

    def respaced(self, calls: int) -> Self:
        """The same loop in ``calls`` network calls; all ``steps`` of them are the loop itself.

        Raises:
            InputError: they are more than the steps, or fewer than the loop needs.
        """
        if not self.fewest_calls <= calls <= self.steps:
            raise InputError(f"`steps` must be between {self.fewest_calls} and {self.steps}, not {calls}")
        return self._with(calls=None if calls == self.steps else calls)

    @property
    def fewest_calls(self) -> int:
        """The fewest network calls the loop makes sense with."""
        return min(max(FEWEST_CALLS, len({0, 1, self.steps - 1, *self.edges})), self.steps)

    @property
    def edges(self) -> frozenset[int]:
        """Network indices of the levels between two branches, and of the one from which the EMA mask is the real one.

        No transition may go from above one of them to below it.
        """
        ends = {self.ema_stop - 1}
        for low, high in self.only_intervals:
            ends |= {low - 1, high}
        return frozenset(ends - {-1})

    @cached_property
    def levels(self) -> Schedule:
        """Every level the network was trained at."""
        return Schedule.scaled_linear(self.steps, self.beta_start, self.beta_end)

    @cached_property
    def schedule(self) -> Schedule:
        """The levels the loop visits."""
        return self.levels if self.calls is None else self.levels.respaced(self.calls, self.edges)

    def zeta(self, k: int) -> float:
        """How much of the background the EMA mask lets in at ``k``, in [0, 1] (Eq. 8)."""
        return min(max((k - self.ema_stop) / (self.steps - self.ema_stop), 0.0), 1.0)

    def ema(self, i: int) -> float:
        """The EMA factor in force at iteration ``i``: ``M = M0 + ema(i) (1 - M0)``.

        It is ``zeta(i + 1)``, since the authors' loop computes the mask at the end of the iteration before.
        """
        return self.zeta(i + 1) if self.soft_mask else 0.0

    def branch(self, i: int) -> Branch:
        """The branch that runs at iteration ``i``."""
        only = any(low <= i <= high for low, high in self.only_intervals)
        return Branch.ONLY if only else Branch.AWARE

    @cached_property
    def coefficients(self) -> tuple[StepCoefficients, ...]:
        """The scalars of every transition of ``schedule``, the last one of the loop first."""
        return self.table(self.schedule)

    @cached_property
    def extrapolations(self) -> tuple[Drawn, ...]:
        """How far the solver draws on at every transition, in the order of ``coefficients``."""
        only = np.array([self.branch(i) is Branch.ONLY for i in self.schedule.timesteps.tolist()])
        return extrapolations(self.solver, self.schedule, only)

    def table(self, schedule: Schedule) -> tuple[StepCoefficients, ...]:
        """The scalars of every transition of a schedule over these levels, the last one of the loop first.

        A transition over several levels stands for their single steps: EMA factor, background and branch that runs
        next are those of its last one.

        Raises:
            InputError: a transition goes from above one of ``edges`` to below it.
        """
        for i, target in zip(schedule.timesteps.tolist(), schedule.targets.tolist(), strict=True):
            if crossed := sorted(edge for edge in self.edges if target < edge < i):
                raise InputError(
                    f"the step from level {i} to {target} crosses level {crossed[0]}, where recipe `{self.name}` "
                    "changes: put that level into the schedule"
                )
        return tuple(self._coefficients(schedule, k) for k in range(len(schedule)))

    def _coefficients(self, schedule: Schedule, k: int) -> StepCoefficients:
        i, target, abar = int(schedule.timesteps[k]), int(schedule.targets[k]), schedule.abar[k]
        background = self.levels.abar[max(target, 0)]
        only, only_next = self.branch(i) is Branch.ONLY, self.branch(target) is Branch.ONLY
        ema = self.ema(target + 1)
        solver = weights(self.solver, schedule, k)
        return StepCoefficients(
            sqrt_recip_abar=float(1 / np.sqrt(abar)),
            sqrt_recipm1_abar=float(np.sqrt(1 / abar - 1)),
            posterior_x0=solver.x0,
            posterior_xt=solver.xt,
            sigma=solver.sigma,
            mix=0.0 if only else ema,
            blend=1.0 if not self.blended else 0.0 if only or only_next else ema,
            background_signal=0.0 if only_next else float(np.sqrt(background)),
            background_noise=float(np.sqrt(1 - background)),
            shared_noise=only_next,
            timestep=i,
            guidance=self.guidance,
            free=float(not self.aif),
            only=only,
            prompt_guidance=self.prompt_guidance,
        )

    def _weighed(self, field: str, weight: float) -> Self:
        if not 0 <= weight <= 20:
            raise InputError(f"`{field}` must be between 0 and 20, not {weight}")
        return self._with(**{field: weight})

    def _with(self, **changes: Any) -> Self:
        # Not `model_copy`, which would keep the tables of this one.
        return type(self)(**(self.model_dump() | changes))
