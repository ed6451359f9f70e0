"""A latent-diffusion ``model.ckpt``: UNet and autoencoder as diffusers has them, and contexts from its BERT."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from stage_rt.errors import CheckpointError
from stage_rt.recipe import Recipe

from .bert import CAPTIONS, encode
from .checks import describe, require_finite, require_floats, sizes_of, tensors
from .keys import (
    BERT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    AutoencoderSizes,
    BertSizes,
    UNetSizes,
)
from .torchfile import StoredTensor, TorchFile

LATENT_SCALE = 0.18215
"""What latents are multiplied by, where a checkpoint does not say."""
NORM_GROUPS = 32

_WANTED = "the `model.ckpt` of latent-diffusion text2img was wanted"
# Kept beside the weights in training; the recipe computes them.
_SCHEDULE = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar")
# There if the training measured it (`scale_by_std`).
_SCALE = "scale_factor"
_SCHEDULE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class TextEncoder:
    """A checked BERT; ``read`` gives a tensor of it by the name that `BertSizes.entries` has."""

    path: Path
    sizes: BertSizes
    read: Callable[[str], Tensor]

    def context(self, caption: str, vectors: Tensor | None = None) -> Tensor:
        """Context float32 ``[tokens, dim]`` of one of `CAPTIONS`, with ``vectors`` ``[n, dim]`` for its ``*``."""
        ids = CAPTIONS[caption]
        learned = 0 if vectors is None else len(vectors)
        if len(ids) - (learned > 0) + learned > self.sizes.tokens or max(ids) >= self.sizes.words:
            raise CheckpointError(
                f"`{self.path}` has a text encoder of {self.sizes.tokens} tokens and {self.sizes.words} words, too "
                f"few for {caption!r} with {learned} learned vectors"
            )
        return encode(self.read, self.sizes, ids, vectors)


@dataclass(frozen=True)
class LatentDiffusion:
    """A checked ``model.ckpt``.

    ``latent_scale`` is what latents are multiplied by; ``left_out`` are the names of tensors that no part of a model
    needs.
    """

    path: Path
    unet: UNetSizes
    vae: AutoencoderSizes
    bert: TextEncoder
    latent_scale: float
    left_out: list[str]
    _tensors: dict[str, StoredTensor]

    @property
    def downscale(self) -> int:
        """Pixels a latent cell, along one side."""
        return int(2 ** (len(self.vae.widths) - 1))

    def unet_config(self, latent_size: int, heads: int) -> dict[str, Any]:
        """Arguments of `UNet2DConditionModel`; diffusers' ``attention_head_dim`` is the number of heads."""
        last = len(self.unet.widths) - 1
        kinds = ["CrossAttn" if attends else "" for attends in self.unet.attention]
        return {
            "sample_size": latent_size,
            "in_channels": self.unet.in_channels,
            "out_channels": self.unet.out_channels,
            "block_out_channels": self.unet.widths,
            "layers_per_block": self.unet.layers,
            "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
            "up_block_types": tuple(f"{kinds[last - level]}UpBlock2D" for level in range(last + 1)),
            "cross_attention_dim": self.unet.context_dim,
            "attention_head_dim": heads,
            "norm_num_groups": NORM_GROUPS,
        }

    def vae_config(self, image_size: int) -> dict[str, Any]:
        """Arguments of `AutoencoderKL`."""
        levels = len(self.vae.widths)
        return {
            "sample_size": image_size,
            "in_channels": self.vae.image_channels,
            "out_channels": self.vae.image_channels,
            "latent_channels": self.vae.latent_channels,
            "block_out_channels": self.vae.widths,
            "layers_per_block": self.vae.layers,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "norm_num_groups": NORM_GROUPS,
            "scaling_factor": self.latent_scale,
        }

    def unet_weights(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The UNet's tensors under the names of diffusers, mapped from the file. Raises `CheckpointError`."""
        named = {f"{UNET_PREFIX}{name}": tensor for name, tensor in self._part(UNET_PREFIX).items()}
        return cast(dict[str, Tensor], convert_ldm_unet_checkpoint(named, dict(config)))

    def vae_weights(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The autoencoder's tensors under the names of diffusers. Raises `CheckpointError`."""
        named = {f"{VAE_PREFIX}{name}": tensor for name, tensor in self._part(VAE_PREFIX).items()}
        return cast(dict[str, Tensor], convert_ldm_vae_checkpoint(named, dict(config)))

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name: require_finite(self.path, f"{prefix}{name}", tensor.load())
            for name, tensor in tensors(self._tensors, prefix).items()
            if f"{prefix}{name}" not in self.left_out
        }


def check_ldm(file: TorchFile) -> LatentDiffusion:
    """Check names and shapes of a ``model.ckpt``; the weights are not read yet, only noise schedule and latent scale.

    Raises:
        CheckpointError: the file is something else, tensors are missing, too many or of another shape, or it was
            trained with another noise schedule or a latent scale that cannot be.
    """
    value = file.value
    if not isinstance(value, dict) or not describe(value).startswith("a latent-diffusion"):
        raise CheckpointError(f"`{file.path}` is {describe(value)}, {_WANTED}")
    state = value["state_dict"] if isinstance(value.get("state_dict"), dict) else value
    everything = tensors(state, "")
    left_out = [
        name
        for name in everything
        if not name.startswith((UNET_PREFIX, VAE_PREFIX, BERT_PREFIX, _SCALE, *_SCHEDULE))
    ]
    unet, _ = _checked(file.path, "the UNet", state, UNET_PREFIX, UNetSizes)
    vae, extra = _checked(file.path, "the autoencoder", state, VAE_PREFIX, AutoencoderSizes, extra=True)
    left_out += [f"{VAE_PREFIX}{name}" for name in extra]
    words, extra = _checked(file.path, "the text encoder", state, BERT_PREFIX, BertSizes, extra=True)
    left_out += [f"{BERT_PREFIX}{name}" for name in extra if not name.startswith("to_logits.")]
    if words.dim != unet.context_dim:
        raise CheckpointError(
            f"`{file.path}` has a text encoder {words.dim} wide and a UNet for contexts {unet.context_dim} wide"
        )

    def read(name: str) -> Tensor:
        full = f"{BERT_PREFIX}{name}"
        return require_finite(file.path, full, require_floats(file.path, full, everything[full].load()))

    _check_schedule(file.path, everything)
    encoder, scale = TextEncoder(file.path, words, read), _latent_scale(file.path, everything)
    return LatentDiffusion(file.path, unet, vae, encoder, scale, left_out, everything)


def _checked(
    path: Path, part: str, state: Mapping[Any, Any], prefix: str, kind: Any, *, extra: bool = False
) -> tuple[Any, list[str]]:
    shapes = {name: tensor.shape for name, tensor in tensors(state, prefix).items()}
    return sizes_of(path, part, shapes, kind.of, kind.entries, extra=extra)


def _latent_scale(path: Path, everything: Mapping[str, StoredTensor]) -> float:
    if _SCALE not in everything:
        return LATENT_SCALE
    shape = everything[_SCALE].shape
    if math.prod(shape) != 1:
        raise CheckpointError(f"`{path}` has a `{_SCALE}` of shape {list(shape)}, one number was wanted")
    # In the engine's precision, in which a number may be 0 or infinite that is not as it was stored.
    scale = everything[_SCALE].load().float().item()
    if not 0 < scale < math.inf:
        raise CheckpointError(
            f"`{path}` has a `{_SCALE}` of {scale:.4g}, which latents cannot be multiplied by: take an earlier step"
        )
    return scale


def _check_schedule(path: Path, everything: Mapping[str, StoredTensor]) -> None:
    if "betas" not in everything:
        return
    found, expected = everything["betas"].load().double().numpy(), Recipe.authors().levels.betas
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=_SCHEDULE_TOLERANCE, atol=0):
        raise CheckpointError(
            f"`{path}` was trained with another noise schedule ({len(found.ravel())} steps, the last beta "
            f"{found.ravel()[-1] if found.size else math.nan:.4g}) than STAGE ({len(expected)} steps, "
            f"{expected[-1]:.4g})"
        )
