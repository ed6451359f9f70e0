"""Other ways from noise to a latent with the same denoiser: RePaint, AnomalyDiffusion, RealNet's SDAS.

Each takes what `stage_rt.sampler.sample` takes and is an instance of one step (spec, section g)::

    x  = m * x + (1 - m) * q(clean, level, n1)       some put the noised background back first
    e  = denoise(x)
    x0 = (x - sqrt(1 - abar) e) / sqrt(abar)
    x  = a * x0 + b * x + c * e + d * n2

They use the UNet's own estimate, so ``denoise`` is called with the mask and the aware branch and needs neither.
``callback(k, state)`` is told how many calls of the denoiser are left; draws are addressed by the transitions left.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import BackendError
from stage_rt.noise import NoiseSource
from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import Denoiser, check_inputs, sample
from stage_rt.spec import SamplerName

__all__ = ["SAMPLERS", "Sampler", "anomalydiffusion", "repaint", "sdas"]

Array = NDArray[Any]
Callback = Callable[[int, Array], None]

DDIM_STEPS = 200
REPAINT_STEPS = 250
REPAINT_JUMP = 10
"""Levels RePaint goes back at once, and how often it goes down each stretch of them."""
SDAS_STEPS = 20
SDAS_STRENGTH = (0.1, 0.2)


class Sampler(NamedTuple):
    """A sampler: its function, how often it calls the denoiser, and whether it wants the adapters."""

    run: Callable[..., Array]
    calls: Callable[[Recipe], int]
    guided: bool


def anomalydiffusion(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    callback: Callback | None = None,
) -> Array:
    """AnomalyDiffusion's sampler: DDIM with eta 1, the background put back before every step.

    Hu et al., "AnomalyDiffusion", AAAI 2024, without its adaptive attention; DDIM is Song et al., ICLR 2021,
    Eq. 12 and 16. The last step goes to level 0, and nothing is blended after it. Arguments, result and errors
    as `stage_rt.sampler.sample`.
    """
    check_inputs(clean, mask)
    taus = _ddim_taus(recipe)
    x = noise.initial(clean.shape).astype(clean.dtype, copy=False)
    for k in reversed(range(len(taus))):
        abar = float(recipe.abar[taus[k]])
        before = float(recipe.abar[taus[k - 1] if k else 0])
        sigma = math.sqrt((1 - before) / (1 - abar) * (1 - abar / before))
        x = _background(x, clean, mask, abar, noise.background(k, x.shape))
        eps = _estimate(denoise, x, taus[k], mask)
        x0 = _x0(x, eps, abar)
        direction = math.sqrt(max(1 - before - sigma**2, 0))
        x = math.sqrt(before) * x0 + direction * eps + sigma * noise.posterior(k, x.shape)
        if callback is not None:
            callback(k, x)
    return x


def repaint(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    callback: Callback | None = None,
) -> Array:
    """RePaint's sampler: ancestral steps on 250 levels, every stretch of 10 gone down 10 times.

    Lugmayr et al., "RePaint", CVPR 2022, Algorithm 1: the known part is ``q(clean)`` at the present level (Eq. 8a),
    the way back is ``x' = sqrt(1 - beta) x + sqrt(beta) n``. The background is put back before every call but
    the first, and not after the last. Arguments, result and errors as `stage_rt.sampler.sample`.
    """
    check_inputs(clean, mask)
    taus = _repaint_taus(recipe)
    abars = recipe.abar[taus]
    x = noise.initial(clean.shape).astype(clean.dtype, copy=False)
    walk = list(_walk(len(taus)))
    calls = sum(down for _, down in walk)
    for left, (level, down) in zip(reversed(range(len(walk))), walk, strict=True):
        n = noise.posterior(left, x.shape)
        if not down:
            beta = _beta(abars, level)
            x = math.sqrt(1 - beta) * x + math.sqrt(beta) * n
            continue
        if left < len(walk) - 1:
            x = _background(x, clean, mask, float(abars[level]), noise.background(left, x.shape))
        a, b, variance = _posterior(abars, level)
        x0 = _x0(x, _estimate(denoise, x, int(taus[level]), mask), float(abars[level]))
        x = a * x0 + b * x + math.sqrt(variance) * n
        calls -= 1
        if callback is not None:
            callback(calls, x)
    return x


def sdas(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    callback: Callback | None = None,
    strength: tuple[float, float] = SDAS_STRENGTH,
    clamp: float = math.inf,
) -> Array:
    """RealNet's strength-controllable diffusion: 20 ancestral steps whose noise is ``sqrt(1 + s)`` too strong.

    Zhang et al., "RealNet", CVPR 2024. A whole new picture: ``clean`` gives its shape and ``mask`` nothing, so
    that compositing must keep the photograph. ``s`` is drawn evenly from ``strength`` for each sample; ``x0``
    is clamped to ``clamp``, which only pixels want. A denoiser with twice the channels has learned its variance
    (Nichol and Dhariwal, 2021, Eq. 15). Other arguments, result and errors as `stage_rt.sampler.sample`.
    """
    check_inputs(clean, mask)
    taus = _sdas_taus(recipe)
    abars = recipe.abar[taus]
    x = noise.initial(clean.shape).astype(clean.dtype, copy=False)
    # The draw of a step there is not.
    excess = np.sqrt(1 + _uniform(*strength, lambda: noise.posterior(len(taus), (len(x), 1, 1, 1)))).astype(
        x.dtype
    )
    for k in reversed(range(len(taus))):
        estimate = _estimate(denoise, x, int(taus[k]), mask, most=2)
        eps, logits = estimate[:, : x.shape[1]], estimate[:, x.shape[1] :]
        a, b, _ = _posterior(abars, k)
        x0 = np.clip(_x0(x, eps, float(abars[k])), -clamp, clamp)
        n = noise.posterior(k, x.shape)
        x = a * x0 + b * x + (excess * _deviation(abars, k, logits) * n if k else 0)
        if callback is not None:
            callback(k, x)
    return x


def _ddim_taus(recipe: Recipe) -> range:
    """1, 6, .. 996 of 1000 steps."""
    return range(1, recipe.steps, max(recipe.steps // DDIM_STEPS, 2))


def _repaint_taus(recipe: Recipe) -> NDArray[np.intp]:
    """Even, with the first and the last step among them."""
    count = min(REPAINT_STEPS, recipe.steps)
    return np.rint(np.linspace(0, recipe.steps - 1, count)).astype(np.intp)


def _sdas_taus(recipe: Recipe) -> NDArray[np.intp]:
    """0, 50, .. 950 of 1000 steps."""
    return np.arange(0, recipe.steps, max(recipe.steps // SDAS_STEPS, 1))


def _walk(levels: int) -> Iterator[tuple[int, bool]]:
    """RePaint's transitions: ``(level, True)`` down from a level, ``(level, False)`` up to one."""
    rounds = dict.fromkeys(range(0, levels - REPAINT_JUMP, REPAINT_JUMP), REPAINT_JUMP - 1)
    level = levels - 1
    while level >= 0:
        yield level, True
        level -= 1
        if rounds.get(level, 0):
            rounds[level] -= 1
            for _ in range(REPAINT_JUMP):
                level += 1
                yield level, False


