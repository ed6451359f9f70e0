"""AnomalyDiffusion's sampler (Hu et al., "AnomalyDiffusion", AAAI 2024)."""

import math

from stage_rt.noise import NoiseSource
from stage_rt.recipe import Recipe
from stage_rt.sampler import Callback, Denoiser, check_inputs
from stage_rt.samplers.unguided import Array, estimate, with_background, x0_of

STEPS = 200


def anomalydiffusion(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    steps: int,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> Array:
    """AnomalyDiffusion's sampler: DDIM with ``eta`` 1, the background put back before every step.

    Hu et al., "AnomalyDiffusion", AAAI 2024, without its adaptive attention; DDIM is Song et al., ICLR 2021,
    Eq. 12 and 16. The last step goes to level 0, and nothing is blended after it. ``steps`` is the number of network
    calls; other arguments, result and errors as `stage_rt.sampler.sample`.
    """
    check_inputs(clean, mask)
    taus = timesteps(recipe, steps)
    x = noise.initial(clean.shape).astype(clean.dtype, copy=False)
    for k in reversed(range(len(taus))):
        abar = float(recipe.levels.abar[taus[k]])
        before = float(recipe.levels.abar[taus[k - 1] if k else 0])
        sigma = eta * math.sqrt((1 - before) / (1 - abar) * (1 - abar / before))
        x = with_background(x, clean, mask, abar, noise.background(k, x.shape))
        eps = estimate(denoise, x, taus[k], mask)
        x0 = x0_of(x, eps, abar)
        direction = math.sqrt(max(1 - before - sigma**2, 0))
        x = math.sqrt(before) * x0 + direction * eps + sigma * noise.posterior(k, x.shape)
        if callback is not None:
            callback(k, x)
    return x


def timesteps(recipe: Recipe, steps: int) -> list[int]:
    """Network indices of the levels: 1, 6, .. 996 of 1000 for 200 steps."""
    return [1 + k * recipe.steps // steps for k in range(steps)]
