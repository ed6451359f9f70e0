"""SDAS, the sampler of RealNet (Zhang et al., "RealNet", CVPR 2024)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from stage_rt.noise import NoiseSource
from stage_rt.recipe import Recipe
from stage_rt.sampler import Callback, Denoiser, check_inputs
from stage_rt.samplers.unguided import Array, estimate, x0_of
from stage_rt.schedule import Schedule

STEPS = 20
STRENGTH = (0.1, 0.2)


def sdas(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    steps: int,
    callback: Callback | None = None,
    strength: tuple[float, float] = STRENGTH,
    clamp: float = math.inf,
) -> Array:
    """RealNet's strength-controllable diffusion: ancestral steps whose noise is ``sqrt(1 + s)`` too strong.

    Zhang et al., "RealNet", CVPR 2024. A whole new picture: ``clean`` gives its shape and ``mask`` nothing, so
    that compositing must keep the photograph. ``s`` is drawn evenly from ``strength`` for each sample; ``x0``
    is clamped to ``clamp``, which only pixels want. A denoiser with twice the channels has learned its variance
    (Nichol and Dhariwal, 2021, Eq. 15). ``steps`` is the number of network calls; other arguments, result and errors
    as `stage_rt.sampler.sample`.
    """
    check_inputs(clean, mask)
    schedule = recipe.levels.at(timesteps(recipe, steps))
    x = noise.initial(clean.shape).astype(clean.dtype, copy=False)
    # The draw of a step there is not.
    drawn = _uniform(*strength, lambda: noise.posterior(len(schedule), (len(x), 1, 1, 1)))
    excess = np.sqrt(1 + drawn).astype(x.dtype)
    for k in reversed(range(len(schedule))):
        output = estimate(denoise, x, int(schedule.timesteps[k]), mask, most=2)
        eps, logits = output[:, : x.shape[1]], output[:, x.shape[1] :]
        x0 = np.clip(x0_of(x, eps, float(schedule.abar[k])), -clamp, clamp)
        mean = float(schedule.posterior_x0[k]) * x0 + float(schedule.posterior_xt[k]) * x
        n = noise.posterior(k, x.shape)
        x = mean + (excess * _deviation(schedule, k, logits) * n if k else 0)
        if callback is not None:
            callback(k, x)
    return x


def timesteps(recipe: Recipe, steps: int) -> list[int]:
    """Network indices of the levels: 0, 50, .. 950 of 1000 for 20 steps."""
    return [k * recipe.steps // steps for k in range(steps)]


def _deviation(schedule: Schedule, k: int, logits: Array) -> Any:
    """Standard deviation of a step: the posterior's, or between it and ``beta``'s as learned ``logits`` say."""
    low = float(schedule.posterior_variance[k])
    if not logits.size:
        return math.sqrt(low)
    part = (logits + 1) / 2
    return np.exp(0.5 * (part * math.log(schedule.betas[k]) + (1 - part) * math.log(low)))


def _uniform(low: float, high: float, normal: Callable[[], Array]) -> Array:
    """Even numbers from ``low`` to ``high`` out of normal ones, through their distribution function."""
    if low == high:
        return np.full((1, 1, 1, 1), low)
    cumulated = np.vectorize(lambda n: 0.5 * (1 + math.erf(n / math.sqrt(2))))(normal())
    return np.asarray(low + (high - low) * cumulated)