def _estimate(denoise: Denoiser, x: Array, i: int, mask: Array, most: int = 1) -> Array:
    eps = denoise(x, i, mask, Branch.AWARE)
    allowed = [(x.shape[0], n * x.shape[1], *x.shape[2:]) for n in range(1, most + 1)]
    if eps.shape not in allowed:
        raise BackendError(f"the denoiser returned shape {eps.shape} at step {i}, expected {x.shape}")
    return eps


def _background(x: Array, clean: Array, mask: Array, abar: float, n: Array) -> Array:
    """``x`` with the clean latent at level ``abar`` outside the mask."""
    return np.asarray(mask * x + (1 - mask) * (math.sqrt(abar) * clean + math.sqrt(1 - abar) * n))


def _x0(x: Array, eps: Array, abar: float) -> Array:
    return np.asarray((x - math.sqrt(1 - abar) * eps) / math.sqrt(abar))


def _beta(abars: NDArray[np.float64], k: int) -> float:
    return float(1 - abars[k] / abars[k - 1]) if k else float(1 - abars[0])


def _posterior(abars: NDArray[np.float64], k: int) -> tuple[float, float, float]:
    """Weights of ``x0`` and ``x``, and the variance, of the step down from level ``k`` (paper, Eq. 2)."""
    abar, before, beta = float(abars[k]), float(abars[k - 1]) if k else 1.0, _beta(abars, k)
    return (
        math.sqrt(before) * beta / (1 - abar),
        math.sqrt(1 - beta) * (1 - before) / (1 - abar),
        beta * (1 - before) / (1 - abar),
    )


def _deviation(abars: NDArray[np.float64], k: int, logits: Array) -> Any:
    """Standard deviation of a step: the posterior's, or between it and ``beta``'s as learned ``logits`` say."""
    low = _posterior(abars, k)[2]
    if not logits.size:
        return math.sqrt(low)
    part = (logits + 1) / 2
    return np.exp(0.5 * (part * math.log(_beta(abars, k)) + (1 - part) * math.log(low)))


def _uniform(low: float, high: float, normal: Callable[[], Array]) -> Array:
    """Even numbers from ``low`` to ``high`` out of normal ones, through their distribution function."""
    if low == high:
        return np.full((1, 1, 1, 1), low)
    cumulated = np.vectorize(lambda n: 0.5 * (1 + math.erf(n / math.sqrt(2))))(normal())
    return np.asarray(low + (high - low) * cumulated)


SAMPLERS: dict[SamplerName, Sampler] = {
    "stage": Sampler(sample, lambda recipe: recipe.steps, guided=True),
    "repaint": Sampler(
        repaint, lambda recipe: sum(down for _, down in _walk(len(_repaint_taus(recipe)))), guided=False
    ),
    "anomalydiffusion": Sampler(anomalydiffusion, lambda recipe: len(_ddim_taus(recipe)), guided=False),
    "sdas": Sampler(sdas, lambda recipe: len(_sdas_taus(recipe)), guided=False),
}
