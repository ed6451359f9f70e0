"""Fewer steps: what a respaced schedule keeps, and what it is equal to."""

import closed_form
import numpy as np
import pytest
from conftest import Golden
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_rt.errors import InputError
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import sample
from stage_rt.schedule import Schedule

AUTHORS = Recipe.authors()
RECIPES = {"authors": AUTHORS, "paper": Recipe.paper()}
LEVELS = AUTHORS.levels


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_respaced_at_all_levels_is_the_plain_loop_bit_for_bit(recipe: Recipe) -> None:
    assert recipe.respaced(1000) == recipe
    whole = recipe.levels.respaced(1000, recipe.edges)
    assert whole.timesteps.tolist() == list(range(1000))
    assert recipe.table(whole) == recipe.table(recipe.levels) == recipe.coefficients


def test_the_loop_over_a_whole_respaced_schedule_gives_the_same_state_at_every_step(golden: Golden) -> None:
    inputs = golden("in_8x8_b3_tiny_large_blobs")
    states: dict[str, list[np.ndarray]] = {"plain": [], "respaced": []}
    mutant = AUTHORS.model_copy()
    mutant.__dict__["coefficients"] = AUTHORS.table(LEVELS.respaced(1000, AUTHORS.edges))
    for name, recipe in {"plain": AUTHORS, "respaced": mutant}.items():
        sample(
            closed_form.net_a,
            inputs["clean"],
            inputs["mask"],
            recipe=recipe,
            noise=PhiloxNoise(range(len(inputs["clean"]))),
            callback=lambda i, state, name=name: states[name].append(state),  # type: ignore[misc]
        )
    assert len(states["plain"]) == 1000
    assert all(np.array_equal(*pair) for pair in zip(*states.values(), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 1000), st.sampled_from(list(RECIPES.values())))
def test_any_number_of_calls_keeps_every_edge_and_ends_in_single_steps(calls: int, recipe: Recipe) -> None:
    schedule = recipe.respaced(calls).schedule
    visited = schedule.timesteps.tolist()
    assert len(visited) == len(set(visited)) == calls
    assert visited == sorted(visited)
    assert {0, 1, 999, *recipe.edges} <= set(visited)
    assert schedule.targets.tolist() == [-1, *visited[:-1]]
    for i, target in zip(visited, schedule.targets.tolist(), strict=True):
        covered = range(target + 1, i + 1)
        assert len({recipe.branch(step) for step in covered}) == 1
        assert len({recipe.ema(step) == 0 for step in covered}) == 1


@pytest.mark.parametrize("calls", [50, 100, 250])
def test_the_levels_are_spread_evenly(calls: int) -> None:
    strides = np.diff(AUTHORS.respaced(calls).schedule.timesteps)
    assert strides[0] == 1
    assert strides.max() <= 1000 / calls * 1.25
    assert strides[1:].min() >= 1000 / calls * 0.7


def composed(schedule: Schedule, top: int, bottom: int) -> tuple[float, float, float]:
    """Weights of ``x0`` and ``x``, and variance, of the single steps from level ``top`` down to ``bottom``."""
    of_x0, of_x, variance = 0.0, 1.0, 0.0
    for k in range(top, bottom, -1):
        of_x0 = schedule.posterior_xt[k] * of_x0 + schedule.posterior_x0[k]
        of_x *= schedule.posterior_xt[k]
        variance = schedule.posterior_xt[k] ** 2 * variance + schedule.posterior_variance[k]
    return of_x0, of_x, variance


@pytest.mark.parametrize("calls", [10, 50, 100, 333, 999])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_respaced_step_is_the_composition_of_its_single_steps(recipe: Recipe, calls: int) -> None:
    """For a fixed ``x0``, in float64 (DDIM with eta 1, Song et al., ICLR 2021, Eq. 12)."""
    schedule = recipe.respaced(calls).schedule
    for k, (i, target) in enumerate(zip(schedule.timesteps, schedule.targets, strict=True)):
        found = (schedule.posterior_x0[k], schedule.posterior_xt[k], schedule.posterior_variance[k])
        np.testing.assert_allclose(found, composed(recipe.levels, int(i), int(target)), rtol=0, atol=1e-12)


def test_the_last_long_transition_has_the_variance_of_the_posterior_and_not_fasts() -> None:
    """FAST's Lemma 2 multiplies in the reversed order and gets 0.0425 from level 111 to level 1."""
    schedule = LEVELS.at([0, 1, 111])
    assert schedule.posterior_variance[2] == pytest.approx(0.0017, abs=5e-5)


@pytest.mark.parametrize("calls", [10, 100, 500])
def test_a_row_ends_where_the_last_single_step_it_stands_for_ends(calls: int) -> None:
    recipe = AUTHORS.respaced(calls)
    for target, row in zip(recipe.schedule.targets.tolist(), recipe.coefficients, strict=True):
        last = AUTHORS.coefficients[target + 1]
        for name in ("background_signal", "background_noise", "shared_noise", "mix", "blend"):
            assert getattr(row, name) == getattr(last, name)


