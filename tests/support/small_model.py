"""A random model small enough to export in seconds, with everything that makes graphs differ in it."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import FOREGROUND, ModelSpec
from stage_rt.training.adapter import MaskGuidanceAdapter
from stage_rt.training.folder import Model, save_model
from stage_rt.training.foreground import ForegroundNetwork

PROMPTS = ("tile+crack", "tile+hole")


def small_model(seed: int = 0) -> Model:
    """32x32 grey images, 16x16 latents, ten steps; attention, a stride and an upsampling in the UNet."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=32,
    )
    spec = ModelSpec(
        image_size=32,
        image_channels=1,
        latent_size=16,
        latent_scale=0.5,
        tokens=3,
        context_dim=6,
        recipe=Recipe(name="short", steps=10, ema_stop=2, only_intervals=((3, 4), (7, 8))),
        prompts=dict.fromkeys(PROMPTS, "tile"),
    )
    return Model(
        unet=unet.eval(),
        vae=vae.eval(),
        adapters={"tile": {branch: small_adapter() for branch in Branch}},
        contexts={name: torch.randn(3, 6) for name in PROMPTS},
        spec=spec,
    )


@torch.no_grad()
def small_adapter() -> MaskGuidanceAdapter:
    """An adapter whose BatchNorm statistics are not those of the identity."""
    adapter = MaskGuidanceAdapter(hidden_channels=(8, 12))
    for name, tensor in adapter.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.2, 3)
        elif "running_mean" in name:
            tensor.normal_()
    return adapter.eval()


def small_fast_model() -> Model:
    """`small_model` with a foreground network in the place of the adapter of the only branch, as FAST has it."""
    model = small_model()
    aware = model.adapters["tile"][Branch.AWARE]
    parts = {Branch.AWARE: aware, FOREGROUND: ForegroundNetwork(width=8).eval()}
    spec = model.spec.model_copy(update={"system": "fast"})
    return replace(model, spec=spec, adapters={"tile": parts})


def write_small_model(folder: Path, seed: int = 0) -> Path:
    """A folder of `small_model`."""
    save_model(small_model(seed), folder)
    return folder
