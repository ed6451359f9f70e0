"""Every plausible off-by-one of the loop breaks the agreement with the authors' trajectories."""

from collections.abc import Callable
from typing import Any

import closed_form
import numpy as np
import pytest
from conftest import Golden
from numpy.typing import NDArray

from stage_rt.noise import NoiseSource
from stage_rt.recipe import Branch, Recipe, StepCoefficients
from stage_rt.sampler import Denoiser, sample

Array = NDArray[Any]

TAG = "8x8_b3_tiny_large_blobs"
BOUND = 1e-4
AUTHORS = Recipe.authors()


class FourChannelMaskNoise(closed_form.RecordedNoise):
    """The mask's noise drawn for every channel."""

    def mask(self, i: int, shape: tuple[int, ...]) -> Array:
        return self.background(i, (shape[0], 4, *shape[2:]))


def largest_error(
    golden: Golden,
    *,
    recipe: Recipe = AUTHORS,
    coefficients: Callable[[int, StepCoefficients], StepCoefficients] | None = None,
    denoise: Denoiser = closed_form.net_a,
    noise: type[closed_form.RecordedNoise] = closed_form.RecordedNoise,
    finish: Callable[[Array, Array, Array], Array] = lambda x, clean, mask: x,
) -> float:
    """Over all logged steps and the final latent, in float64 so that nothing but the mutation shows."""
    inputs, stored = golden(f"in_{TAG}"), golden(f"f64_{TAG}_epsA_code")
    doubled = {name: inputs[name].astype(np.float64) for name in inputs if name != "mask_names"}
    mutant = recipe.model_copy()
    if coefficients is not None:
        mutant.__dict__["coefficients"] = tuple(coefficients(i, c) for i, c in enumerate(recipe.coefficients))
    states: dict[int, Array] = {}
    source: NoiseSource = noise(*(doubled[name] for name in ("x_T", "noise_img", "noise_mask", "noise_p")))
    final = sample(
        denoise,
        doubled["clean"],
        doubled["mask"],
        recipe=mutant,
        noise=source,
        callback=lambda i, state: states.__setitem__(i, state),
    )
    errors = [np.abs(finish(final, doubled["clean"], doubled["mask"]) - stored["final"]).max()]
    for row, i in enumerate(stored["steps"]):
        name = "aux" if AUTHORS.branch(int(i) - 1) is Branch.ONLY else "x"
        errors.append(np.abs(states[int(i)] - stored[name][row]).max())
    return float(max(errors))


def aware(i: int) -> bool:
    return AUTHORS.branch(i) is Branch.AWARE


def ema(shift: int) -> Callable[[int, StepCoefficients], StepCoefficients]:
    """The EMA factor of another iteration, for the mix and the blend."""

    def change(i: int, c: StepCoefficients) -> StepCoefficients:
        factor = AUTHORS.zeta(i + 1 + shift)
        return c._replace(mix=factor if c.mix else 0.0, blend=factor if c.blend else 0.0)

    return change


def level(i: int, c: StepCoefficients) -> StepCoefficients:
    abar = AUTHORS.schedule.abar[i]
    signal = float(np.sqrt(abar)) if c.background_signal else 0.0
    return c._replace(background_signal=signal, background_noise=float(np.sqrt(1 - abar)))


COEFFICIENTS: dict[str, Callable[[int, StepCoefficients], StepCoefficients]] = {
    "EMA mask of the step after": ema(-1),
    "EMA mask of the step before": ema(1),
    "background at the present level": level,
    "background fully clean at the end": lambda i, c: (
        c if i else c._replace(background_signal=1.0, background_noise=0.0)
    ),
    "noise at the last step": lambda i, c: c if i else c._replace(sigma=0.02),
    "no noise in the posterior": lambda i, c: c._replace(sigma=0.0),
    "upper posterior variance": lambda i, c: c._replace(
        sigma=float(np.sqrt(AUTHORS.schedule.betas[i])) if i else 0.0
    ),
    "AIF with the binary mask": lambda i, c: c._replace(mix=0.0),
    "no AIF": lambda i, c: c._replace(mix=1.0),
    "blend with the binary mask": lambda i, c: c._replace(blend=0.0),
    "blend with the next EMA mask": lambda i, c: c._replace(blend=AUTHORS.zeta(i) if c.blend else 0.0),
    "no blend": lambda i, c: c._replace(blend=1.0),
    "EMA mask kept when the only branch is next": lambda i, c: (
        c._replace(blend=AUTHORS.ema(i)) if aware(i) and not aware(i - 1) else c
    ),
    "EMA mask in the blend of the only branch": lambda i, c: (
        c._replace(blend=AUTHORS.ema(i)) if not aware(i) else c
    ),
    "clean background for the only branch": lambda i, c: (
        c._replace(background_signal=float(np.sqrt(AUTHORS.schedule.abar[i - 1]))) if c.shared_noise else c
    ),
    "image noise for the only branch": lambda i, c: c._replace(shared_noise=False),
    "mask noise for the aware branch": lambda i, c: c._replace(shared_noise=True),
}

INTERVALS: dict[str, tuple[tuple[int, int], ...]] = {
    "701..800": ((701, 800), (300, 400)),
    "699..800": ((699, 800), (300, 400)),
    "700..799": ((700, 799), (300, 400)),
    "700..801": ((700, 801), (300, 400)),
    "301..400": ((700, 800), (301, 400)),
    "300..399": ((700, 800), (300, 399)),
    "the paper's": ((800, 999), (300, 400)),
    "none": (),
}


def one_based(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    return closed_form.net_a(x, i + 1, mask, branch)


def swapped_branch(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    return closed_form.net_a(x, i, mask, Branch.ONLY if branch is Branch.AWARE else Branch.AWARE)


def no_mask_for_only(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    return closed_form.net_a(x, i, np.zeros_like(mask) if branch is Branch.ONLY else mask, branch)


def binary_mask_for_aware(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    return closed_form.net_a(x, i, (mask == 1).astype(mask.dtype) if i < 999 else mask, branch)


def test_unchanged_loop_agrees(golden: Golden) -> None:
    assert largest_error(golden) <= 1e-10
    assert largest_error(golden, coefficients=lambda i, c: c) <= 1e-10


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_changed_coefficient_shows(golden: Golden, name: str) -> None:
    assert largest_error(golden, coefficients=COEFFICIENTS[name]) > BOUND


@pytest.mark.parametrize("name", INTERVALS)
def test_changed_interval_shows(golden: Golden, name: str) -> None:
    assert largest_error(golden, recipe=Recipe(name=name, only_intervals=INTERVALS[name])) > BOUND


@pytest.mark.parametrize("denoise", [one_based, swapped_branch, no_mask_for_only, binary_mask_for_aware])
def test_changed_hand_over_shows(golden: Golden, denoise: Denoiser) -> None:
    assert largest_error(golden, denoise=denoise) > BOUND


def test_mask_noise_of_all_channels_shows(golden: Golden) -> None:
    assert largest_error(golden, noise=FourChannelMaskNoise) > BOUND


def test_final_paste_shows(golden: Golden) -> None:
    def paste(x: Array, clean: Array, mask: Array) -> Array:
        return np.asarray(mask * x + (1 - mask) * clean)

    assert largest_error(golden, finish=paste) > BOUND
