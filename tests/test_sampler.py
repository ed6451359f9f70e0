"""The loop's own properties: one state for two, what it asks of its callees, what it refuses."""

from typing import Any

import closed_form
import numpy as np
import pytest
import two_state
from numpy.typing import NDArray

from stage_rt import kernels
from stage_rt.errors import BackendError, InputError
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import sample

Array = NDArray[Any]

SHORT = Recipe(name="short", steps=40, ema_stop=8, only_intervals=((28, 32), (12, 16)))
EDGES = Recipe(name="edges", steps=40, ema_stop=8, only_intervals=((35, 39), (0, 4)))


def latents(shape: tuple[int, ...] = (3, 4, 6, 5), dtype: type = np.float64) -> tuple[Array, Array]:
    draws = np.random.default_rng(5)
    mask = draws.random((shape[0], 1, *shape[2:])) < 0.3
    return draws.standard_normal(shape).astype(dtype), mask.astype(dtype)


@pytest.mark.parametrize("recipe", [*closed_form.RECIPES.values(), SHORT, EDGES], ids=lambda r: r.name)
@pytest.mark.parametrize("net", ["A", "B"])
def test_single_state_equals_both_states(recipe: Recipe, net: str) -> None:
    clean, mask = latents()
    noise = closed_form.streamed(np.random.default_rng(1), clean.shape, recipe.steps)
    doubled = closed_form.RecordedNoise(
        noise._initial.astype(np.float64), *([n.astype(np.float64) for n in d] for d in noise._draws.values())
    )
    states: dict[int, Array] = {}
    keep = states.__setitem__
    final = sample(closed_form.NETS[net], clean, mask, recipe=recipe, noise=doubled, callback=keep)

    def compare(i: int, x: Array, aux: Array, ema: Array) -> None:
        expected = aux if recipe.branch(i - 1) is Branch.ONLY else x
        assert np.abs(states[i] - expected).max() <= 1e-12 * max(1, np.abs(expected).max())

    witness = two_state.sample(
        closed_form.NETS[net], clean, mask, recipe=recipe, noise=doubled, callback=compare
    )
    assert np.abs(final - witness).max() <= 1e-12 * max(1, np.abs(witness).max())


def test_fused_kernel_takes_the_same_path_as_arrays() -> None:
    clean, mask = latents(dtype=np.float32)
    philox = PhiloxNoise([1, 2, 3])

    class Plain:
        initial, background = philox.initial, philox.background
        mask, posterior = philox.mask, philox.posterior

    fused = sample(closed_form.net_a, clean, mask, recipe=SHORT, noise=philox)
    plain = sample(closed_form.net_a, clean, mask, recipe=SHORT, noise=Plain())
    np.testing.assert_allclose(fused, plain, atol=2e-5)


def test_mixing_the_estimate_is_nothing_under_a_blend_by_a_hard_mask_and_keeps_the_surroundings_without() -> (
    None
):
    clean, mask = latents(dtype=np.float32)
    hard = {"name": "hard", "steps": 40, "ema_stop": 8, "only_intervals": (), "soft_mask": False}

    def seeing(x: Array, *told: Any) -> Array:
        return closed_form.net_a(x, *told) + 0.3 * x.mean(axis=(2, 3), keepdims=True)

    def painted(**parts: bool) -> Array:
        recipe = Recipe.model_validate(hard | parts)
        return sample(seeing, clean, mask, recipe=recipe, noise=PhiloxNoise([1, 2, 3]))

    blended, both, mixed = painted(aif=False), painted(), painted(blended=False)
    inside = np.broadcast_to(mask == 1, clean.shape)
    assert np.array_equal(blended, both)
    assert np.allclose(mixed[~inside], clean[~inside], atol=1e-6)
    assert not np.allclose(mixed[inside], both[inside], atol=1e-2)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    clean, mask = latents(dtype=np.float32)
    together = sample(closed_form.net_a, clean, mask, recipe=SHORT, noise=PhiloxNoise([7, 8, 9]))
    alone = sample(closed_form.net_a, clean[1:2], mask[1:2], recipe=SHORT, noise=PhiloxNoise([8]))
    assert np.array_equal(together[1:2], alone)


