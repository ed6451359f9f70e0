"""DPM-Solver++ and UniPC in STAGE's loop: its formulas, the order it converges with, and where it starts anew."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from closed_form import net_a
from diffusers import UniPCMultistepScheduler

from stage_rt.errors import InputError
from stage_rt.estimator import Condition
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.run.job import Job, resolve
from stage_rt.sampler import sample
from stage_rt.slots import Tables
from stage_rt.solvers import Drawn

SHAPE = (2, 4, 6, 6)
PLAIN = Recipe(name="plain", only_intervals=())
SOLVERS = ("dpmpp-2m", "dpmpp-2m-sde", "unipc")
MEAN, DEVIATION = 0.3, 0.5
STOP, CALLS = 199, (27, 52, 102, 202)
"""A level that every schedule of `PLAIN` visits: below it are too few for steps to become ever smaller."""
CONDITION = Condition(np.zeros((1, 1), np.float32), None)


def scene(mask=1.0):
    noise = PhiloxNoise([3, 4])
    clean = noise.encode(SHAPE).astype(np.float64)
    return clean, np.full((2, 1, 6, 6), mask), noise


def gaussian(recipe):
    """The noise estimate that is exact for data of one normal distribution."""
    abar = recipe.levels.abar

    def denoise(x, i, mask, branch):
        variance = abar[i] * DEVIATION**2 + 1 - abar[i]
        return np.sqrt(1 - abar[i]) * (x - np.sqrt(abar[i]) * MEAN) / variance

    return denoise


def states(recipe, denoise, mask=1.0):
    """The state before the loop and after every step, by the level that it stands at."""
    clean, cells, noise = scene(mask)
    found = {int(recipe.schedule.timesteps[-1]): noise.initial(SHAPE).astype(np.float64)}
    targets = dict(zip(recipe.schedule.timesteps.tolist(), recipe.schedule.targets.tolist(), strict=True))

    def keep(i, state):
        found[targets[i]] = state.copy()

    sample(denoise, clean, cells, recipe=recipe, noise=noise, callback=keep)
    return found


def flow_error(recipe):
    """How far from the probability flow's own solution the state at level `STOP` is."""
    found = states(recipe, gaussian(recipe))
    top, abar = max(found), recipe.levels.abar
    spread = np.sqrt(abar * DEVIATION**2 + 1 - abar)
    exact = np.sqrt(abar[STOP]) * MEAN + spread[STOP] / spread[top] * (found[top] - np.sqrt(abar[top]) * MEAN)
    return float(np.abs(found[STOP] - exact).max())


@pytest.mark.parametrize(("solver", "order", "most"), [("dpmpp-2m", 2, 1e-4), ("unipc", 3, 2e-6)])
def test_it_converges_with_its_order(solver, order, most):
    """At least: a corrector's order is one more than its predictor's, and this flow is kinder than most."""
    errors = [flow_error(PLAIN.respaced(calls).solved(solver)) for calls in CALLS]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < most, errors
    assert (orders > order - 0.4).all(), (errors, orders)


def test_without_its_history_it_is_of_order_one(monkeypatch):
    monkeypatch.setattr(
        "stage_rt.recipe.extrapolations", lambda solver, schedule, only: (Drawn(),) * len(schedule)
    )
    errors = [flow_error(PLAIN.respaced(calls).solved("dpmpp-2m")) for calls in CALLS]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 0.7).all()
    assert (orders < 1.3).all()


