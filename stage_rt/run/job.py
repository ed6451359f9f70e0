"""What a run is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stage_rt.errors import InputError, PromptError
from stage_rt.images.masks import AS_IT_IS, Reading
from stage_rt.method import RETRIES, Method, method_of
from stage_rt.names import RecipeName, SamplerName, SolverName, ViewName
from stage_rt.run.writer import check_type, type_of
from stage_rt.spec import ModelSpec, PromptDefaults


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
    retries: int = RETRIES
    strict: bool = False
    rim: bool = True
    augment: bool = False
    objects: Sequence[Path] = ()
    reading: Reading = AS_IT_IS


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
    defaults = model.defaults.get(job.prompt, PromptDefaults())
    return method_of(
        model,
        job.prompt,
        sampler=job.sampler,
        recipe=model.recipe.named(job.recipe) if job.recipe else None,
        steps=_fewest(job, defaults) if job.steps == "auto" else job.steps,
        guidance=job.guidance,
        prompt_guidance=job.prompt_guidance,
        solver=job.solver,
        view=job.view,
        min_fill=job.min_fill,
        retries=job.retries,
        rim=job.rim,
    )


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