def test_callees_are_handed_what_the_plan_says() -> None:
    clean, mask = latents(dtype=np.float32)
    calls: list[tuple[int, Branch]] = []

    def denoise(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        calls.append((i, branch))
        factor = 0.0 if branch is Branch.ONLY else SHORT.zeta(i + 1)
        np.testing.assert_allclose(handed, mask + factor * (1 - mask), atol=1e-6)
        return np.zeros_like(x)

    steps: list[int] = []
    sample(
        denoise,
        clean,
        mask,
        recipe=SHORT,
        noise=PhiloxNoise([0, 1, 2]),
        callback=lambda i, _: steps.append(i),
    )
    assert calls == [(i, SHORT.branch(i)) for i in reversed(range(40))]
    assert steps == list(reversed(range(40)))


def test_a_label_is_what_adapters_are_told_of_and_nothing_else() -> None:
    clean, mask = latents(dtype=np.float32)
    label = mask * (np.random.default_rng(6).random(mask.shape) < 0.5)
    handed: list[Array] = []

    def denoise(x: Array, i: int, told: Array, branch: Branch) -> Array:
        handed.append(told)
        return closed_form.net_a(x, i, mask, branch)

    noise = PhiloxNoise([0, 1, 2])
    painted = sample(denoise, clean, mask, recipe=SHORT, noise=noise, label=label)

    def deaf(x: Array, i: int, told: Array, branch: Branch) -> Array:
        return closed_form.net_a(x, i, mask, branch)

    np.testing.assert_array_equal(painted, sample(deaf, clean, mask, recipe=SHORT, noise=noise))
    for told, c in zip(handed, reversed(SHORT.coefficients), strict=True):
        np.testing.assert_array_equal(told, label + np.float32(c.mix) * (1 - label))


@pytest.mark.parametrize("recipe", [SHORT, EDGES, Recipe.authors()], ids=lambda r: r.name)
def test_empty_masks_cost_no_call_and_give_what_the_loop_would(recipe: Recipe) -> None:
    clean, mask = latents(dtype=np.float32)
    empty = np.zeros_like(mask)

    def refuse(*_: object) -> Array:
        raise AssertionError("called")

    noise = PhiloxNoise([4, 5, 6])
    free = sample(refuse, clean, empty, recipe=recipe, noise=noise)
    mixed = empty.copy()
    mixed[0] = 1
    looped = sample(closed_form.net_a, clean, mixed, recipe=recipe, noise=noise)
    assert np.array_equal(free[1:], looped[1:])


def test_a_failed_sample_leaves_the_others_alone() -> None:
    clean, mask = latents(dtype=np.float32)

    def failing(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        eps = closed_form.net_a(x, i, handed, branch)
        if i == 20:
            eps[1, 2, 3, 4] = np.nan
        return eps

    broken = sample(failing, clean, mask, recipe=SHORT, noise=PhiloxNoise([1, 2, 3]))
    whole = sample(closed_form.net_a, clean, mask, recipe=SHORT, noise=PhiloxNoise([1, 2, 3]))
    assert not np.isfinite(broken[1]).all()
    assert np.array_equal(broken[[0, 2]], whole[[0, 2]])


def test_wrong_estimate_shape_is_named() -> None:
    clean, mask = latents(dtype=np.float32)
    with pytest.raises(BackendError, match="step 39"):
        sample(lambda x, *_: x[:, :2], clean, mask, recipe=SHORT, noise=PhiloxNoise([1, 2, 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, m: (c[0], m), "shape"),
        (lambda c, m: (c, m[:, :, :-1]), "`mask` must have shape"),
        (lambda c, m: (c, m * 0.5), "only 0 and 1"),
        (lambda c, m: (c, m.astype(np.float64)), "float32"),
        (lambda c, m: (np.where(c == c[0, 0, 0, 0], np.inf, c).astype(np.float32), m), "finite"),
        (lambda c, m: (c.swapaxes(2, 3).copy().swapaxes(2, 3), m), "contiguous"),
    ],
)
def test_wrong_inputs_are_refused(change: Any, message: str) -> None:
    clean, mask = change(*latents(dtype=np.float32))
    with pytest.raises(InputError, match=message):
        sample(closed_form.net_a, clean, mask, recipe=SHORT, noise=PhiloxNoise([1, 2, 3]))


def test_loop_calls_the_kernel_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, mask = latents(dtype=np.float32)
    fused, calls = kernels.fused_step, []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[4].timestep)
        return fused(*arguments)

    monkeypatch.setattr(kernels, "fused_step", counted)
    sample(closed_form.net_a, clean, mask, recipe=SHORT, noise=PhiloxNoise([1, 2, 3]))
    assert calls == list(reversed(range(40)))
