"""An engine in use: what it refuses, and that samples have nothing to do with their neighbours."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small_model import PROMPTS

import stage_rt
from stage_rt.engine import Engine
from stage_rt.errors import EngineError, FailedSamplesError, InputError, PromptError
from stage_rt.executor import HostExecutor
from stage_rt.images.compose import FEATHER
from stage_rt.images.inputs import latent_mask, network_image
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.spec import UNET, VAE_ENCODER, PromptDefaults, RegionView

PROMPT = PROMPTS[0]
ROUNDING = 1e-5
"""A library may sum in another order at another batch."""


class Spy:
    """A backend that counts calls, and spoils one sample of the batch in the graph named ``poisoned``."""

    def __init__(self, backend, poisoned=None, sample=0):
        self.calls = []
        self.batches = []
        self._backend, self._poisoned, self._sample = backend, poisoned, sample

    def run(self, graph, **inputs):
        self.calls.append(graph)
        self.batches.append(max(len(array) for array in inputs.values()))
        output = self._backend.run(graph, **inputs).copy()
        if graph == self._poisoned:
            output[self._sample, ..., 3, 5] = np.nan
        return output

    def close(self):
        self._backend.close()


@pytest.fixture(scope="session")
def plain(engine_folder):
    """The engine of the small model; nobody closes it."""
    return stage_rt.load(engine_folder)


@pytest.fixture
def spied(plain):
    """``spied(...)`` is that engine and the `Spy` between it and its backend."""

    def wrap(**options):
        spy = Spy(plain._executor._backend, **options)
        return Engine(plain.spec, HostExecutor(plain.spec.model, spy), plain._contexts), spy

    return wrap


def photographs(count, size=(44, 36)):
    """Photographs and masks of another size and aspect than the network's."""
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    masks = np.zeros((count, *size), dtype=bool)
    for n, mask in enumerate(masks):
        mask[10 + n : 20 + n, 12 : 22 + n] = True
    return images, masks


def prepared(engine, count):
    images, masks = photographs(count)
    model = engine.spec.model
    return (
        np.stack([network_image(image, model) for image in images]),
        np.stack([latent_mask(mask, model) for mask in masks]),
    )


def paint(engine, images, masks, seeds):
    return engine.paint(images, masks, prompt=PROMPT, noise=PhiloxNoise(seeds))


def test_an_unknown_prompt_lists_the_known(plain):
    images, masks = photographs(1)
    with pytest.raises(PromptError, match=r"unknown prompt 'tile\+dent': use one of tile\+crack, tile\+hole"):
        plain.synthesize(images, masks, prompt="tile+dent", seeds=[0])
    with pytest.raises(PromptError):
        plain.condition("tile+dent")


def test_the_prompt_matters(plain):
    images, masks = prepared(plain, 1)
    one, other = (
        plain.paint(images, masks, prompt=prompt, noise=PhiloxNoise([1])).images for prompt in PROMPTS
    )
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i, m, s: (i.astype(np.float32), m, s),
            r"`images` must be uint8 .* got float32 \(2, 44, 36, 3\)",
        ),
        (lambda i, m, s: (i[..., 0], m, s), r"`images` must be uint8 of shape \[B, H, W, 3\]"),
        (lambda i, m, s: (i[..., :2], m, s), r"got uint8 \(2, 44, 36, 2\)"),
        (lambda i, m, s: (i, m[:, 1:], s), r"`masks` must be .* \(2, 44, 36\), got bool \(2, 43, 36\)"),
        (lambda i, m, s: (i, m[:1], s), r"`masks` must be bool or uint8"),
        (lambda i, m, s: (i, m.astype(float), s), r"`masks` must be .* got float64"),
        (lambda i, m, s: (i, m, s[:1]), r"`seeds` must hold one integer a sample, got 1 for 2 images"),
        (lambda i, m, s: (i, m, [0, -1]), r"`seeds` must lie between 0 and"),
        (lambda i, m, s: (i, m, [0, 0.5]), r"`seeds` must be a sequence of integers"),
        (lambda i, m, s: (i[:0], m[:0], []), r"`images` holds none: give one image a sample"),
    ],
)
def test_wrong_photographs_masks_and_seeds_are_refused(plain, change, message):
    images, masks, seeds = change(*photographs(2), [0, 1])
    with pytest.raises(InputError, match=message):
        plain.synthesize(images, masks, prompt=PROMPT, seeds=seeds)


