"""The authors' loop with both of its states, written from its description: the witness of the single-state form."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.noise import NoiseSource
from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import Denoiser

Array = NDArray[Any]
Callback = Callable[[int, Array, Array, Array], None]


def sample(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    callback: Callback | None = None,
) -> Array:
    """Final image state; ``callback(i, x, aux, ema_mask)`` after each iteration.

    All three noises are drawn in every iteration, in the authors' order, whether they are used or not.
    """
    x = aux = noise.initial(clean.shape)
    ema = np.ones_like(mask)
    for i in reversed(range(recipe.steps)):
        before = recipe.schedule.abar[max(i - 1, 0)]
        background = _noised(clean, before, noise.background(i, clean.shape))
        noisy_mask = _noised(mask, before, noise.mask(i, mask.shape))
        n3 = noise.posterior(i, clean.shape)
        if recipe.branch(i) is Branch.ONLY:
            eps = denoise(aux, i, mask, Branch.ONLY)
            x0 = mask * _estimate(aux, eps, recipe, i) + (1 - mask) * mask
            y = _posterior(aux, x0, n3, recipe, i)
            x = mask * y + (1 - mask) * background
            aux = mask * y + (1 - mask) * noisy_mask
        else:
            eps = denoise(x, i, ema, Branch.AWARE)
            x0 = ema * _estimate(x, eps, recipe, i) + (1 - ema) * clean
            y = _posterior(x, x0, n3, recipe, i)
            aux = mask * y + (1 - mask) * noisy_mask
            x = ema * y + (1 - ema) * background
        ema = (mask + recipe.zeta(i) * (1 - mask)).astype(mask.dtype)
        if callback is not None:
            callback(i, x, aux, ema)
    return x


def _noised(u: Array, abar: float, n: Array) -> Array:
    return _like(np.sqrt(abar), u) * u + _like(np.sqrt(1 - abar), u) * n


def _estimate(x: Array, eps: Array, recipe: Recipe, i: int) -> Array:
    abar = recipe.schedule.abar[i]
    return x * _like(np.sqrt(1 / abar), x) - eps * _like(np.sqrt(1 / abar - 1), x)


def _posterior(x: Array, x0: Array, n: Array, recipe: Recipe, i: int) -> Array:
    deviation = np.exp(0.5 * np.log(max(recipe.schedule.posterior_variance[i], 1e-20))) if i else 0.0
    mean = _like(recipe.schedule.posterior_x0[i], x) * x0 + _like(recipe.schedule.posterior_xt[i], x) * x
    return mean + _like(deviation, x) * n


def _like(value: float, array: Array) -> Any:
    return array.dtype.type(value)


def state_of(stored: dict[str, Array], row: int, recipe: Recipe) -> Array:
    """What the single state is after iteration ``steps[row]``: the state that the next branch reads."""
    i = int(stored["steps"][row])
    return stored["aux" if recipe.branch(i - 1) is Branch.ONLY else "x"][row]
