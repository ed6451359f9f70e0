"""The whole path, export and ONNX Runtime included, against a run of the authors' own code on a tiny model."""

from typing import Any, NamedTuple

import closed_form
import numpy as np
import pytest
from conftest import Golden
from numpy.typing import NDArray
from two_state import state_of

import stage_rt
from stage_rt.engine import Engine
from stage_rt.recipe import Branch
from stage_rt.sampler import Denoiser, sample

Array = NDArray[Any]

BOUND = 1e-4
"""Largest error allowed, relative to the largest value: the random networks take the state to 64."""


class Inputs(NamedTuple):
    """What the sampler is handed; ``states`` are the recorded ones by network index."""

    clean: Array
    mask: Array
    noise: closed_form.RecordedNoise
    denoise: Denoiser
    states: dict[int, Array]


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < BOUND * np.abs(expected).max()


@pytest.fixture(scope="module")
def stored(golden: Golden) -> dict[str, Array]:
    return golden("tiny_end2end")


@pytest.fixture(scope="module")
def engine(golden: Golden, stored: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The authors' networks, converted, exported, built and opened."""
    weights, adapters = golden("tiny_weights"), golden("mga_weights")
    from ldm_weights import ldm_model

    from stage_rt.engines.build import build
    from stage_rt.export.graphs import export
    from stage_rt.training.folder import save_model

    folder = tmp_path_factory.mktemp("golden")
    save_model(ldm_model(weights, adapters, stored["context"][0]), folder / "model")
    export(folder / "model", folder / "graphs", dtype="fp32")
    build(folder / "graphs", folder / "engine", backend="onnxruntime", batch=[2])
    return stage_rt.load(folder / "engine")


@pytest.fixture(scope="module")
def inputs(stored: dict[str, Array], engine: Engine) -> Inputs:
    """The recorded photographs, encoded, with the recorded noise."""
    generator = np.random.Generator(np.random.PCG64(int(stored["seed"])))
    shape = stored["clean_latent"].shape
    photos = np.ascontiguousarray(stored["image"].transpose(0, 3, 1, 2), dtype=np.float32)
    recipe = engine.spec.model.recipe
    return Inputs(
        clean=engine.encode(photos, generator.standard_normal(shape, dtype=np.float32)),
        mask=stored["mask32"].astype(np.float32),
        noise=closed_form.streamed(generator, shape),
        denoise=engine._executor.denoiser(engine.condition(engine.prompts[0])),
        states={int(i): state_of(stored, row, recipe) for row, i in enumerate(stored["steps"])},
    )


def test_the_clean_latent(stored: dict[str, Array], inputs: Inputs) -> None:
    assert_close(inputs.clean, stored["clean_latent"])


def test_the_decoded_image(stored: dict[str, Array], engine: Engine) -> None:
    assert_close(engine.decode(stored["final_latent"]), stored["decoded"])


def test_steps_that_follow_a_recorded_state(stored: dict[str, Array], engine: Engine, inputs: Inputs) -> None:
    """Steps of both branches; in between the state is put back and the networks are spared."""
    last = engine.spec.model.recipe.steps - 1
    followed = [i for i in inputs.states if i == last or i + 1 in inputs.states]
    assert followed == [999, 800, 799, 699]
    estimates: dict[int, Array] = {}

    def denoise(x: Array, i: int, mask: Array, branch: Branch) -> Array:
        if i not in followed:
            return np.zeros_like(x)
        estimates[i] = inputs.denoise(x, i, mask, branch)
        return estimates[i]

    def compare(i: int, state: Array) -> None:
        if i in followed:
            assert_close(state, inputs.states[i])
        if i in inputs.states:
            state[...] = inputs.states[i]

    recipe = engine.spec.model.recipe
    sample(denoise, inputs.clean, inputs.mask, recipe=recipe, noise=inputs.noise, callback=compare)
    recorded = {int(i): eps for i, eps in zip(stored["eps_steps"], stored["eps"], strict=True)}
    for i in (999, 800):
        assert_close(estimates[i], recorded[i])


@pytest.mark.slow
def test_the_whole_run(stored: dict[str, Array], engine: Engine, inputs: Inputs) -> None:
    states: dict[int, Array] = {}
    estimates: dict[int, Array] = {}

    def denoise(x: Array, i: int, mask: Array, branch: Branch) -> Array:
        estimates[i] = inputs.denoise(x, i, mask, branch)
        return estimates[i]

    final = sample(
        denoise,
        inputs.clean,
        inputs.mask,
        recipe=engine.spec.model.recipe,
        noise=inputs.noise,
        callback=states.__setitem__,
    )
    for i, eps in zip(stored["eps_steps"], stored["eps"], strict=True):
        assert_close(estimates[int(i)], eps)
    for i, state in inputs.states.items():
        assert_close(states[i], state)
    assert_close(final, stored["final_latent"])
    assert_close(engine.decode(final), stored["decoded"])
