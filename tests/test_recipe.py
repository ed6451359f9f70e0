"""Schedule, EMA factor and branch plan against the authors' tables."""

import numpy as np
import pytest
from conftest import Golden
from pydantic import ValidationError

from stage_rt.recipe import Branch, Recipe

AUTHORS = Recipe.authors()


def test_tables_equal_the_authors_buffers(golden: Golden) -> None:
    stored = golden("schedule")
    tables = {
        "betas": AUTHORS.schedule.betas,
        "alphas_cumprod": AUTHORS.schedule.abar,
        "alphas_cumprod_prev": np.concatenate([[1.0], AUTHORS.schedule.abar[:-1]]),
        "posterior_variance": AUTHORS.schedule.posterior_variance,
        "posterior_mean_coef1": AUTHORS.schedule.posterior_x0,
        "posterior_mean_coef2": AUTHORS.schedule.posterior_xt,
    }
    for name, table in tables.items():
        np.testing.assert_allclose(table, stored[name], rtol=2e-7, atol=1e-9, err_msg=name)


def test_coefficients_equal_the_authors_buffers(golden: Golden) -> None:
    stored = golden("schedule")
    steps = AUTHORS.coefficients
    sigma = np.exp(0.5 * stored["posterior_log_variance_clipped"])
    np.testing.assert_allclose(
        [c.sqrt_recip_abar for c in steps], stored["sqrt_recip_alphas_cumprod"], rtol=2e-7
    )
    np.testing.assert_allclose(
        [c.sqrt_recipm1_abar for c in steps], stored["sqrt_recipm1_alphas_cumprod"], rtol=2e-7
    )
    np.testing.assert_allclose([c.sigma for c in steps[1:]], sigma[1:], rtol=1e-6)
    assert steps[0].sigma == 0


def test_zeta_equals_the_authors_factor(golden: Golden) -> None:
    stored = golden("schedule")["ema_alpha"]
    np.testing.assert_allclose([AUTHORS.zeta(i) for i in range(1000)], stored, atol=1e-6)


@pytest.mark.parametrize(
    ("i", "value"),
    [(0, 0.99915), (199, 0.75523836), (400, 0.42448302), (700, 0.08252087), (999, 0.00466010)],
)
def test_signal_variance_at_check_points(i: int, value: float) -> None:
    assert AUTHORS.schedule.abar[i] == pytest.approx(value, abs=5e-9)


@pytest.mark.parametrize(
    ("i", "value"),
    [(999, 1.0), (800, 0.75125), (700, 0.62625), (400, 0.25125), (200, 0.00125), (199, 0.0), (0, 0.0)],
)
def test_ema_factor_in_force_is_zeta_of_the_next_index(i: int, value: float) -> None:
    assert AUTHORS.ema(i) == pytest.approx(value, abs=1e-12)


def test_posterior_ends_in_the_estimate() -> None:
    last = AUTHORS.coefficients[0]
    assert last.posterior_x0 == pytest.approx(1, abs=1e-12)
    assert (last.posterior_xt, last.sigma) == (0.0, 0.0)


@pytest.mark.parametrize(("recipe", "count"), [(AUTHORS, 202), (Recipe.paper(), 301)])
def test_number_of_only_steps(recipe: Recipe, count: int) -> None:
    assert sum(recipe.branch(i) is Branch.ONLY for i in range(recipe.steps)) == count


@pytest.mark.parametrize(("i", "branch"), [(801, "aware"), (800, "only"), (700, "only"), (699, "aware")])
def test_interval_ends_are_inclusive(i: int, branch: str) -> None:
    assert AUTHORS.branch(i) == branch


def test_background_is_prepared_for_the_branch_that_runs_next() -> None:
    before_only, last_only = AUTHORS.coefficients[801], AUTHORS.coefficients[700]
    assert before_only.shared_noise
    assert before_only.background_signal == 0
    assert before_only.blend == 0
    assert before_only.mix > 0
    assert not last_only.shared_noise
    assert last_only.background_signal > 0


def test_json_round_trip_and_equality_ignore_the_tables() -> None:
    again = Recipe.model_validate_json(AUTHORS.model_dump_json())
    assert again.coefficients == AUTHORS.coefficients
    assert Recipe.authors() == AUTHORS
    assert Recipe.paper() != AUTHORS


@pytest.mark.parametrize(
    "change",
    [
        {"only_intervals": ((800, 700),)},
        {"only_intervals": ((0, 1000),)},
        {"ema_stop": 1000},
        {"ema_stop": 0},
    ],
)
def test_impossible_recipes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(AUTHORS.model_dump() | change)


def test_the_masked_preset_fills_its_mask_with_the_only_branch() -> None:
    masked = Recipe.masked()
    assert sum(masked.branch(i) is Branch.ONLY for i in range(1000)) == 700
    assert {c.guidance for c in masked.coefficients} == {2.0}
    assert masked == AUTHORS.named("masked")
    assert masked.named("authors") == AUTHORS
    assert masked.guided(1) != AUTHORS
    assert "guidance" not in AUTHORS.model_dump_json()
    assert Recipe.model_validate_json(masked.model_dump_json()) == masked
    assert len(masked.respaced(100).coefficients) == 100


def test_each_part_of_the_ablation_is_the_baseline_with_one_switch() -> None:
    base, full = Recipe.ablated("baseline"), Recipe.ablated("full")
    assert [c._replace(guidance=1.0) for c in base.coefficients] == [
        c._replace(guidance=1.0) for c in Recipe.ablated("+mga").coefficients
    ]
    assert {c.guidance for c in base.coefficients} == {0.0}
    assert {(c.mix, c.blend, c.free) for c in base.coefficients} == {(0.0, 0.0, 1.0)}
    assert {(c.mix, c.blend, c.free) for c in Recipe.ablated("+aif").coefficients} == {(0.0, 1.0, 0.0)}
    assert sum(c.shared_noise for c in Recipe.ablated("+gd").coefficients) == 202
    assert [c.mix for c in Recipe.ablated("+ema").coefficients][800] == pytest.approx(0.75, abs=2e-3)
    assert full.coefficients == AUTHORS.coefficients
    assert AUTHORS.named("full").coefficients == AUTHORS.coefficients
    assert "aif" not in AUTHORS.model_dump_json()
    for name in ("baseline", "+mga", "+aif", "+gd", "+ema"):
        again = Recipe.model_validate_json(AUTHORS.named(name).model_dump_json())
        assert again.coefficients == Recipe.ablated(name).coefficients


def test_something_has_to_keep_what_is_around_the_mask() -> None:
    with pytest.raises(ValidationError, match="one of aif and blended"):
        Recipe(name="free", only_intervals=(), aif=False, blended=False)
