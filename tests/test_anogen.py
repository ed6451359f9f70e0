"""AnoGen's sampler: boxes, and DDIM without noise of its own."""

from typing import Any

import numpy as np
import pytest
from closed_engine import closed_engine
from mock_networks import HostBackend
from numpy.typing import NDArray

from stage_rt.errors import InputError
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.run.job import Job, resolve
from stage_rt.samplers.anogen import anogen, boxes

Array = NDArray[Any]
RECIPE = Recipe.authors()
LEVELS = RECIPE.levels


def test_boxes_are_those_of_the_parts_of_each_mask() -> None:
    mask = np.zeros((3, 1, 8, 8), np.float32)
    mask[0, 0, [1, 2, 3], [1, 2, 3]] = 1  # a diagonal
    mask[0, 0, 6, 6:8] = 1
    mask[1, 0, 2:5, 3:6] = 1
    expected = np.zeros_like(mask)
    expected[0, 0, 1:4, 1:4] = expected[0, 0, 6, 6:8] = 1
    expected[1] = mask[1]
    found = boxes(mask)
    assert found.dtype == mask.dtype
    assert np.array_equal(found, expected)
    assert np.array_equal(boxes(found), found)


def scene() -> tuple[Array, Array]:
    clean = np.random.default_rng(3).standard_normal((2, 3, 8, 8))
    mask = np.zeros((2, 1, 8, 8))
    mask[:, 0, [2, 3, 4], [2, 3, 4]] = 1
    return clean, mask


def test_it_is_ddim_around_which_the_background_is_put_back() -> None:
    """Song et al., ICLR 2021, Eq. 12 with eta 0, as CompVis' sampler runs it: ``1, 21, .. 981`` for fifty calls."""
    clean, mask = scene()
    noise, seen = PhiloxNoise([1, 2]), []

    def denoise(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        seen.append(i)
        return np.asarray(i / (i + 60) * x + 0.3 * np.sin(x))

    found = anogen(denoise, clean, mask, recipe=RECIPE, noise=noise, steps=50)
    assert seen == list(range(981, 0, -20))
    box, x = boxes(mask), noise.initial(clean.shape)
    for k, i in zip(reversed(range(50)), list(seen), strict=True):
        abar, before = LEVELS.abar[i], LEVELS.abar[max(i - 20, 0)]
        kept = np.sqrt(abar) * clean + np.sqrt(1 - abar) * noise.background(k, clean.shape)
        x = box * x + (1 - box) * kept
        eps = denoise(x, i, mask, Branch.AWARE)
        x = np.sqrt(before) * (x - np.sqrt(1 - abar) * eps) / np.sqrt(abar) + np.sqrt(1 - before) * eps
    # The draws are float32.
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-6)


def test_a_denoiser_that_knows_the_answer_reaches_it() -> None:
    clean, mask = scene()
    answer = np.random.default_rng(9).standard_normal(clean.shape)

    def knows(x: Array, i: int, handed: Array, branch: Branch) -> Array:
        abar = LEVELS.abar[i]
        return np.asarray((x - np.sqrt(abar) * answer) / np.sqrt(1 - abar))

    found = anogen(knows, clean, mask, recipe=RECIPE, noise=PhiloxNoise([1, 2]), steps=50)
    # Level 0, where DDIM ends, is not quite the clean latent.
    assert np.abs(found - answer)[:, :, 2:5, 2:5].max() < 0.1


def test_it_weighs_the_prompt_ten_times_unless_told_otherwise() -> None:
    backend = HostBackend()  # type: ignore[no-untyped-call]
    engine = closed_engine(backend)
    images, masks = np.zeros((1, 3, 16, 16), np.float32), np.zeros((1, 1, 8, 8), np.float32)
    masks[:, :, 2:5, 2:5] = 1
    asked: dict[str, Any] = {
        "prompt": "tile+crack",
        "noise": PhiloxNoise([1]),
        "sampler": "anogen",
        "steps": 10,
    }
    own = engine.paint(images, masks, **asked).images
    assert backend.calls.count("unet") == 20
    assert not any(graph.startswith("adapters/") for graph in backend.calls)
    recipe = engine.spec.model.recipe
    assert np.array_equal(own, engine.paint(images, masks, recipe=recipe.contrasted(10), **asked).images)
    assert not np.allclose(own, engine.paint(images, masks, recipe=recipe, **asked).images)


@pytest.mark.parametrize(("asked", "weight"), [(None, 10.0), (1.0, 1.0), (3.0, 3.0)])
def test_a_run_is_told_so(asked: float | None, weight: float) -> None:
    model = closed_engine().spec.model
    job = Job([], [], "tile+crack", 1, 0, True, 1, sampler="anogen", prompt_guidance=asked)
    assert resolve(job, model).recipe.prompt_guidance == weight
    plain = Job([], [], "tile+crack", 1, 0, True, 1, sampler="anomalydiffusion")
    assert resolve(plain, model).recipe.prompt_guidance == 1
    with pytest.raises(InputError, match="no context of good surface"):
        resolve(
            Job([], [], "tile+crack", 1, 0, True, 1, sampler="anogen"),
            model.model_copy(update={"surface": None}),
        )
