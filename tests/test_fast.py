"""FAST's sampler: its segments against closed forms, its loop against the paper and the released code."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stage_rt.errors import InputError
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.samplers.fast import fast, reversed_order, timesteps
from stage_rt.schedule import Schedule

Array = NDArray[Any]
RECIPE = Recipe.fast()
LEVELS = RECIPE.levels


def in_order(levels: Schedule, top: int, bottom: int) -> tuple[float, float, float]:
    """Weights of ``x0`` and ``x``, and variance, of the single steps from ``top`` down to ``bottom``."""
    of_x0, of_x, variance = 0.0, 1.0, 0.0
    for i in range(top, bottom, -1):
        of_x0 = levels.posterior_xt[i] * of_x0 + levels.posterior_x0[i]
        of_x *= levels.posterior_xt[i]
        variance = levels.posterior_xt[i] ** 2 * variance + levels.posterior_variance[i]
    return of_x0, of_x, variance


def as_released(levels: Schedule, top: int, bottom: int) -> tuple[float, float, float]:
    """The same as FAST's code adds it up (``_compute_multistep_coefficients``), term by term."""
    a, b, variance = levels.posterior_xt, levels.posterior_x0, levels.posterior_variance
    above = {n: np.prod(a[n + 1 : top + 1]) for n in range(bottom + 1, top + 1)}
    return (
        sum(above[n] * b[n] for n in above),
        float(np.prod(a[bottom + 1 : top + 1])),
        sum(above[n] ** 2 * variance[n] for n in above),
    )


@pytest.mark.parametrize("steps", [10, 50, 200])
def test_a_segment_is_the_composition_of_its_single_steps(steps: int) -> None:
    """For a fixed ``x0`` it is DDIM with eta 1 (Song et al., ICLR 2021, Eq. 12 and 16)."""
    schedule = LEVELS.at(timesteps(RECIPE, steps))
    for k, (i, target) in enumerate(zip(schedule.timesteps.tolist(), schedule.targets.tolist(), strict=True)):
        found = schedule.posterior_x0[k], schedule.posterior_xt[k], schedule.posterior_variance[k]
        np.testing.assert_allclose(found, in_order(LEVELS, i, target), rtol=0, atol=1e-12)
        abar, before = LEVELS.abar[i], 1.0 if target < 0 else LEVELS.abar[target]
        sigma2 = (1 - before) / (1 - abar) * (1 - abar / before)
        ddim = np.sqrt(max(1 - before - sigma2, 0) / (1 - abar))
        expected = np.sqrt(before) - np.sqrt(abar) * ddim, ddim, sigma2
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [10, 50, 200])
def test_the_published_weights_are_those_of_the_released_code(steps: int) -> None:
    schedule = LEVELS.at(timesteps(RECIPE, steps))
    for i, target in zip(schedule.timesteps.tolist(), schedule.targets.tolist(), strict=True):
        found = reversed_order(LEVELS, i, target)
        expected = as_released(LEVELS, i, target)
        np.testing.assert_allclose((found.x0, found.xt, found.sigma**2), expected, rtol=0, atol=1e-12)
        if i - target == 1:
            np.testing.assert_allclose(expected, in_order(LEVELS, i, target), rtol=0, atol=1e-12)


def test_the_reversed_order_leaves_too_much_noise() -> None:
    """In ten calls the last segment goes from level 111 to 1, in fifty from 21."""
    assert timesteps(RECIPE, 10)[2] == 125
    assert reversed_order(LEVELS, 111, 1).sigma ** 2 == pytest.approx(0.0425, abs=5e-5)
    assert in_order(LEVELS, 111, 1)[2] == pytest.approx(0.0017, abs=5e-5)
    assert reversed_order(LEVELS, 21, 1).sigma ** 2 == pytest.approx(0.0066, abs=5e-5)
    assert in_order(LEVELS, 21, 1)[2] == pytest.approx(0.0016, abs=5e-5)


def test_the_levels_are_those_of_the_released_code() -> None:
    boundaries = torch.linspace(999, 1, steps=49).long().tolist()
    assert timesteps(RECIPE, 50) == [0, *reversed(boundaries)]
    assert len(boundaries) - 1 == 48


def released(
    denoise: Any, foreground: Any, clean: Array, mask: Array, noise: PhiloxNoise, steps: int
) -> Array:
    """``p_sample_multistep_loop`` of the released code, its variables by its names; draws are addressed as ours."""
    boundaries = timesteps(RECIPE, steps)[:0:-1]
    left, img = steps - 1, noise.initial(clean.shape).astype(clean.dtype)
    for t_start, t_end in pairwise(boundaries):
        abar, n = LEVELS.abar[t_start], noise.background(left, clean.shape)
        x_noisy_rec = np.sqrt(abar) * foreground(img, t_start, mask) + np.sqrt(1 - abar) * n
        x = img * (1 - mask) + x_noisy_rec * mask
        x0 = np.sqrt(1 / abar) * x - np.sqrt(1 / abar - 1) * denoise(x, t_start, mask, Branch.AWARE)
        agg_b, agg_a, sigma_sq = as_released(LEVELS, t_start, t_end)
        img = agg_a * img + agg_b * x0 + np.sqrt(sigma_sq) * noise.posterior(left, clean.shape)
        if 250 < t_end < 750:
            abar = LEVELS.abar[t_end]
            img = (np.sqrt(abar) * clean + np.sqrt(1 - abar) * n) * (1 - mask) + img * mask
        left -= 1
    for t in (1, 0):
        abar = LEVELS.abar[t]
        x0 = np.sqrt(1 / abar) * img - np.sqrt(1 / abar - 1) * denoise(img, t, mask, Branch.AWARE)
        img = LEVELS.posterior_x0[t] * x0 + LEVELS.posterior_xt[t] * img
        img = img + np.sqrt(LEVELS.posterior_variance[t]) * noise.posterior(t, clean.shape)
    return img