@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-2m-sde"])
def test_every_step_is_the_papers(solver):
    """Algorithm 2 of arXiv:2211.01095 and its SDE form, written anew with their alpha, sigma and lambda."""
    recipe = PLAIN.respaced(20).solved(solver)
    found = states(recipe, net_a)
    noise, levels = scene()[2], recipe.schedule.timesteps[::-1].tolist()
    alpha = np.sqrt(recipe.levels.abar)
    sigma = np.sqrt(1 - recipe.levels.abar)
    lam = np.log(alpha / sigma)
    x, before, h_before = noise.initial(SHAPE).astype(np.float64), None, None
    for s, t in pairwise(levels):
        x0 = (x - sigma[s] * net_a(x, s, np.ones((2, 1, 6, 6)), Branch.AWARE)) / alpha[s]
        h = lam[t] - lam[s]
        d = x0 if before is None else (1 + h / (2 * h_before)) * x0 - h / (2 * h_before) * before
        if solver == "dpmpp-2m":
            x = sigma[t] / sigma[s] * x - alpha[t] * (np.exp(-h) - 1) * d
        else:
            z = noise.posterior(s, SHAPE)
            x = sigma[t] / sigma[s] * np.exp(-h) * x + alpha[t] * (1 - np.exp(-2 * h)) * d
            x = x + sigma[t] * np.sqrt(1 - np.exp(-2 * h)) * z
        before, h_before = x0, h
        np.testing.assert_allclose(found[t], x, atol=1e-10, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("only", [(), ((400, 699),)])
def test_unipc_is_that_of_diffusers(only):
    """Which keeps the corrected state: every state before a call, in float64, begun anew in every branch."""
    recipe = Recipe(name="plain", only_intervals=only).respaced(20).solved("unipc")
    found, levels = states(recipe, net_a), recipe.schedule.timesteps[::-1].tolist()
    begun = 0
    for n, (s, t) in enumerate(pairwise([*levels, -1])):
        if not n or recipe.branch(s) is not recipe.branch(levels[n - 1]):
            peer, x = diffusers_unipc(recipe, levels[n:]), torch.from_numpy(found[s])
            begun += 1
        eps = net_a(x.numpy(), s, np.ones((2, 1, 6, 6)), recipe.branch(s))
        x = peer.step(torch.from_numpy(eps), s, x).prev_sample
        np.testing.assert_allclose(found[t], x.numpy(), atol=1e-9, rtol=1e-9, err_msg=f"{s} to {t}")
    assert begun == 1 + 2 * len(only)


def diffusers_unipc(recipe, levels):
    peer = UniPCMultistepScheduler(solver_order=2, solver_type="bh2", prediction_type="epsilon")
    peer.set_timesteps(len(levels))
    abar = recipe.levels.abar[levels]
    peer.timesteps = torch.tensor(levels)
    peer.sigmas = torch.tensor([*np.sqrt((1 - abar) / abar), 0.0], dtype=torch.float64)
    return peer


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_of_first_order_where_the_branch_changes_and_at_both_ends(solver):
    recipe = Recipe.authors().respaced(30).solved(solver)
    levels, drawn = recipe.schedule.timesteps.tolist(), recipe.extrapolations
    anew = []
    for k, (level, weights) in enumerate(zip(levels, drawn, strict=True)):
        ends = k in (0, len(levels) - 1)
        switched = not ends and recipe.branch(level) is not recipe.branch(levels[k + 1])
        anew.append(k == len(levels) - 1 or switched)
        assert (weights == (0, 0)) == (ends or switched), level
    assert sum(weights == (0, 0) for weights in drawn) == 6
    assert {199, 299, 400, 699, 800} <= set(levels)
    # Nothing of another branch is looked back at: the third estimate is at least two steps behind a new start.
    for k, weights in enumerate(drawn):
        assert (weights.far != 0) == (solver == "unipc" and k > 0 and not any(anew[k : k + 2])), levels[k]


def test_of_first_order_the_sde_is_the_loop_itself():
    plain, solved = Recipe.authors().respaced(30), Recipe.authors().respaced(30).solved("dpmpp-2m-sde")
    assert solved.coefficients == plain.coefficients
    assert plain.extrapolations == ((0, 0),) * 30


@pytest.mark.parametrize("solver", SOLVERS)
def test_outside_the_mask_it_ends_as_ever(solver):
    clean, mask, noise = scene(0.0)
    mask[:, :, 2:4, 2:4] = 1
    inside = np.broadcast_to(mask > 0, SHAPE)
    plain, solved = (
        sample(net_a, clean, mask, recipe=recipe, noise=noise)
        for recipe in (Recipe.authors().respaced(30), Recipe.authors().respaced(30).solved(solver))
    )
    np.testing.assert_array_equal(solved[~inside], plain[~inside])
    assert np.abs(solved - plain)[inside].min() > 1e-6
    assert np.isfinite(solved).all()


def test_float32_takes_the_compiled_step_and_agrees():
    recipe = Recipe.authors().respaced(30).solved("dpmpp-2m")
    clean, mask, noise = scene()
    wide = sample(net_a, clean, mask, recipe=recipe, noise=noise)
    narrow = sample(net_a, clean.astype(np.float32), mask.astype(np.float32), recipe=recipe, noise=noise)
    np.testing.assert_allclose(narrow, wide, atol=2e-4, rtol=2e-4)


def test_the_default_says_nothing_of_a_solver():
    assert "solver" not in Recipe.authors().model_dump_json()
    assert "dpmpp-2m" in Recipe.authors().solved("dpmpp-2m").model_dump_json()
    assert Recipe.authors().solved("dpmpp-2m").named("paper").solver == "dpmpp-2m"


def test_slots_have_no_room_for_a_history(small_spec):
    tables = Tables(small_spec, None, 1)
    latent = (1, small_spec.latent_channels, small_spec.latent_size, small_spec.latent_size)
    clean, mask = np.zeros(latent, np.float32), np.ones((1, 1, *latent[2:]), np.float32)
    recipe = small_spec.recipe.solved("dpmpp-2m")
    with pytest.raises(InputError, match="solver `dpmpp-2m` keeps a history, for which slots have no room"):
        tables.check(
            0,
            Condition(np.zeros((1, 1), np.float32), None),
            clean,
            mask,
            recipe,
            PhiloxNoise([1]),
            None,
            None,
        )


@pytest.fixture
def small_spec():
    from stage_rt.spec import ModelSpec

    return ModelSpec(
        image_size=16,
        latent_size=8,
        latent_scale=1,
        tokens=1,
        context_dim=1,
        recipe=PLAIN,
        prompts={"tile+crack": None},
    )


def test_a_job_may_choose_it_for_stages_own_loop_alone(small_spec):
    def job(**options):
        return Job(
            [], [], "tile+crack", 1, 0, composite=True, batch=1, steps=20, solver="dpmpp-2m", **options
        )

    assert resolve(job(), small_spec).recipe == small_spec.recipe.solved("dpmpp-2m")
    with pytest.raises(
        InputError, match="`solver` is of STAGE's own loop, not of sampler `sdas`: leave it out"
    ):
        resolve(job(sampler="sdas"), small_spec)
