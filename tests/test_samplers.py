"""The other samplers against recorded trajectories, and what they ask of their callees."""

import hashlib
from typing import Any

import numpy as np
import pytest
from conftest import Golden
from numpy.typing import NDArray

from stage_rt.errors import BackendError, InputError
from stage_rt.names import SamplerName
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.samplers import SAMPLERS, find, steps_of
from stage_rt.samplers.anomalydiffusion import anomalydiffusion
from stage_rt.samplers.repaint import _walk, repaint
from stage_rt.samplers.sdas import sdas
from stage_rt.schedule import Schedule

Array = NDArray[Any]
BOUND = 2e-5
SHORT = Recipe(name="short", steps=30, ema_stop=8, only_intervals=())


class Streamed:
    """Draws from a NumPy generator in the order they are asked for, and their digest."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self.digest = hashlib.sha256()

    def _draw(self, shape: tuple[int, ...]) -> Array:
        drawn = self._generator.standard_normal(shape, dtype=np.float32)
        self.digest.update(drawn.tobytes())
        return drawn

    initial = _draw

    def background(self, i: int, shape: tuple[int, ...]) -> Array:
        return self._draw(shape)

    mask = posterior = background


def wave(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    c = np.arange(x.shape[1], dtype=x.dtype).reshape(1, -1, 1, 1)
    return np.asarray(i / (i + 60) * x + 0.3 * np.sin(x + 0.01 * i + 0.5 * c))


def wave_and_variance(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    return np.concatenate([wave(x, i, mask, branch), np.sin(2 * x + 0.003 * i)], axis=1)


def latents(shape: tuple[int, ...] = (3, 4, 6, 5)) -> tuple[Array, Array]:
    draws = np.random.default_rng(5)
    mask = draws.random((shape[0], 1, *shape[2:])) < 0.3
    return draws.standard_normal(shape).astype(np.float32), mask.astype(np.float32)


def ripple(x: Array, i: int, mask: Array) -> Array:
    """A foreground network."""
    return np.asarray(mask * np.cos(x + 0.02 * i), dtype=x.dtype)


def run(
    name: SamplerName, *arguments: Any, recipe: Recipe, steps: int | None = None, **options: Any
) -> Array:
    """A sampler of the table over ``steps`` levels, its own number if None."""
    way = SAMPLERS[name]
    needed = {"foreground": ripple} if way.system == "fast" else {}
    steps = way.steps(recipe) if steps is None else steps
    return way.run(*arguments, recipe=recipe, steps=steps, **(needed | options))


def test_anomalydiffusion_at_every_logged_iteration(golden: Golden) -> None:
    stored = golden("ad_ddim200_plain_16x16")
    noise, states, times = Streamed(int(stored["seed"])), {}, []

    def denoise(x: Array, i: int, mask: Array, branch: Branch) -> Array:
        times.append(i)
        return wave(x, i, mask, branch)

    final = anomalydiffusion(
        denoise,
        stored["x0"],
        stored["mask"],
        recipe=Recipe.authors(),
        noise=noise,
        steps=200,
        callback=lambda k, state: states.__setitem__(199 - k, state),
    )
    assert times == sorted(stored["ddim_timesteps"].tolist(), reverse=True)
    assert noise.digest.hexdigest() == str(stored["sha"])
    for row, n in enumerate(stored["iters"]):
        assert np.abs(states[int(n)] - stored["x"][row]).max() <= BOUND
    assert np.abs(final - stored["final"]).max() <= BOUND


@pytest.mark.parametrize("s", ["0.0", "0.15"])
def test_sdas_ends_where_realnet_s_does(golden: Golden, s: str) -> None:
    stored = golden(f"sdas_ddim20_s{s}_clip")
    recipe = Recipe.authors().model_copy()
    # Theirs is linear in beta, in pixels, and learned its variance.
    recipe.__dict__["levels"] = Schedule(np.linspace(1e-4, 0.02, 1000))
    noise, times = Streamed(int(stored["seed"])), []

    def denoise(x: Array, i: int, mask: Array, branch: Branch) -> Array:
        times.append(i)
        return wave_and_variance(x, i, mask, branch)

    shape = stored["final"].shape
    final = sdas(
        denoise,
        np.zeros(shape, np.float32),
        np.zeros((shape[0], 1, *shape[2:]), np.float32),
        recipe=recipe,
        noise=noise,
        steps=20,
        strength=(float(stored["s"]), float(stored["s"])),
        clamp=1.0,
    )
    assert times == stored["timestep_map"][::-1].tolist()
    assert noise.digest.hexdigest() == str(stored["sha"])
    assert np.abs(final - stored["final"]).max() <= BOUND


def test_repaint_walks_as_the_paper_has_it() -> None:
    walk = list(_walk(250))
    downs, ups = [level for level, down in walk if down], [level for level, down in walk if not down]
    assert (len(downs), len(ups)) == (2410, 2160)
    assert walk[0] == (249, True)
    assert walk[-1] == (0, True)
    level = 250
    for to, down in walk:
        assert to == level - 1 if down else to == level
        level = to if down else to + 1
    # The top twenty levels are gone down once to the first jump, every other stretch ten times.
    assert [downs.count(n) for n in (249, 241, 240, 231, 230, 5, 1, 0)] == [1, 1, 10, 10, 10, 10, 10, 1]


def test_repaint_is_the_posterior_when_it_never_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every level, without jumps and with a full mask, it is plain ancestral sampling."""
    monkeypatch.setattr(
        "stage_rt.samplers.repaint._walk", lambda levels: [(k, True) for k in reversed(range(levels))]
    )
    clean, mask = latents()
    noise = PhiloxNoise([1, 2, 3])
    found = repaint(wave, clean, np.ones_like(mask), recipe=SHORT, noise=noise, steps=SHORT.steps)
    x = noise.initial(clean.shape).astype(np.float64)
    for i in reversed(range(SHORT.steps)):
        abar = SHORT.schedule.abar[i]
        x0 = (x - np.sqrt(1 - abar) * wave(x, i, mask, Branch.AWARE)) / np.sqrt(abar)
        deviation = np.sqrt(SHORT.schedule.posterior_variance[i])
        x = (
            SHORT.schedule.posterior_x0[i] * x0
            + SHORT.schedule.posterior_xt[i] * x
            + deviation * noise.posterior(i, clean.shape)
        )
    np.testing.assert_allclose(found, x, atol=2e-5)


