"""Stage two: a small UNet2DConditionModel and one context per name on the frozen autoencoder's latents."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from stage_rt.recipe import Recipe

from .autoencoder import DEFECT_WEIGHT, LATENT_CHANNELS, encode
from .data import Examples
from .loop import Device
from .presets import Preset

ANOMALY_ONLY_SHARE = 1 / 2
"""Share of the defect samples shown as ``c * M0``, the only branch's view (Eq. 12 does the same)."""


def build(preset: Preset) -> UNet2DConditionModel:
    """A randomly initialised UNet with cross-attention at the levels ``preset.attention``."""
    levels = range(len(preset.unet_widths))
    return UNet2DConditionModel(
        sample_size=preset.latent_size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=preset.unet_widths,
        layers_per_block=preset.unet_layers,
        down_block_types=tuple(_block("Down", level in preset.attention) for level in levels),
        up_block_types=tuple(_block("Up", level in preset.attention) for level in reversed(levels)),
        cross_attention_dim=preset.context_dim,
        attention_head_dim=4,
        norm_num_groups=preset.norm_groups,
    )


def _block(direction: str, attention: bool) -> str:
    return f"{'CrossAttn' if attention else ''}{direction}Block2D"


class Contexts(nn.Module):
    """One trainable context ``[tokens, dim]`` for each name."""

    def __init__(self, names: int, tokens: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(names, tokens, dim, generator=generator))

    def forward(self, prompt: Tensor) -> Tensor:
        """Contexts ``[B, tokens, dim]`` of name indices ``[B]``."""
        return self.table[prompt]


class Latents:
    """Every latent posterior of the training set, as is and mirrored, and the schedule that noises them."""

    def __init__(self, vae: nn.Module, examples: Examples, recipe: Recipe, device: Device) -> None:
        self.examples = examples
        self.steps = recipe.steps
        self._device = device.device
        self._moments = torch.stack(
            [encode(vae, images, device) for images in (examples.images, examples.images.flip(3))]
        )
        self._masks = torch.stack([examples.masks, examples.masks.flip(3)])
        self._abar = torch.tensor(recipe.abar, dtype=torch.float32)

    def draw(
        self, count: int, generator: torch.Generator, *, prompt: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of latents sampled from the VAE posterior, of one prompt or of all (`Examples.draw`).

        Returns:
            latents ``[B, C, h, w]``, masks ``[B, 1, h, w]`` (0/1 float), name indices ``[B]`` and timesteps
            ``[B]``, uniform in ``0..steps - 1``; all on the training device.
        """
        index = self.examples.draw(count, generator, prompt=prompt)
        mirrored = torch.randint(2, (count,), generator=generator)
        mean, logvar = self._moments[mirrored, index].chunk(2, dim=1)
        latents = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator)
        masks = self._masks[mirrored, index].float()
        timesteps = torch.randint(self.steps, (count,), generator=generator)
        batch = (latents, masks, self.examples.prompt[index], timesteps)
        return tuple(part.to(self._device) for part in batch)  # type: ignore[return-value]

    def noised(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """``q(latents, t, noise)``, Eq. 1: all ``[B, C, h, w]`` but ``timesteps`` ``[B]``."""
        abar = self._abar.to(latents.device)[timesteps][:, None, None, None]
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise


def loss(
    unet: UNet2DConditionModel,
    contexts: Contexts,
    latents: Latents,
    batch: int,
    device: Device,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted noise; cells under a label count ``DEFECT_WEIGHT`` times.

    A share of the defect samples keeps only what lies under the mask, so that the frozen network knows both
    inputs the two branches will hand it.
    """
    clean, masks, prompt, timesteps = latents.draw(batch, generator)
    only = (torch.rand(batch, generator=generator) < ANOMALY_ONLY_SHARE).to(clean.device) & (prompt > 0)
    clean = torch.where(only[:, None, None, None], clean * masks, clean)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    with device.precision():
        predicted = unet(latents.noised(clean, timesteps, noise), timesteps, contexts(prompt)).sample
    weight = 1 + (DEFECT_WEIGHT - 1) * masks
    error: Tensor = (predicted.float() - noise).square() * weight
    return error.sum() / (weight.sum() * clean.shape[1])
