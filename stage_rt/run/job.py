"""What a run is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stage_rt.errors import InputError, PromptError
from stage_rt.images.masks import AS_IT_IS, Reading
from stage_rt.names import RecipeName, SamplerName, SolverName, ViewName
from stage_rt.noise import ATTEMPT_BITS
from stage_rt.recipe import Recipe
from stage_rt.run.writer import check_type, type_of
from stage_rt.samplers import SAMPLERS, check_sampler, recipe_of, steps_of
from stage_rt.spec import ModelSpec, PromptDefaults, RegionView


@dataclass(frozen=True)
class Job:
    """What the user asked for; ``batch`` samples go through the networks together.

    ``recipe`` names a branch plan to use in place of the model's own; ``steps`` is how many levels the sampler
    visits, its own number if None, the fewest that were measured (`stage_rt.run.fewest`) if ``auto``; ``guidance`` is
    the weight of the adapters' estimate, the prompt's or else the recipe's if None, ``prompt_guidance`` that of the
    prompt against good surface. ``solver`` makes the transitions of STAGE's loop, the recipe's own if None. ``view``
    is how photographs are seen, as the model was trained if None. A region of which less than ``min_fill`` of the
    label was painted, the prompt's own if None, is painted again up to ``retries`` times; a pair that stays below is
    left out if ``strict``.
    Without ``rim``, whatever the prompt's own is, no pixel beyond a label changes where regions are painted, and a
    feather around it where photographs are painted whole.
    ``augment`` makes every label from the masks instead of taking one as it is (`stage_rt.run.supply`), inside the
    object that ``objects``, masks of the photographs, show. ``reading`` says how grey values of masks are read.
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
    steps: int | Literal["auto"] | None = None
    guidance: float | None = None
    prompt_guidance: float | None = None
    solver: SolverName | None = None
    view: ViewName | None = None
    min_fill: float | None = None
    retries: int = 5
    strict: bool = False
    rim: bool = True
    augment: bool = False
    objects: Sequence[Path] = ()
    reading: Reading = AS_IT_IS


@dataclass(frozen=True)
class Method:
    """How a job's samples are painted: everything of it that is not a file, resolved for a model.

    ``own_steps`` is whether ``steps`` is the sampler's own number for the recipe. ``region`` is None where
    photographs are painted whole, ``min_fill`` is 0 where every pair is kept as it comes, ``rim`` empty where defects
    end at their labels. The networks are told of labels ``outset`` of their pixels wider than they are.
    """

    prompt: str
    sampler: SamplerName
    recipe: Recipe
    steps: int
    own_steps: bool
    region: RegionView | None = None
    min_fill: float = 0.0
    retries: int = 0
    rim: tuple[float, ...] = ()
    outset: float = 0.0


def resolve(job: Job, model: ModelSpec) -> Method:
    """How ``model`` is to paint ``job``.

    Raises:
        PromptError: the model does not know the prompt, or its pairs can have no folder of their own.
        InputError: sampler, recipe or guidance do not fit the model, or the sampler cannot take that many steps.
    """
    if job.prompt not in model.prompts:
        raise PromptError(f"unknown prompt {job.prompt!r}", _known(job.prompt, model.prompts))
    check_type(job.prompt)
    if not job.composite and model.seen(job.view):
        raise InputError(
            "without compositing the result is the decoded picture of a whole photograph",
            "add `--view whole`",
        )
    check_sampler(job.sampler, model)
    defaults = model.defaults.get(job.prompt, PromptDefaults())
    recipe = model.recipe.named(job.recipe) if job.recipe else model.recipe
    if job.guidance is not None:
        if not SAMPLERS[job.sampler].guided or model.prompts[job.prompt] is None:
            raise InputError(
                f"`guidance` weighs adapters, of which sampler `{job.sampler}` with prompt {job.prompt!r} has none",
                "leave it out",
            )
        recipe = recipe.guided(job.guidance)
    elif defaults.guidance is not None and job.recipe is None:
        recipe = recipe.guided(defaults.guidance)
    if job.prompt_guidance is not None:
        recipe = recipe.contrasted(job.prompt_guidance)
    else:
        recipe = recipe_of(job.sampler, recipe)
    if job.solver is not None:
        if job.sampler != "stage":
            raise InputError(
                f"`solver` is of STAGE's own loop, not of sampler `{job.sampler}`", "leave it out"
            )
        recipe = recipe.solved(job.solver)
    model.check(recipe)
    min_fill, retries = _refill(job, defaults)
    steps = steps_of(job.sampler, recipe, _fewest(job, defaults) if job.steps == "auto" else job.steps)
    own_steps = steps == SAMPLERS[job.sampler].steps(recipe)
    view = model.seen(job.view)
    measured = view is not None and SAMPLERS[job.sampler].guided
    rim = defaults.rim if job.rim and measured else ()
    outset = defaults.outset if measured and job.recipe is None else 0.0
    return Method(job.prompt, job.sampler, recipe, steps, own_steps, view, min_fill, retries, rim, outset)


def _known(prompt: str, prompts: Iterable[str]) -> str:
    """What to give in place of a prompt that is none: that of its type, if one is."""
    alike = [one for one in prompts if type_of(one).casefold() == type_of(prompt).casefold()]
    return f"did you mean `{alike[0]}`" if len(alike) == 1 else f"use one of {', '.join(sorted(prompts))}"


def _fewest(job: Job, defaults: PromptDefaults) -> int:
    """The fewest steps as they were measured, with nothing but the model's own recipe."""
    levers = {
        "recipe": job.recipe,
        "guidance": job.guidance,
        "prompt_guidance": job.prompt_guidance,
        "solver": job.solver,
        "sampler": None if job.sampler == "stage" else job.sampler,
    }
    if changed := [name for name, value in levers.items() if value is not None]:
        raise InputError(
            "`--steps auto` was measured with the model's own recipe, which "
            f"`--{changed[0].replace('_', '-')}` changes",
            "leave one of them out, or give a number",
        )
    if defaults.steps is None:
        raise InputError(
            f"nobody measured yet how few steps prompt {job.prompt!r} needs",
            "run `stage-rt calibrate` with this engine, or give a number",
        )
    return defaults.steps


def _refill(job: Job, defaults: PromptDefaults) -> tuple[float, int]:
    """The least fill and the retries of a job; both 0 where nothing is asked of a label."""
    least = defaults.min_fill or 0.0 if job.min_fill is None else job.min_fill
    if not 0 <= least <= 1:
        raise InputError(f"`min_fill` must be a share of the label from 0 to 1, not {least}")
    if not 0 <= job.retries < 1 << ATTEMPT_BITS:
        raise InputError(f"`retries` must be from 0 to {(1 << ATTEMPT_BITS) - 1}, not {job.retries}")
    return least, job.retries if least else 0