def scene(count: int = 2, channels: int = 3, side: int = 6) -> tuple[Array, Array]:
    """A clean latent and a mask of its left half, float64."""
    clean = np.random.default_rng(3).standard_normal((count, channels, side, side))
    mask = np.zeros((count, 1, side, side))
    mask[..., : side // 2] = 1
    return clean, mask


def wave(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    return np.asarray(i / (i + 60) * x + 0.3 * np.sin(x + 0.01 * i) + 0.1 * mask)


def ripple(x: Array, i: int, mask: Array) -> Array:
    return np.asarray(mask * np.cos(x + 0.02 * i))


@pytest.mark.parametrize("steps", [10, 50])
def test_published_is_the_released_loop(steps: int) -> None:
    clean, mask = scene()
    noise = PhiloxNoise([4, 5])
    found = fast(
        *(wave, clean, mask), recipe=RECIPE, noise=noise, steps=steps, foreground=ripple, published=True
    )
    # The draws are float32.
    np.testing.assert_allclose(
        found, released(wave, ripple, clean, mask, noise, steps), rtol=0, atol=1e-6 * np.abs(found).max()
    )


@pytest.mark.parametrize("published", [False, True])
def test_networks_that_know_the_answer_reach_it(published: bool) -> None:
    """One in the mask, the clean latent around it; what is published keeps no background at the end."""
    clean, mask = scene()
    answer = np.random.default_rng(9).standard_normal(clean.shape)

    def knows(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        abar = LEVELS.abar[i]
        return np.asarray((x - np.sqrt(abar) * answer) / np.sqrt(1 - abar))

    found = fast(
        *(knows, clean, mask),
        recipe=RECIPE,
        noise=PhiloxNoise([1, 2]),
        steps=50,
        foreground=lambda x, i, handed: answer,
        published=published,
    )
    around = answer if published else clean
    np.testing.assert_allclose(found, np.where(mask > 0, answer, around), rtol=0, atol=1e-10)


def gaussian(deviation: float, mean: float, steps: int, published: bool) -> tuple[float, float]:
    """Mean and deviation under the mask of what perfect networks make of ``x0 ~ N(mean, deviation**2)``.

    Perfect is the mean of ``x0`` given a noisy one, for the foreground as for the noise estimate, which sees what
    the foreground left.
    """
    count = 4000
    clean, mask = np.zeros((count, 1, 2, 2)), np.ones((count, 1, 2, 2))

    def expected(x: Array, i: int, *_: object) -> Array:
        abar = LEVELS.abar[i]
        gain = np.sqrt(abar) * deviation**2 / (abar * deviation**2 + 1 - abar)
        return np.asarray(mean + gain * (x - np.sqrt(abar) * mean))

    def denoise(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        abar = LEVELS.abar[i]
        return np.asarray((x - np.sqrt(abar) * expected(x, i)) / np.sqrt(1 - abar))

    found = fast(
        *(denoise, clean, mask),
        recipe=RECIPE,
        noise=PhiloxNoise(range(count)),
        steps=steps,
        foreground=expected,
        published=published,
    )
    return float(found.mean()), float(found.std())


def recursion(deviation: float, steps: int) -> float:
    """The deviation that `gaussian` has to have: every step of the exact loop is linear in Gaussian numbers."""
    schedule = LEVELS.at(timesteps(RECIPE, steps))
    variance = 1.0
    for k in reversed(range(steps)):
        abar = schedule.abar[k]
        gain = np.sqrt(abar) * deviation**2 / (abar * deviation**2 + 1 - abar)
        if k > 1:
            variance = abar * gain**2 * variance + 1 - abar
        weight = schedule.posterior_x0[k] * gain + schedule.posterior_xt[k]
        variance = weight**2 * variance + schedule.posterior_variance[k]
    return float(np.sqrt(variance))


@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_perfect_networks_on_gaussian_data(deviation: float) -> None:
    """The mean is theirs; the foreground, which foresees means, narrows what is spread."""
    mean, found = gaussian(deviation, 2.0, 50, published=False)
    assert mean == pytest.approx(2.0, abs=0.01)
    assert found == pytest.approx(recursion(deviation, 50), rel=0.02)
    assert found < deviation


def test_what_is_published_ends_noisier_in_few_calls() -> None:
    few = {published: gaussian(0.05, 0.0, 10, published)[1] for published in (False, True)}
    assert few[True] > 1.5 * few[False]


def test_both_networks_are_told_of_the_label() -> None:
    clean, mask = scene()
    label = mask.copy()
    label[..., 2:] = 0
    told: list[Array] = []

    def denoise(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        assert branch is Branch.AWARE
        told.append(handed)
        return wave(x, i, handed, branch)

    def foreground(x: Array, i: int, handed: Array) -> Array:
        told.append(handed)
        return ripple(x, i, handed)

    options: dict[str, Any] = {"recipe": RECIPE, "noise": PhiloxNoise([1, 2]), "steps": 10}
    found = fast(denoise, clean, mask, foreground=foreground, label=label, **options)
    assert len(told) == 10 + 8
    assert all(np.array_equal(handed, label) for handed in told)
    assert np.abs(found - clean)[..., 3:].max() < 1e-12
    assert not np.allclose(found, fast(denoise, clean, mask, foreground=foreground, **options))
    with pytest.raises(InputError, match="`label` must be a part of `mask`"):
        fast(denoise, clean, label, foreground=foreground, label=mask, **options)
