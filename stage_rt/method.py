"""How a sample is painted: what was measured for its prompt, and what a user sets in place of that."""

from dataclasses import dataclass

from stage_rt.errors import InputError
from stage_rt.names import SamplerName, SolverName, ViewName
from stage_rt.noise import ATTEMPT_BITS
from stage_rt.recipe import Recipe
from stage_rt.samplers import SAMPLERS, check_sampler, recipe_of, steps_of
from stage_rt.spec import ModelSpec, PromptDefaults, RegionView

RETRIES = 5
"""How often a region that was painted too little is painted again, unless somebody says otherwise."""


@dataclass(frozen=True)
class Method:
    """How samples are painted: everything of them that is not a file, resolved for a model.

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


def method_of(
    model: ModelSpec,
    prompt: str,
    *,
    sampler: SamplerName = "stage",
    recipe: Recipe | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    prompt_guidance: float | None = None,
    solver: SolverName | None = None,
    view: ViewName | None = None,
    min_fill: float | None = None,
    retries: int = RETRIES,
    rim: bool = True,
) -> Method:
    """How ``model`` is to paint ``prompt``, which it knows; what is None or True is the prompt's own.

    A ``recipe`` takes the place of the model's own and of the guidance and outset that were measured with it.

    Raises:
        InputError: sampler, recipe or guidance do not fit the model, or the sampler cannot take that many steps.
    """
    check_sampler(sampler, model)
    defaults = model.defaults.get(prompt, PromptDefaults())
    used = model.recipe if recipe is None else recipe
    if guidance is not None:
        if not SAMPLERS[sampler].guided or model.prompts[prompt] is None:
            raise InputError(
                f"`guidance` weighs adapters, of which sampler `{sampler}` with prompt {prompt!r} has none",
                "leave it out",
            )
        used = used.guided(guidance)
    elif defaults.guidance is not None and recipe is None:
        used = used.guided(defaults.guidance)
    used = recipe_of(sampler, used) if prompt_guidance is None else used.contrasted(prompt_guidance)
    if solver is not None:
        if sampler != "stage":
            raise InputError(f"`solver` is of STAGE's own loop, not of sampler `{sampler}`", "leave it out")
        used = used.solved(solver)
    model.check(used)
    least = _least_fill(defaults.min_fill if min_fill is None else min_fill, retries)
    steps = steps_of(sampler, used, steps)
    own_steps = steps == SAMPLERS[sampler].steps(used)
    region = model.seen(view)
    measured = region is not None and SAMPLERS[sampler].guided
    fading = defaults.rim if rim and measured else ()
    outset = defaults.outset if measured and recipe is None else 0.0
    return Method(
        prompt, sampler, used, steps, own_steps, region, least, retries if least else 0, fading, outset
    )


def _least_fill(share: float | None, retries: int) -> float:
    """The least share of a label that is to be painted; 0 where nothing is asked of it."""
    least = share or 0.0
    if not 0 <= least <= 1:
        raise InputError(f"`min_fill` must be a share of the label from 0 to 1, not {least}")
    if not 0 <= retries < 1 << ATTEMPT_BITS:
        raise InputError(f"`retries` must be from 0 to {(1 << ATTEMPT_BITS) - 1}, not {retries}")
    return least
