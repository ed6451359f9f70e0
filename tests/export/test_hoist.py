"""A UNet freed of what its timestep or context alone decides: the same estimates, through every way it is used."""

import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from stage_rt.engines.build import build
from stage_rt.errors import InputError
from stage_rt.export.graphs import export
from stage_rt.export.hoist import hoistable, hoisted, hoisted_model, projected
from stage_rt.export.verify import verify
from stage_rt.folders import read_contexts, read_engine
from stage_rt.loading import load
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.spec import PROMPTS_FILE
from stage_rt.training.folder import load_model

STEPS = 1000
SIZES = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SIZES).eval()


@torch.no_grad()
def estimate(unet, timestep, context):
    """At one timestep, or at one a sample."""
    sample = torch.randn(len(context), 4, 16, 16, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor(timestep).reshape(-1)
    return unet(sample.to(unet.dtype), steps, context.to(unet.dtype), return_dict=False)[0]


def test_estimates_are_the_same_and_the_unet_stays_as_it_was(unet):
    context = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2))
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    freed, made = hoisted(unet, STEPS), projected(unet, context)
    # Six attentions to the context, keys and values each: one before, one in the middle and two after at 8 or 16.
    assert made.shape == (3, 5, 2 * (8 + 16 + 8 + 8))
    for timestep in (0, STEPS - 1, [0, 500, STEPS - 1]):
        expected, found = estimate(unet, timestep, context), estimate(freed, timestep, made)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_keys_and_values_lie_one_after_the_other_as_attention_reads_them(unet):
    context = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2))
    first = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    made, size = projected(unet, context).flatten(1), 5 * 8
    for n, layer in enumerate((first.to_k, first.to_v)):
        heads = layer(context).reshape(3, 5, first.heads, -1).transpose(1, 2)
        assert torch.equal(made[:, n * size : (n + 1) * size], heads.flatten(1))


def test_it_shares_its_weights_and_has_none_left_for_time_or_context(unet):
    freed = hoisted(unet, STEPS)
    own = dict(unet.named_parameters())
    assert all(tensor is own[name] for name, tensor in freed.named_parameters())
    gone = set(own) - set(dict(freed.named_parameters()))
    assert {name.split(".")[-2] for name in gone} == {"linear_1", "linear_2", "time_emb_proj", "to_k", "to_v"}
    assert not any("attn1" in name for name in gone)


def test_half_precision_is_rounded_once(unet):
    context = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(2))
    exact = estimate(unet, 700, context)
    half = unet.to(torch.float16)
    found = estimate(hoisted(half, STEPS), 700, projected(half, context)).float()
    assert (found - exact).abs().max() <= 1e-2 * exact.abs().max()
    assert hoisted(half, STEPS).time_proj.table.dtype == torch.float16


@pytest.mark.parametrize(
    "changes",
    [
        {"class_embed_type": "timestep"},
        {"resnet_time_scale_shift": "scale_shift"},
        {
            "down_block_types": ("DownBlock2D",) * 2,
            "up_block_types": ("UpBlock2D",) * 2,
            "mid_block_type": None,
        },
    ],
    ids=["class", "scale", "no attention"],
)
def test_a_unet_of_another_make_is_left_alone(unet, changes):
    assert hoistable(unet)
    assert not hoistable(UNet2DConditionModel(**SIZES | changes))


@pytest.fixture(scope="module")
def hoisted_engine(tmp_path_factory, model_folder):
    """The small model's graphs without what is computed once, on ONNX Runtime, which runs them as any other."""
    folder = tmp_path_factory.mktemp("hoisted")
    described = export(model_folder, folder / "graphs", dtype="fp32", hoist=True)
    assert described.model.hoisted
    build(folder / "graphs", folder / "engine", backend="onnxruntime", batch=[1, 4])
    return folder / "engine"


def test_an_engine_of_it_paints_what_the_plain_one_paints(hoisted_engine, engine_folder, model_folder):
    spec = read_engine(hoisted_engine)
    contexts = read_contexts(hoisted_engine / PROMPTS_FILE, spec.model)
    assert {context.shape[1] for context in contexts.values()} == {spec.model.context_dim}
    plain, freed = load(engine_folder), load(hoisted_engine)
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (3, 1, 32, 32)).astype(np.float32)
    masks = np.zeros((3, 1, 16, 16), np.float32)
    masks[:2, :, 4:9, 3:12] = 1
    painted = [
        engine.paint(images, masks, prompt="tile+hole", noise=PhiloxNoise([1, 2, 3])).images
        for engine in (plain, freed)
    ]
    np.testing.assert_allclose(painted[1], painted[0], rtol=0, atol=1e-4)


def test_it_is_verified_against_the_model_it_was_made_of(hoisted_engine, model_folder):
    report = verify(hoisted_engine, model_folder, timesteps=2, quick=True)
    assert all(row.passed for row in report.rows)
    assert "keys and values" in [row.subject for row in report.rows]


def test_timesteps_it_has_no_row_for_are_refused(hoisted_engine):
    model = read_engine(hoisted_engine).model
    model.check(model.recipe)
    with pytest.raises(InputError, match=rf"knows the {model.recipe.steps} timesteps of its own recipe"):
        model.check(Recipe.authors())


def test_a_plain_description_does_not_know_the_word(engine_folder):
    assert "hoisted" not in json.loads((engine_folder / "engine.json").read_text())["model"]


def test_a_whole_model_is_hoisted_at_once(model_folder):
    model = load_model(model_folder)
    freed = hoisted_model(model)
    assert freed.spec.context_dim == next(iter(freed.contexts.values())).shape[1] != model.spec.context_dim
    prompt = next(iter(model.contexts))
    found = estimate(freed.unet, 3, freed.contexts[prompt][None])
    expected = estimate(model.unet, 3, model.contexts[prompt][None])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