def test_repaint_keeps_the_level_of_the_noise() -> None:
    """A denoiser that knows the answer leads to it through every jump, and sees the background at its level."""
    recipe = Recipe(name="steep", steps=30, beta_start=0.01, beta_end=0.6, ema_stop=8, only_intervals=())
    clean, mask = latents((64, 4, 6, 5))
    seen: list[tuple[int, float]] = []

    def oracle(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        abar = recipe.schedule.abar[i]
        eps = (x - np.sqrt(abar) * clean) / np.sqrt(1 - abar)
        seen.append((i, float(eps.std())))
        return np.asarray(eps, dtype=np.float32)

    final = repaint(oracle, clean, mask, recipe=recipe, noise=PhiloxNoise(range(64)), steps=30)
    assert np.abs(final - clean).max() <= 1e-4
    assert len(seen) == SAMPLERS["repaint"].calls(recipe, 30) == 30 + 2 * 9 * 10
    # The first state is pure noise whatever the level.
    assert all(abs(deviation - 1) < 0.06 for _, deviation in seen[1:])


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_do_not_depend_on_their_neighbours(name: SamplerName) -> None:
    clean, mask = latents()
    together = run(name, wave, clean, mask, recipe=SHORT, noise=PhiloxNoise([7, 8, 9]))
    alone = run(name, wave, clean[1:2], mask[1:2], recipe=SHORT, noise=PhiloxNoise([8]))
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    assert np.array_equal(together[1:2], alone)


@pytest.mark.parametrize("steps", [2, 3, 10, 30, 400, 1000])
@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_counts_the_calls_down(name: SamplerName, steps: int) -> None:
    recipe = Recipe(name="any", steps=steps, ema_stop=1, only_intervals=())
    clean, mask = latents((1, 1, 2, 2))
    mask[:] = 1
    calls: list[int] = []
    left: list[int] = []

    def denoise(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        assert 0 <= i < steps
        calls.append(i)
        return np.zeros_like(x)

    run(
        name,
        denoise,
        clean,
        mask,
        recipe=recipe,
        noise=PhiloxNoise([1]),
        callback=lambda k, _: left.append(k),
    )
    sampler = SAMPLERS[name]
    assert len(calls) == sampler.calls(recipe, sampler.steps(recipe))
    assert left == list(reversed(range(len(calls))))


def test_calls_of_the_published_settings() -> None:
    calls = {
        name: sampler.calls(Recipe.authors(), sampler.steps(Recipe.authors()))
        for name, sampler in SAMPLERS.items()
    }
    assert calls == {
        "stage": 1000,
        "fast": 50,
        "fast-published": 50,
        "anogen": 50,
        "repaint": 2410,
        "anomalydiffusion": 200,
        "sdas": 20,
    }


def test_sdas_draws_its_strength_evenly() -> None:
    shape = (400, 1, 2, 2)
    zeros, mask = np.zeros(shape, np.float32), np.zeros((400, 1, 2, 2), np.float32)
    noise = PhiloxNoise(range(400))
    recipe = Recipe(name="two", steps=2, ema_stop=1, only_intervals=())

    def none(x: Array, *_: object) -> Array:
        return np.zeros_like(x)

    def first(strength: tuple[float, float]) -> Array:
        states: list[Array] = []
        sdas(
            none,
            zeros,
            mask,
            recipe=recipe,
            noise=noise,
            steps=2,
            strength=strength,
            callback=lambda k, x: states.append(x),
        )
        return states[0].astype(np.float64)

    plain, strong = first((0.0, 0.0)), first((3.0, 3.0))
    one = strong - plain  # sqrt(1 + s) - 1 is 1 for s = 3
    part = ((first((0.1, 0.2)) - plain) * one).sum(axis=(1, 2, 3)) / (one**2).sum(axis=(1, 2, 3))
    s = (1 + part) ** 2 - 1
    assert 0.1 <= s.min() < 0.11
    assert 0.19 < s.max() <= 0.2
    assert abs(s.mean() - 0.15) < 0.005


@pytest.mark.parametrize("name", ["fast", "fast-published", "anogen", "repaint", "anomalydiffusion", "sdas"])
def test_wrong_shapes_are_named(name: SamplerName) -> None:
    clean, mask = latents()
    noise = PhiloxNoise([1, 2, 3])
    with pytest.raises(BackendError, match="the denoiser returned shape"):
        run(name, lambda x, *_: x[:, :2], clean, mask, recipe=SHORT, noise=noise)
    with pytest.raises(InputError, match="`mask` must hold only 0 and 1"):
        run(name, wave, clean, mask / 2, recipe=SHORT, noise=noise)


@pytest.mark.parametrize("name", ["fast", "repaint", "anomalydiffusion"])
def test_the_background_reaches_the_result(name: SamplerName) -> None:
    """Where nothing is masked the last state is near the clean latent, whatever is masked beside it."""
    clean, mask = latents()
    abar = SHORT.schedule.abar

    def denoise(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        return np.asarray(
            (x - np.sqrt(abar[i]) * clean * (1 - mask)) / np.sqrt(1 - abar[i]), dtype=np.float32
        )

    final = run(name, denoise, clean, mask, recipe=SHORT, noise=PhiloxNoise([1, 2, 3]))
    assert np.abs((final - clean) * (1 - mask)).max() < 0.15


@pytest.mark.parametrize("steps", [10, 37, 250, 999])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps_is_taken_exactly(name: SamplerName, steps: int) -> None:
    """Every level is visited from the highest down; only RePaint goes back up in between."""
    clean, mask = latents((1, 1, 2, 2))
    mask[:] = 1
    levels: list[int] = []

    def denoise(x: Array, i: int, *_: object) -> Array:
        levels.append(i)
        return np.zeros_like(x)

    run(name, denoise, clean, mask, recipe=Recipe.authors(), noise=PhiloxNoise([1]), steps=steps)
    assert len(set(levels)) == steps
    assert len(levels) == SAMPLERS[name].calls(Recipe.authors(), steps)
    assert 0 <= min(levels) <= 1
    assert max(levels) >= 1000 - 1000 // steps - 1


@pytest.mark.parametrize("steps", [0, 1, -5, 9, 1001, True, 10.0, "100"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_out_of_range_are_refused_with_the_range(name: str, steps: Any) -> None:
    with pytest.raises(
        InputError, match=rf"sampler `{name}` takes from 10 to (1000|999) steps, not {steps!r}$"
    ):
        steps_of(name, Recipe.authors(), steps)


def test_unknown_samplers_are_refused_with_the_names() -> None:
    with pytest.raises(InputError, match="unknown sampler 'ddim': use one of stage, fast"):
        find("ddim")


def test_the_models_own_number_of_steps_is_the_default() -> None:
    assert steps_of("stage", Recipe.authors(), None) == 1000
    assert steps_of("stage", Recipe.authors().respaced(50), None) == 50
    assert steps_of("sdas", Recipe.authors().respaced(50), None) == 20
