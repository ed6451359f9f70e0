"""What a run is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stage_rt.errors import InputError, PromptError
from stage_rt.names import RecipeName, SamplerName
from stage_rt.recipe import Recipe
from stage_rt.samplers import SAMPLERS, steps_of
from stage_rt.spec import ModelSpec


@dataclass(frozen=True)
class Job:
    """What the user asked for; ``batch`` samples go through the networks together.

    ``recipe`` names a branch plan to use in place of the model's own; ``steps`` is how many levels the sampler
    visits, its own number if None; ``guidance`` is the weight of the adapters' estimate, the recipe's if None.
    """

    normals: Sequence[Path]
    masks: Sequence[Path]
    prompt: str
    count: int
    seed: int
    composite: bool
    batch: int
    sampler: SamplerName = "stage"
    recipe: RecipeName | None = None
    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Method:
    """How a job's samples are painted: everything of it that is not a file, resolved for a model.

    ``own_steps`` is whether ``steps`` is the sampler's own number for the recipe.
    """

    prompt: str
    sampler: SamplerName
    recipe: Recipe
    steps: int
    own_steps: bool


def resolve(job: Job, model: ModelSpec) -> Method:
    """How ``model`` is to paint ``job``.

    Raises:
        PromptError: the model does not know the prompt.
        InputError: recipe or guidance do not fit the model, or the sampler cannot take that many steps.
    """
    if job.prompt not in model.prompts:
        raise PromptError(f"unknown prompt {job.prompt!r}: use one of {', '.join(sorted(model.prompts))}")
    recipe = model.recipe.named(job.recipe) if job.recipe else model.recipe
    if job.guidance is not None:
        if not SAMPLERS[job.sampler].guided or model.prompts[job.prompt] is None:
            raise InputError(
                f"`guidance` weighs adapters, of which sampler `{job.sampler}` with prompt {job.prompt!r} has none",
                "leave it out",
            )
        recipe = recipe.guided(job.guidance)
    steps = steps_of(job.sampler, recipe, job.steps)
    return Method(job.prompt, job.sampler, recipe, steps, steps == SAMPLERS[job.sampler].steps(recipe))
