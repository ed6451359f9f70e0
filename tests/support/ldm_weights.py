"""The authors' tiny random networks, by their own key names, as a `Model`."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from numpy.typing import NDArray
from torch import Tensor, nn

from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import ModelSpec
from stage_rt.training.adapter import MaskGuidanceAdapter
from stage_rt.training.folder import Model

PROMPT = "golden"
HEADS = 8
LEVELS = 4
UNET_WIDTH = "model.diffusion_model.input_blocks.{}.0.out_layers.3.bias"
VAE_WIDTH = "first_stage_model.encoder.down.{}.block.1.conv2.bias"
ADAPTERS = {Branch.AWARE: "fine_image.", Branch.ONLY: "fine_mask."}

Arrays = Mapping[str, NDArray[Any]]


def ldm_model(weights: Arrays, adapters: Arrays, context: NDArray[Any]) -> Model:
    """UNet and autoencoder of ``weights``, both ``adapters``, and ``context`` ``[tokens, dim]`` as `PROMPT`."""
    ldm = {name: torch.from_numpy(array).float() for name, array in weights.items()}
    return Model(
        unet=_unet(ldm),
        vae=_vae(ldm),
        adapters={"mga": {branch: _adapter(adapters, prefix) for branch, prefix in ADAPTERS.items()}},
        contexts={PROMPT: torch.from_numpy(context)},
        spec=ModelSpec(
            image_size=256,
            latent_size=32,
            latent_scale=0.18215,
            tokens=context.shape[0],
            context_dim=context.shape[1],
            recipe=Recipe.authors(),
            prompts={PROMPT: "mga"},
        ),
    )


def _unet(ldm: dict[str, Tensor]) -> nn.Module:
    # A block of the encoder is two residual layers and a stride, after one convolution for the first.
    widths = tuple(len(ldm[UNET_WIDTH.format(1 + 3 * level)]) for level in range(LEVELS))
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * (LEVELS - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (LEVELS - 1),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=HEADS,  # diffusers' old name for the number of heads
    )
    return _loaded(unet, convert_ldm_unet_checkpoint(ldm, unet.config))


def _vae(ldm: dict[str, Tensor]) -> nn.Module:
    vae = AutoencoderKL(
        sample_size=256,
        block_out_channels=tuple(len(ldm[VAE_WIDTH.format(level)]) for level in range(LEVELS)),
        down_block_types=("DownEncoderBlock2D",) * LEVELS,
        up_block_types=("UpDecoderBlock2D",) * LEVELS,
        layers_per_block=2,
    )
    return _loaded(vae, convert_ldm_vae_checkpoint(ldm, vae.config))


def _adapter(arrays: Arrays, prefix: str) -> nn.Module:
    state = {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return _loaded(MaskGuidanceAdapter(), state)


def _loaded(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network.load_state_dict(state)
    return network.eval()
