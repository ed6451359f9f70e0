"""The ways from noise to a latent, one file a paper; `SAMPLERS` is the table of all of them.

Each takes what `stage_rt.sampler.sample` takes, and ``steps``: how many of the levels it visits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import InputError
from stage_rt.names import SamplerName, SystemName
from stage_rt.noise import NoiseSource
from stage_rt.recipe import Recipe
from stage_rt.sampler import Callback, Denoiser, sample
from stage_rt.samplers import anogen, anomalydiffusion, fast, repaint, sdas
from stage_rt.schedule import FEWEST_CALLS
from stage_rt.spec import ModelSpec

__all__ = ["SAMPLERS", "Sampler", "check_sampler", "find", "recipe_of", "steps_of"]

Array = NDArray[Any]


class Sampler(NamedTuple):
    """A sampler.

    ``steps`` is its own number of levels for a recipe, ``range`` the fewest and the most it can be told to visit,
    ``calls`` how often it calls the denoiser, ``system`` whose adapters it wants, None for nobody's, and
    ``prompt_guidance`` its own weight of the prompt against good surface.
    """

    run: Callable[..., Array]
    steps: Callable[[Recipe], int]
    range: Callable[[Recipe], tuple[int, int]]
    calls: Callable[[Recipe, int], int]
    system: SystemName | None = None
    prompt_guidance: float = 1.0

    @property
    def guided(self) -> bool:
        """Whether it wants adapters."""
        return self.system is not None


def find(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        InputError: there is none.
    """
    for known, sampler in SAMPLERS.items():
        if known == name:
            return sampler
    raise InputError(f"unknown sampler {name!r}: use one of {', '.join(SAMPLERS)}")


def steps_of(name: str, recipe: Recipe, steps: int | None) -> int:
    """How many levels sampler ``name`` visits when it is told ``steps``, or nothing.

    Raises:
        InputError: there is no such sampler, or ``steps`` is out of its range.
    """
    sampler = find(name)
    if steps is None:
        return sampler.steps(recipe)
    fewest, most = sampler.range(recipe)
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not fewest <= steps <= most:
        raise InputError(f"sampler `{name}` takes from {fewest} to {most} steps, not {steps!r}")
    return int(steps)


def check_sampler(name: str, model: ModelSpec) -> None:
    """Refuse a sampler whose adapters are not those of a model.

    Raises:
        InputError: they are another system's, or there is no such sampler.
    """
    system = find(name).system
    if system not in (None, model.system):
        raise InputError(
            f"sampler `{name}` needs the adapters of a model for `{system}`, and this one is for `{model.system}`",
            f"paint with `stage-rt synth --sampler {model.system}`",
        )


def recipe_of(name: str, recipe: Recipe) -> Recipe:
    """``recipe`` with the weight of the prompt that sampler ``name`` has of its own, where it has none.

    Raises:
        InputError: there is no such sampler.
    """
    weight = find(name).prompt_guidance
    return recipe if weight == 1 or recipe.prompt_guidance != 1 else recipe.contrasted(weight)


def _stage(
    denoise: Denoiser,
    clean: Array,
    mask: Array,
    *,
    recipe: Recipe,
    noise: NoiseSource,
    steps: int,
    callback: Callback | None = None,
    label: Array | None = None,
) -> Array:
    return sample(
        denoise, clean, mask, recipe=recipe.respaced(steps), noise=noise, callback=callback, label=label
    )


def _from_ten(most: Callable[[Recipe], int]) -> Callable[[Recipe], tuple[int, int]]:
    return lambda recipe: (min(FEWEST_CALLS, most(recipe)), most(recipe))


def _fast(published: bool) -> Sampler:
    return Sampler(
        partial(fast.fast, published=published),
        steps=lambda recipe: min(fast.STEPS, recipe.steps),
        range=_from_ten(lambda recipe: recipe.steps),
        calls=lambda recipe, steps: steps,
        system="fast",
    )


SAMPLERS: dict[SamplerName, Sampler] = {
    "stage": Sampler(
        _stage,
        steps=lambda recipe: recipe.calls or recipe.steps,
        range=lambda recipe: (recipe.fewest_calls, recipe.steps),
        calls=lambda recipe, steps: steps,
        system="stage",
    ),
    "fast": _fast(published=False),
    "fast-published": _fast(published=True),
    "anogen": Sampler(
        anogen.anogen,
        steps=lambda recipe: min(anogen.STEPS, recipe.steps // 2),
        range=_from_ten(lambda recipe: recipe.steps - 1),
        calls=lambda recipe, steps: steps,
        prompt_guidance=anogen.PROMPT_GUIDANCE,
    ),
    "repaint": Sampler(
        repaint.repaint,
        steps=lambda recipe: min(repaint.STEPS, recipe.steps),
        range=_from_ten(lambda recipe: recipe.steps),
        calls=lambda recipe, steps: repaint.calls(steps),
    ),
    "anomalydiffusion": Sampler(
        anomalydiffusion.anomalydiffusion,
        steps=lambda recipe: min(anomalydiffusion.STEPS, recipe.steps // 2),
        range=_from_ten(lambda recipe: recipe.steps - 1),
        calls=lambda recipe, steps: steps,
    ),
    "sdas": Sampler(
        sdas.sdas,
        steps=lambda recipe: min(sdas.STEPS, recipe.steps),
        range=_from_ten(lambda recipe: recipe.steps),
        calls=lambda recipe, steps: steps,
    ),
}
