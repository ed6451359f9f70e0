"""Noise levels of a diffusion model and the posterior between them, in float64.

Indices are the network's: ``i = 0 .. steps - 1`` is what the UNet is handed, the paper's ``t`` is ``i + 1``. A
schedule is a way down these levels: at each it calls the network once, then goes to the next lower one, from the
last to the clean latent.
"""

import heapq
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import InputError

Float64 = NDArray[np.float64]

FEWEST_CALLS = 10
"""Below this many network calls even the largest part of a defect does not form (FAST, arXiv:2509.20295, Table 5)."""


class Schedule:
    """The levels a sampler visits, ascending, and what Eq. 1 and 2 say of them.

    ``timesteps`` intp ``[K]`` are their network indices and ``abar`` float64 ``[K]`` the signal variance left at
    each. Transition ``k`` goes from level ``k`` to level ``k - 1``; transition 0 goes to the clean latent.
    """

    def __init__(self, training_betas: Float64, timesteps: Sequence[int] | None = None) -> None:
        """``training_betas`` float64 ``[steps]`` are those the network was trained with, ``timesteps`` all if None.

        Raises:
            InputError: ``timesteps`` is empty, does not rise or leaves the levels.
        """
        levels = range(len(training_betas)) if timesteps is None else timesteps
        self.timesteps: NDArray[np.intp] = np.array(levels, dtype=np.intp)
        rising = len(self.timesteps) and self.timesteps[0] >= 0 and (np.diff(self.timesteps) > 0).all()
        if not rising or self.timesteps[-1] >= len(training_betas):
            raise InputError(f"`timesteps` must rise within 0 and {len(training_betas) - 1}")
        self._training_betas = training_betas
        self.abar: Float64 = np.cumprod(1 - training_betas, dtype=np.float64)[self.timesteps]

    @classmethod
    def scaled_linear(cls, steps: int, beta_start: float, beta_end: float) -> "Schedule":
        """The latent-diffusion schedule: every level, betas the squares of an even spacing of the square roots."""
        return cls(np.asarray(np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2))

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def targets(self) -> NDArray[np.intp]:
        """Network index of the level each transition goes to, ``[K]``; -1 is the clean latent."""
        return np.concatenate([[-1], self.timesteps[:-1]]).astype(np.intp)

    @cached_property
    def abar_before(self) -> Float64:
        """``abar`` of the level each transition goes to, ``[K]``; 1 for the clean latent."""
        return np.concatenate([[1.0], self.abar[:-1]])

    @cached_property
    def betas(self) -> Float64:
        """Share of the variance a transition takes back, ``[K]``: the training's own where it is a single step.

        ``1 - abar / abar_before`` is the same number but for rounding, which would change the plain loop's bits.
        """
        single = self.timesteps - self.targets == 1
        return np.where(single, self._training_betas[self.timesteps], 1 - self.abar / self.abar_before)

    @cached_property
    def posterior_x0(self) -> Float64:
        """Weight of ``x0`` in the posterior mean, ``[K]``; 1 at the last transition (Eq. 2)."""
        return np.asarray(np.sqrt(self.abar_before) * self.betas / (1 - self.abar))

    @cached_property
    def posterior_xt(self) -> Float64:
        """Weight of ``x_t`` in the posterior mean, ``[K]``; 0 at the last transition (Eq. 2)."""
        return np.asarray(np.sqrt(1 - self.betas) * (1 - self.abar_before) / (1 - self.abar))

    @cached_property
    def posterior_variance(self) -> Float64:
        """Variance of the posterior, ``[K]``; 0 at the last transition (Eq. 2)."""
        return np.asarray(self.betas * (1 - self.abar_before) / (1 - self.abar))

    def at(self, timesteps: Sequence[int]) -> "Schedule":
        """The same levels visited at ``timesteps`` only, ascending network indices.

        For a fixed ``x0`` the posterior of a longer transition is the composition of the posteriors of its single
        steps, so that nothing but the estimate of ``x0`` is refreshed less often (DDIM with eta 1: Song et al.,
        ICLR 2021, Eq. 12 and 16).

        Raises:
            InputError: they do not rise, or one is no level.
        """
        return Schedule(self._training_betas, timesteps)

    def respaced(self, calls: int, edges: Collection[int] = ()) -> "Schedule":
        """``calls`` of the training's levels, spread evenly between those that must be among them.

        These are ``edges``, the highest level, and the two lowest: the end is walked in single steps.

        Raises:
            InputError: ``calls`` is more than the levels there are, or fewer than those that must be among them.
        """
        last = len(self._training_betas) - 1
        fixed = sorted({0, 1, last, *edges})
        if not len(fixed) <= calls <= last + 1:
            raise InputError(
                f"a schedule with these edges has between {len(fixed)} and {last + 1} steps: {calls} are asked for"
            )
        return self.at(_spread(fixed, calls))


def _spread(fixed: Sequence[int], count: int) -> list[int]:
    """``count`` integers with ``fixed`` among them, the largest gap as small as it can be."""
    gaps = [(float(low - high), low, high, 1) for low, high in pairwise(fixed)]
    heapq.heapify(gaps)
    for _ in range(count - len(fixed)):
        _, low, high, parts = gaps[0]
        heapq.heapreplace(gaps, ((low - high) / (parts + 1), low, high, parts + 1))
    return sorted(
        {
            round(low + (high - low) * part / parts)
            for _, low, high, parts in gaps
            for part in range(parts + 1)
        }
    )