def test_networks_and_noise_are_asked_at_the_visited_levels() -> None:
    recipe, clean = AUTHORS.respaced(20), np.zeros((1, 4, 4, 4), np.float32)
    asked: list[tuple[int, Branch, float]] = []
    told: list[int] = []

    class Source(PhiloxNoise):
        def posterior(self, i: int, shape: tuple[int, ...]) -> np.ndarray:
            told.append(i)
            return super().posterior(i, shape)

    def denoise(x: np.ndarray, i: int, mask: np.ndarray, branch: Branch) -> np.ndarray:
        asked.append((i, branch, float(mask.min())))
        return x

    mask = np.zeros((1, 1, 4, 4))
    mask[..., 0] = 1
    sample(denoise, clean.astype(np.float64), mask, recipe=recipe, noise=Source([3]))
    visited = recipe.schedule.timesteps[::-1].tolist()
    assert told == [i for i, _, _ in asked] == visited
    assert [branch for _, branch, _ in asked] == [recipe.branch(i) for i in visited]
    assert all(least == 0 for _, branch, least in asked if branch is Branch.ONLY)


def test_an_oracle_reaches_its_answer_in_few_steps() -> None:
    """A denoiser that knows the defect paints it whatever the number of calls; the background stays clean."""
    generator = np.random.default_rng(0)
    clean, defect = generator.standard_normal((2, 2, 4, 8, 8)).astype(np.float32)
    mask = (generator.random((2, 1, 8, 8)) < 0.4).astype(np.float32)
    wanted = mask * defect + (1 - mask) * clean
    for calls in (10, 50, 1000):
        recipe = AUTHORS.respaced(calls)

        def oracle(x: np.ndarray, i: int, handed: np.ndarray, branch: Branch) -> np.ndarray:
            abar = AUTHORS.levels.abar[i]
            return np.asarray((x - np.sqrt(abar) * wanted) / np.sqrt(1 - abar), np.float32)

        final = sample(oracle, clean, mask, recipe=recipe, noise=PhiloxNoise([1, 2]))
        assert np.abs((final - wanted) * mask).max() < 1e-4
        assert np.abs(final - wanted).max() < 0.15


@pytest.mark.parametrize(
    ("timesteps", "edge"), [([0, 1, 150, 299, 450, 999], 400), ([0, 1, 250, 999], 199), ([999], 199)]
)
def test_a_schedule_that_straddles_an_edge_is_refused(timesteps: list[int], edge: int) -> None:
    kept = sorted({*timesteps, *(AUTHORS.edges - {edge})}) if edge == 400 else timesteps
    with pytest.raises(InputError, match=rf"crosses level {edge}, where recipe `authors` changes"):
        AUTHORS.table(LEVELS.at(kept))


@pytest.mark.parametrize("timesteps", [[], [5, 5], [7, 3], [-1, 4], [0, 1000]])
def test_impossible_levels_are_refused(timesteps: list[int]) -> None:
    with pytest.raises(InputError, match="`timesteps` must rise within 0 and 999"):
        LEVELS.at(timesteps)


@pytest.mark.parametrize("calls", [0, 1, 9, 1001, -3])
def test_too_few_and_too_many_calls_are_refused_with_the_range(calls: int) -> None:
    with pytest.raises(InputError, match=r"`steps` must be between 10 and 1000, not"):
        AUTHORS.respaced(calls)


def test_fewer_calls_than_edges_are_refused_with_the_range() -> None:
    edges = [100 * n for n in range(1, 10)] + [100 * n + 50 for n in range(1, 10)]
    intervals = tuple((low + 1, low + 20) for low in edges)
    busy = Recipe(name="busy", only_intervals=intervals)
    assert busy.fewest_calls == len({0, 1, 999, 199, *edges, *(low + 20 for low in edges)})
    with pytest.raises(InputError, match=rf"between {busy.fewest_calls} and 1000, not 20"):
        busy.respaced(20)
    assert len(busy.respaced(busy.fewest_calls).coefficients) == busy.fewest_calls
    with pytest.raises(InputError, match="between 40 and 1000 steps: 39 are asked for"):
        LEVELS.respaced(39, busy.edges)


def test_a_short_recipe_can_be_walked_whole_or_not_at_all() -> None:
    short = Recipe(name="short", steps=8, ema_stop=2, only_intervals=((5, 6),))
    assert short.fewest_calls == 8
    assert short.respaced(8) == short


def test_calls_are_part_of_a_recipe_and_absent_where_they_say_nothing() -> None:
    respaced = AUTHORS.respaced(100)
    assert respaced != AUTHORS
    assert Recipe.model_validate_json(respaced.model_dump_json()) == respaced
    assert "calls" not in AUTHORS.model_dump_json()
    assert respaced.named("paper") == Recipe.paper().respaced(100)
    assert respaced.respaced(1000) == AUTHORS
