"""Random weights to measure with: the full-size networks, or tiny ones that prove the scripts on a CPU."""

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import ModelSpec
from stage_rt.training.adapter import MaskGuidanceAdapter
from stage_rt.training.folder import Model

PROMPT = ADAPTER = "random"
FULL_PARAMETERS = 872_300_484
GFLOP = {"plain": 187.5, "freed": 182.5}
"""Of one step of one sample at full size, UNet and adapter: convolutions, linear layers and attention; ``freed`` of
what prompt or timestep alone decides."""

UNETS: dict[str, dict[str, Any]] = {
    "full": {
        "sample_size": 32,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "cross_attention_dim": 1280,
        "attention_head_dim": 8,
    },
    "tiny": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
}
ADAPTERS: dict[str, tuple[int, ...]] = {"full": (64, 256, 512, 256, 64), "tiny": (8,)}
TOKENS = {"full": 77, "tiny": 3}


def random_model(size: str, device: str, recipe: Recipe) -> Model:
    """The networks of the loop at full size or tiny, the same weights every time; no autoencoder to speak of."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**UNETS[size]).eval()
        adapters = {branch: MaskGuidanceAdapter(hidden_channels=ADAPTERS[size]).eval() for branch in Branch}
        vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    if size == "full":
        assert sum(p.numel() for p in unet.parameters()) == FULL_PARAMETERS
    latent, width = UNETS[size]["sample_size"], UNETS[size]["cross_attention_dim"]
    spec = ModelSpec(
        image_size=8 * latent,
        latent_size=latent,
        latent_scale=0.18215,
        tokens=TOKENS[size],
        context_dim=width,
        recipe=recipe,
        prompts={PROMPT: ADAPTER},
    )
    contexts = {PROMPT: torch.randn(TOKENS[size], width, generator=torch.Generator().manual_seed(1))}
    return Model(unet=unet, vae=vae, adapters={ADAPTER: adapters}, contexts=contexts, spec=spec)