def test_wrong_network_inputs_are_refused(plain):
    images, masks = prepared(plain, 2)
    for wrong, message in (
        ((images[:1], masks), r"`images` must be float32 of shape \(2, 1, 32, 32\)"),
        ((images.astype(np.float64), masks), r"`images` .* got float64"),
        ((images, masks[:, :, :8]), r"`masks` must be float32 of shape \(2, 1, 16, 16\)"),
        ((images, masks.astype(bool)), r"`masks` .* got bool"),
        ((images, masks * np.float32(0.5)), r"`mask` must hold only 0 and 1"),
    ):
        with pytest.raises(InputError, match=message):
            paint(plain, *wrong, [0, 1])


def test_an_empty_mask_calls_no_network_of_the_loop(spied):
    engine, spy = spied()
    images, masks = prepared(engine, 2)
    painted = paint(engine, images, np.zeros_like(masks), [1, 2])
    assert spy.calls == ["vae_encoder", "vae_decoder"]
    assert painted.finite.all()


def test_samples_with_an_empty_mask_take_no_part_in_the_loop(spied, plain):
    engine, spy = spied()
    images, masks = prepared(engine, 3)
    masks[1] = 0
    painted = paint(engine, images, masks, [1, 2, 3])
    batches = [size for call, size in zip(spy.calls, spy.batches, strict=True) if call == UNET]
    assert batches == [2] * 10
    for n in range(3):
        alone = paint(plain, images[[n]], masks[[n]], [n + 1])
        assert np.abs(painted.images[n] - alone.images[0]).max() < ROUNDING


def test_each_step_calls_the_unet_and_the_adapter_of_its_branch(spied):
    engine, spy = spied()
    paint(engine, *prepared(engine, 1), [1])
    assert spy.calls[0] == VAE_ENCODER
    assert spy.calls[1:-1:2] == [UNET] * 10
    branches = [call.removeprefix("adapters/tile.") for call in spy.calls[2:-1:2]]
    assert branches == [engine.spec.model.recipe.branch(i) for i in reversed(range(10))]
    assert set(branches) == {"aware", "only"}


def test_a_sample_does_not_depend_on_its_neighbours(plain):
    images, masks = prepared(plain, 4)
    together = paint(plain, images, masks, [1, 2, 3, 4]).images
    for n in range(4):
        alone = paint(plain, images[[n]], masks[[n]], [n + 1]).images[0]
        assert np.abs(together[n] - alone).max() < ROUNDING
    swapped = paint(plain, images[::-1].copy(), masks[::-1].copy(), [4, 3, 2, 1]).images[::-1]
    assert np.abs(together - swapped).max() < ROUNDING


@pytest.mark.parametrize("graph", [VAE_ENCODER, UNET, "adapters/tile.only", "vae_decoder"])
def test_a_sample_that_is_not_finite_is_flagged_and_the_others_are_as_ever(spied, plain, graph):
    images, masks = prepared(plain, 3)
    healthy = paint(plain, images, masks, [1, 2, 3])
    engine, _ = spied(poisoned=graph, sample=1)
    spoiled = paint(engine, images, masks, [1, 2, 3])
    assert healthy.finite.all()
    assert spoiled.finite.tolist() == [True, False, True]
    for n in (0, 2):
        assert np.abs(spoiled.images[n] - healthy.images[n]).max() < ROUNDING


def test_synthesize_names_the_samples_that_are_not_finite(spied):
    engine, _ = spied(poisoned="vae_decoder", sample=0)
    with pytest.raises(FailedSamplesError, match=r"samples \[0\] came out non-finite"):
        engine.synthesize(*photographs(2), prompt=PROMPT, seeds=[1, 2])


