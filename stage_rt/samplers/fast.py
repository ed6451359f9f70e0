"""FAST's sampler (Xu et al., "FAST", NeurIPS 2025, arXiv:2509.20295)."""

import math
from collections.abc import Callable

import numpy as np

from stage_rt.noise import NoiseSource
from stage_rt.recipe import Recipe
from stage_rt.sampler import Callback, Denoiser, check_inputs
from stage_rt.samplers.unguided import Array, estimate, with_background, x0_of
from stage_rt.schedule import Schedule
from stage_rt.solvers import Weights, weights

STEPS = 50
SINGLE = 2
"""Transitions at the end that are single steps, without the foreground network."""
MIDDLE = (0.25, 0.75)
"""Between these shares of the schedule the released code puts the background back."""

Foreground = Callable[[Array, int, Array], Array]
"""``foreground(x, i, mask) -> x0``: FARM, which foresees the clean latent under the mask, ``[B, C, h, w]``."""


def fast(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    steps: int,
    foreground: Foreground,
    callback: Callback | None = None,
    label: Array | None = None,
    published: bool = False,
) -> Array:
    """FAST's sampler: a foreground network repaints the mask before every call, and a step goes over many levels.

    At a level ``t`` that a segment begins at, with ``n`` normal noise, ``M`` the mask and ``c`` the clean latent::

        y  = (1 - M) x + M q(foreground(x, t, M), t, n)          (Eq. 11 and 12)
        x0 = x0 of y, with eps = denoise(y, t, M)
        x' = M q(t' | y, x0) + (1 - M) q(c, t', n)               (Eq. 5, 7 and 8)

    The last two transitions are single steps without a foreground. ``q(t' | y, x0)`` is the posterior of the whole
    segment (DDIM with eta 1), which the composition of its single steps for a fixed ``x0`` is. One draw ``n`` serves
    both: what is used of it inside and outside the mask has no cell in common.

    ``published`` is the loop as its released code runs it: the single steps multiplied in the reversed order (their
    Lemma 2), which leaves too much noise; the posterior of ``x`` where the estimate is of ``y``; the background only
    in the middle half of the schedule.

    ``label`` is what both networks are told of in place of ``mask``, and where the foreground is painted. ``steps``
    is the number of network calls; other arguments, result and errors as `stage_rt.sampler.sample`.
    """
    check_inputs(clean, mask, label)
    told = mask if label is None else label
    schedule = recipe.levels.at(timesteps(recipe, steps))
    x = noise.initial(clean.shape).astype(clean.dtype, copy=False)
    for k in reversed(range(len(schedule))):
        i, target = int(schedule.timesteps[k]), int(schedule.targets[k])
        abar, n = float(schedule.abar[k]), noise.background(k, x.shape)
        y = x if k < SINGLE else with_background(x, foreground(x, i, told), 1 - told, abar, n)
        x0 = x0_of(y, estimate(denoise, y, i, told), abar)
        if published:
            c = reversed_order(recipe.levels, i, target)
            kept = k >= SINGLE and MIDDLE[0] * recipe.steps < target < MIDDLE[1] * recipe.steps
        else:
            c, x, kept = weights("ancestral", schedule, k), y, True
        x = c.x0 * x0 + c.xt * x + c.sigma * noise.posterior(k, x.shape)
        if kept:
            x = with_background(x, clean, mask, float(schedule.abar_before[k]), n)
        if callback is not None:
            callback(k, x)
    return x


def timesteps(recipe: Recipe, steps: int) -> list[int]:
    """Network indices of the levels: 0, 1, 21, 42, .. 999 of 1000 for 50 calls, as the released code rounds them."""
    last, segments = recipe.steps - 1, max(steps - SINGLE, 1)
    return sorted({0, *(last + -n * (last - 1) // segments for n in range(steps - 1))})


def reversed_order(levels: Schedule, top: int, bottom: int) -> Weights:
    """What FAST's Lemma 2 has for the segment from level ``top`` to ``bottom``, of ``levels`` in single steps.

    Each step's part is multiplied by the steps above it, which came before, in place of those below it.
    """
    steps = slice(bottom + 1, top + 1)
    kept = levels.posterior_xt[steps]
    above = np.append(np.cumprod(kept[:0:-1])[::-1], 1.0)
    variance = float((above**2 * levels.posterior_variance[steps]).sum())
    x0 = float((above * levels.posterior_x0[steps]).sum())
    return Weights(x0, float(kept.prod()), math.sqrt(variance))
