"""Noise schedule, posterior, EMA factor and branch plan of STAGE's 1000-step loop.

Everything is computed in float64. Equation numbers are the paper's; the indices are the network's:
``i = 0 .. steps - 1`` is what the UNet is handed, the paper's ``t`` is ``i + 1``.
"""

from enum import StrEnum
from functools import cached_property
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stage_rt.errors import InputError

MaskRule = Literal["cover", "authors"]
RecipeName = Literal["authors", "paper"]


class Branch(StrEnum):
    """Which mask-guidance adapter replaces the UNet's estimate at a step."""

    AWARE = "aware"
    ONLY = "only"


class StepCoefficients(NamedTuple):
    """The scalars of one iteration of the single-state loop, in the order the kernels read them.

    With ``m`` the latent mask, ``c`` the clean latent, ``n`` and ``z`` standard normal noise::

        x0 = x * sqrt_recip_abar - eps * sqrt_recipm1_abar
        M  = m + mix * (1 - m);    x0 = M * x0 + (1 - M) * c                       (AIF, Eq. 6)
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


class Recipe(BaseModel):
    """Everything about the loop that is not a network: schedule, ``t_s``, branch intervals, mask rule.

    ``only_intervals`` are inclusive ranges of network indices ``i`` handed to the anomaly-only branch.
    ``ema_stop`` is the paper's ``t_s``: from there on the EMA mask is the real mask. ``mask_rule`` says how
    the image-sized label becomes the latent mask: ``cover`` sets every cell that any labelled pixel touches,
    ``authors`` is the bilinear resize without antialiasing of the authors' code, which loses small defects.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    name: str
    steps: int = Field(default=1000, ge=2, le=1000)
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    ema_stop: int = Field(default=200, ge=1)
    only_intervals: tuple[tuple[int, int], ...]
    mask_rule: MaskRule = "cover"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ema_stop >= self.steps:
            raise ValueError(f"ema_stop {self.ema_stop} must be below steps {self.steps}")
        for low, high in self.only_intervals:
            if not 0 <= low <= high < self.steps:
                raise ValueError(f"only_intervals {low}..{high} is not a range of steps 0..{self.steps - 1}")
        return self

    @classmethod
    def authors(cls) -> Self:
        """The authors' released loop: only branch at ``i`` in 700..800 and 300..400 (202 steps)."""
        return cls(name="authors", only_intervals=((700, 800), (300, 400)))

    @classmethod
    def paper(cls) -> Self:
        """The same loop with the paper's intervals: only branch at ``i`` in 800..999 and 300..400 (301 steps)."""
        return cls(name="paper", only_intervals=((800, 999), (300, 400)))

    def named(self, name: RecipeName) -> Self:
        """This schedule and mask rule with the branch plan of a preset.

        Raises:
            InputError: the preset's intervals do not fit these steps.
        """
        preset = {"authors": type(self).authors, "paper": type(self).paper}[name]()
        if preset.steps != self.steps:
            raise InputError(
                f"recipe `{name}` is for {preset.steps} steps, this model has {self.steps}: leave `--recipe` out"
            )
        plan = {"name": name, "ema_stop": preset.ema_stop, "only_intervals": preset.only_intervals}
        return type(self)(**{**self.model_dump(), **plan})

    @cached_property
    def betas(self) -> NDArray[np.float64]:
        """``beta_i``: squares of an even spacing of the square roots, ``[steps]``."""
        return np.asarray(np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2)

    @cached_property
    def abar(self) -> NDArray[np.float64]:
        """``abar_i``, the signal variance left at level ``i``, ``[steps]`` (Eq. 1)."""
        return np.asarray(np.cumprod(1 - self.betas))

    @cached_property
    def posterior_x0(self) -> NDArray[np.float64]:
        """Weight of ``x0`` in the posterior mean, ``[steps]``; 1 at ``i = 0`` (Eq. 2)."""
        return np.asarray(np.sqrt(self._abar_before) * self.betas / (1 - self.abar))

    @cached_property
    def posterior_xt(self) -> NDArray[np.float64]:
        """Weight of ``x_t`` in the posterior mean, ``[steps]``; 0 at ``i = 0`` (Eq. 2)."""
        return np.asarray(np.sqrt(1 - self.betas) * (1 - self._abar_before) / (1 - self.abar))

    @cached_property
    def posterior_variance(self) -> NDArray[np.float64]:
        """Variance of the posterior, ``[steps]``; 0 at ``i = 0`` (Eq. 2)."""
        return np.asarray(self.betas * (1 - self._abar_before) / (1 - self.abar))

    @property
    def _abar_before(self) -> NDArray[np.float64]:
        return np.concatenate([[1.0], self.abar[:-1]])

    def zeta(self, k: int) -> float:
        """How much of the background the EMA mask lets in at ``k``, in [0, 1] (Eq. 8)."""
        return min(max((k - self.ema_stop) / (self.steps - self.ema_stop), 0.0), 1.0)

    def ema(self, i: int) -> float:
        """The EMA factor in force at iteration ``i``: ``M = M0 + ema(i) (1 - M0)``.

        It is ``zeta(i + 1)``, since the authors' loop computes the mask at the end of the iteration before.
        """
        return self.zeta(i + 1)

    def branch(self, i: int) -> Branch:
        """The branch that runs at iteration ``i``."""
        only = any(low <= i <= high for low, high in self.only_intervals)
        return Branch.ONLY if only else Branch.AWARE

    @cached_property
    def coefficients(self) -> tuple[StepCoefficients, ...]:
        """The scalars of every iteration, indexed by ``i``."""
        return tuple(self._coefficients(i) for i in range(self.steps))

    def _coefficients(self, i: int) -> StepCoefficients:
        abar, before = self.abar[i], self.abar[max(i - 1, 0)]
        only, only_next = self.branch(i) is Branch.ONLY, self.branch(i - 1) is Branch.ONLY
        ema = self.ema(i)
        return StepCoefficients(
            sqrt_recip_abar=float(1 / np.sqrt(abar)),
            sqrt_recipm1_abar=float(np.sqrt(1 / abar - 1)),
            posterior_x0=float(self.posterior_x0[i]),
            posterior_xt=float(self.posterior_xt[i]),
            sigma=float(np.sqrt(max(self.posterior_variance[i], 1e-20))) if i else 0.0,
            mix=0.0 if only else ema,
            blend=0.0 if only or only_next else ema,
            background_signal=0.0 if only_next else float(np.sqrt(before)),
            background_noise=float(np.sqrt(1 - before)),
            shared_noise=only_next,
        )