def test_more_samples_than_the_largest_batch_are_painted_in_several(spied, plain):
    engine, spy = spied()
    images, masks = photographs(6)
    shares = []
    result = engine.synthesize(images, masks, prompt=PROMPT, seeds=range(6), progress=shares.append)
    assert [size for call, size in zip(spy.calls, spy.batches, strict=True) if call == VAE_ENCODER] == [4, 2]
    expected = [4 / 6 * step / 10 for step in range(1, 11)] + [
        (4 + 2 * step / 10) / 6 for step in range(1, 11)
    ]
    np.testing.assert_allclose(shares, expected, atol=1e-12)
    assert result.shape == images.shape
    assert result.dtype == np.uint8
    last = plain.synthesize(images[5:], masks[5:], prompt=PROMPT, seeds=[5])
    assert np.abs(result[5:].astype(int) - last).max() <= 1


def test_beyond_the_ramp_the_photograph_is_untouched(plain):
    images, masks = photographs(2)
    result = plain.synthesize(images, masks * np.uint8(255), prompt=PROMPT, seeds=[1, 2])
    for image, mask, changed in zip(images, masks, result, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        near = np.zeros_like(mask)
        reach = 2 * FEATHER
        near[rows[0] - reach : rows[-1] + reach + 1, columns[0] - reach : columns[-1] + reach + 1] = True
        np.testing.assert_array_equal(changed[~near], image[~near])
        assert (changed[mask] != image[mask]).mean() > 0.9


def test_a_photograph_keeps_its_colour_under_networks_of_one_channel(plain):
    _, masks = photographs(1)
    shades = np.random.default_rng(3).integers(110, 130, (*masks.shape, 1))
    images = (shades + np.array([30, 0, -30])).astype(np.uint8)
    result = plain.synthesize(images, masks, prompt=PROMPT, seeds=[0]).astype(int)
    free = masks & (result > 0).all(axis=3) & (result < 255).all(axis=3)
    change = (result - images)[free]
    assert len(change) > 20
    assert (change == change[:, :1]).all()
    assert np.abs(change).max() > 8


SQUARES = RegionView(context=0.5, least=16)
MEASURED = PromptDefaults(guidance=3.0, min_fill=0.99, rim=(0.6, 0.2), outset=1.5)


@pytest.mark.parametrize("view", [None, "whole"])
@pytest.mark.parametrize(
    "measured",
    [PromptDefaults(), PromptDefaults(guidance=3.0), PromptDefaults(outset=1.5), MEASURED],
    ids=["nothing", "guidance", "outset", "everything"],
)
def test_a_pair_is_what_a_run_paints_of_the_same_files_and_seed(plain, tmp_path, measured, view):
    """Two regions of a photograph, which are painted again where that is measured."""
    model = plain.spec.model.model_copy(update={"region": SQUARES, "defaults": {PROMPT: measured}})
    engine = Engine(plain.spec.model_copy(update={"model": model}), plain.executor, plain._contexts)
    images, masks = photographs(1, (64, 80))
    masks[0, 45:53, 60:66] = True
    files = tmp_path / "good.png", tmp_path / "mask.png"
    Image.fromarray(images[0]).save(files[0])
    Image.fromarray(masks[0]).save(files[1])
    job = Job(
        files[:1], files[1:], PROMPT, 1, seed=7, composite=True, batch=max(engine.spec.batch), view=view
    )
    fill(engine, job, tmp_path / "run")
    with Image.open(tmp_path / "run/test/crack/000000.png") as written:
        expected = np.asarray(written)
    (found,) = engine.synthesize(images, masks, prompt=PROMPT, seeds=[7], view=view)
    np.testing.assert_array_equal(found, expected)
    assert (found != images[0]).any()


def test_a_recipe_that_is_handed_over_says_all_of_it(spied):
    """As one by its name does in a run: what was measured was with the model's own."""
    engine, _ = spied()
    model = engine.spec.model.model_copy(update={"region": SQUARES, "defaults": {PROMPT: MEASURED}})
    measured = Engine(engine.spec.model_copy(update={"model": model}), engine.executor, engine._contexts)
    seen = []

    def paint(images, masks, *, recipe, **options):
        seen.append((recipe, float(masks.sum())))
        return Engine.paint(measured, images, masks, recipe=recipe, **options)

    measured.paint = paint
    images, masks = photographs(1)
    for recipe in (None, model.recipe):
        measured.synthesize(images, masks, prompt=PROMPT, seeds=[1], recipe=recipe)
    (own, wide), (given, narrow) = seen[0], seen[-1]
    assert (own, given) == (model.recipe.guided(3.0), model.recipe)
    assert wide > narrow


def test_without_compositing_the_decoded_images_come_back(plain):
    images, masks = photographs(2)
    result = plain.synthesize(images, masks, prompt=PROMPT, seeds=[1, 2], composite=False)
    assert result.shape == (2, 32, 32, 3)
    decoded = paint(plain, *prepared(plain, 2), [1, 2]).images
    expected = np.rint(np.clip((decoded + 1) / 2, 0, 1) * 255)[:, 0, ..., None]
    np.testing.assert_array_equal(result, np.broadcast_to(expected, result.shape))


def test_a_seed_gives_the_same_image_again_and_another_seed_another(plain):
    images, masks = photographs(1)
    one, again, other = (
        plain.synthesize(images, masks, prompt=PROMPT, seeds=[seed]) for seed in (2**64 - 1, 2**64 - 1, 3)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_closed_engine_has_let_go_of_its_networks(engine_folder):
    engine = stage_rt.load(engine_folder)
    paint(engine, *prepared(engine, 1), [1])
    backend = engine._executor._backend
    assert backend._sessions
    engine.close()
    assert not backend._sessions
    engine.close()


def test_a_closed_engine_says_so(engine_folder):
    engine = stage_rt.load(engine_folder)
    inputs = prepared(engine, 1)
    engine.close()
    calls = {
        "synthesize": lambda: engine.synthesize(*photographs(1), prompt=PROMPT, seeds=[1]),
        "paint": lambda: paint(engine, *inputs, [1]),
        "encode": lambda: engine.encode(inputs[0], np.zeros((1, 4, 16, 16), np.float32)),
        "decode": lambda: engine.decode(np.zeros((1, 4, 16, 16), np.float32)),
    }
    for call in calls.values():
        with pytest.raises(EngineError, match=r"^the engine is closed: load it again with `stage_rt.load`$"):
            call()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(
    ("kind", "count"), [("engine_folder", 1), ("engine_folder", 2), ("openvino_engine", 2)]
)
def test_an_engine_used_before_a_fork_says_in_the_child_that_it_cannot_be(request, kind, count):
    """In a process of its own: pytest's has threads, and a child that hung would hang it too.

    One sample leaves every graph threads of its own on a machine with more cores. The child ends as those of
    `multiprocessing` do: the libraries themselves do not survive the end of a forked process in any other way.
    """
    engine_folder = request.getfixturevalue(kind)
    code = f"""
import gc, os, warnings
import numpy as np
import stage_rt
from stage_rt.errors import EngineError
warnings.simplefilter("ignore")

def paint(engine):
    images, masks = np.zeros(({count}, 40, 40, 3), np.uint8), np.ones(({count}, 40, 40), np.uint8)
    return engine.synthesize(images, masks, prompt={PROMPT!r}, seeds=range({count})).shape

engine = stage_rt.load({str(engine_folder)!r})
paint(engine)
child = os.fork()
if not child:
    try:
        paint(engine)
    except EngineError as error:
        print(error, flush=True)
    engine.close()
    del engine
    gc.collect()
    print(paint(stage_rt.load({str(engine_folder)!r})), flush=True)
    os._exit(0)
status = os.waitpid(child, 0)[1]
print(paint(engine), os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    error, child, parent = done.stdout.splitlines()
    assert error.startswith("the engine was loaded before `os.fork`")
    assert error.endswith("load it in the child with `stage_rt.load`")
    assert (child, parent) == (f"({count}, 40, 40, 3)", f"({count}, 40, 40, 3) 0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sampler": "ddim"},
            "unknown sampler 'ddim': use one of stage, fast, fast-published, anogen",
        ),
        ({"sampler": None}, "unknown sampler None"),
        ({"sampler": ["stage"]}, r"unknown sampler \['stage'\]"),
        ({"steps": 0}, "sampler `stage` takes from 10 to 10 steps, not 0"),
        ({"steps": 11}, "takes from 10 to 10 steps, not 11"),
        ({"steps": "10"}, "takes from 10 to 10 steps, not '10'"),
        ({"sampler": "anomalydiffusion", "steps": 10}, "sampler `anomalydiffusion` takes from 9 to 9 steps"),
        ({"recipe": "paper"}, r"`recipe` must be a `stage_rt.recipe.Recipe`, got str"),
        ({"prompt": None}, "unknown prompt None"),
        ({"prompt": ["tile+crack"]}, "unknown prompt"),
        ({"seeds": 3}, "`seeds` must be a sequence of integers"),
        ({"images": [[1]]}, r"`images` must be a `numpy.ndarray`, got list"),
        ({"masks": None}, r"`masks` must be a `numpy.ndarray`, got NoneType"),
    ],
)
def test_wrong_names_and_types_are_refused_in_one_sentence(plain, change, message):
    images, masks = photographs(1)
    arguments = {"images": images, "masks": masks, "prompt": PROMPT, "seeds": [0]} | change
    with pytest.raises(InputError, match=message):
        plain.synthesize(arguments.pop("images"), arguments.pop("masks"), **arguments)


def test_a_noise_that_is_none_is_refused(plain):
    with pytest.raises(InputError, match=r"`noise` must be a `stage_rt.noise.PhiloxNoise`, got int"):
        plain.paint(*prepared(plain, 1), prompt=PROMPT, noise=3)


def test_all_steps_of_the_recipe_are_the_default(plain):
    images, masks = prepared(plain, 1)
    assert np.array_equal(
        plain.paint(images, masks, prompt=PROMPT, noise=PhiloxNoise([1]), steps=10).images,
        paint(plain, images, masks, [1]).images,
    )


def test_fewer_steps_are_fewer_calls(spied):
    engine, spy = spied()
    long = Recipe(name="long", steps=40, ema_stop=8, only_intervals=((28, 32), (12, 16)))
    shares = []
    painted = engine.paint(
        *prepared(engine, 2),
        prompt=PROMPT,
        noise=PhiloxNoise([1, 2]),
        recipe=long,
        steps=20,
        progress=shares.append,
    )
    assert spy.calls.count(UNET) == 20
    np.testing.assert_allclose(shares, np.arange(1, 21) / 20)
    assert painted.finite.all()


def test_guidance_moves_the_estimate_and_1_is_the_adapters_own(plain):
    images, masks = prepared(plain, 1)
    recipe = plain.spec.model.recipe
    results = {
        weight: plain.paint(
            images, masks, prompt=PROMPT, noise=PhiloxNoise([1]), recipe=recipe.guided(weight)
        ).images
        for weight in (1, 2)
    }
    assert np.array_equal(results[1], paint(plain, images, masks, [1]).images)
    assert np.abs(results[2] - results[1]).max() > 1e-4


def test_guidance_by_the_prompt_needs_a_context_of_good_surface(plain):
    images, masks = prepared(plain, 1)
    recipe = plain.spec.model.recipe.contrasted(2)
    with pytest.raises(InputError, match=r"no context of good surface, .*: train it again, or leave"):
        plain.paint(images, masks, prompt=PROMPT, noise=PhiloxNoise([1]), recipe=recipe)
