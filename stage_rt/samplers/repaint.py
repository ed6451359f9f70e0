"""RePaint's sampler (Lugmayr et al., "RePaint", CVPR 2022)."""

import math
from collections.abc import Iterator

import numpy as np

from stage_rt.noise import NoiseSource
from stage_rt.recipe import Recipe
from stage_rt.sampler import Callback, Denoiser, check_inputs
from stage_rt.samplers.unguided import Array, estimate, with_background, x0_of

STEPS = 250
JUMP = 10
"""Levels RePaint goes back at once, and how often it goes down each stretch of them."""


def repaint(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    steps: int,
    callback: Callback | None = None,
) -> Array:
    """RePaint's sampler: ancestral steps, every stretch of 10 gone down 10 times.

    Lugmayr et al., "RePaint", CVPR 2022, Algorithm 1: the known part is ``q(clean)`` at the present level (Eq. 8a),
    the way back is ``x' = sqrt(1 - beta) x + sqrt(beta) n``. The background is put back before every call but
    the first, and not after the last. ``steps`` is the number of levels; other arguments, result and errors as
    `stage_rt.sampler.sample`.
    """
    check_inputs(clean, mask)
    schedule = recipe.levels.at(timesteps(recipe, steps))
    x = noise.initial(clean.shape).astype(clean.dtype, copy=False)
    walk = list(_walk(len(schedule)))
    calls = sum(down for _, down in walk)
    for left, (level, down) in zip(reversed(range(len(walk))), walk, strict=True):
        n = noise.posterior(left, x.shape)
        if not down:
            beta = float(schedule.betas[level])
            x = math.sqrt(1 - beta) * x + math.sqrt(beta) * n
            continue
        i, abar = int(schedule.timesteps[level]), float(schedule.abar[level])
        if left < len(walk) - 1:
            x = with_background(x, clean, mask, abar, noise.background(left, x.shape))
        x0 = x0_of(x, estimate(denoise, x, i, mask), abar)
        mean = float(schedule.posterior_x0[level]) * x0 + float(schedule.posterior_xt[level]) * x
        x = mean + math.sqrt(schedule.posterior_variance[level]) * n
        calls -= 1
        if callback is not None:
            callback(calls, x)
    return x


def timesteps(recipe: Recipe, steps: int) -> list[int]:
    """Network indices of the levels: even, with the first and the last level among them."""
    return [int(i) for i in np.rint(np.linspace(0, recipe.steps - 1, steps))]


def calls(steps: int) -> int:
    """How often the network is called on the way over ``steps`` levels."""
    return sum(down for _, down in _walk(steps))


def _walk(levels: int) -> Iterator[tuple[int, bool]]:
    """RePaint's transitions: ``(level, True)`` down from a level, ``(level, False)`` up to one."""
    rounds = dict.fromkeys(range(0, levels - JUMP, JUMP), JUMP - 1)
    level = levels - 1
    while level >= 0:
        yield level, True
        level -= 1
        if rounds.get(level, 0):
            rounds[level] -= 1
            for _ in range(JUMP):
                level += 1
                yield level, False
