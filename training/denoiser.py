"""Stage two: a small UNet2DConditionModel and one context per name on the frozen autoencoder's latents."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from stage_rt.recipe import Recipe

from .autoencoder import DEFECT_WEIGHT, encode
from .data import Examples
from .loop import Device
from .presets import Preset

ANOMALY_ONLY_SHARE = 1 / 2
"""Share of the defect samples shown as ``c * M0``, the only branch's view (Eq. 12 does the same)."""

SINGLE_CHANNEL_SHARE = 3 / 4
"""Share of those views whose noise around the mask has one channel, as the sampler fills it (Eq. 7).

It tells the network where the mask is at every noise level, so that it need not guess; the others have
independent channels, as the adapters are trained on (Eq. 12).
"""

LABEL_SHARE = 1 / 4
"""How much all cells under a label count together against all others, so that a small defect is not overlooked."""
LARGEST_WEIGHT = 64.0

EMPHASIS_LIMIT = 25.0
"""Largest weight of a timestep in the loss."""


def build(preset: Preset, latent_channels: int) -> UNet2DConditionModel:
    """A randomly initialised UNet with cross-attention at the levels ``preset.attention``."""
    levels = range(len(preset.unet_widths))
    return UNet2DConditionModel(
        sample_size=preset.latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
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
        self._abar = torch.tensor(recipe.levels.abar, dtype=torch.float32)

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

    def mean(self, index: Tensor) -> Tensor:
        """Means of the posteriors of examples ``index`` [B] as they are, ``[B, C, h, w]`` on the CPU."""
        return self._moments[0, index].chunk(2, dim=1)[0].contiguous()

    def noised(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """``q(latents, t, noise)``, Eq. 1: all ``[B, C, h, w]`` but ``timesteps`` ``[B]``."""
        abar = self.abar(timesteps)
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise

    def abar(self, timesteps: Tensor) -> Tensor:
        """``abar`` of timesteps ``[B]``, as ``[B, 1, 1, 1]``."""
        return self._abar.to(timesteps.device)[timesteps][:, None, None, None]


def loss(
    unet: UNet2DConditionModel,
    contexts: Contexts,
    latents: Latents,
    batch: int,
    device: Device,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted noise, weighted.

    Cells under a label count `label_weight` times. A timestep counts ``1/abar`` times, up to a limit: at high
    noise, where it is decided whether a mask holds a defect, a wrong clean image hardly shows in the noise. A
    share of the defect samples keeps only what lies under the mask, so that the frozen network knows both
    inputs the two branches will hand it.
    """
    clean, masks, prompt, timesteps = latents.draw(batch, generator)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    only = _chance(ANOMALY_ONLY_SHARE, clean, generator) & (prompt > 0)[:, None, None, None]
    single = only & _chance(SINGLE_CHANNEL_SHARE, clean, generator)
    noise = torch.where(single & (masks == 0), noise[:, :1], noise)
    clean = torch.where(only, clean * masks, clean)
    with device.precision():
        predicted = unet(latents.noised(clean, timesteps, noise), timesteps, contexts(prompt)).sample
    weight = 1 + (label_weight(masks) - 1) * masks
    emphasis = latents.abar(timesteps).reciprocal().clamp(max=EMPHASIS_LIMIT)
    error: Tensor = (predicted.float() - noise).square() * weight * emphasis
    return error.sum() / (weight.sum() * clean.shape[1])


def label_weight(masks: Tensor) -> Tensor:
    """How many times a labelled cell of masks ``[B, 1, h, w]`` counts, ``[B, 1, 1, 1]``: more in a small label."""
    cells = masks.shape[2] * masks.shape[3]
    area = masks.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    return (LABEL_SHARE * cells / area).clamp(DEFECT_WEIGHT, LARGEST_WEIGHT)


def _chance(share: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """True with probability ``share`` for each sample of ``like``, bool ``[B, 1, 1, 1]``."""
    return (torch.rand(len(like), 1, 1, 1, generator=generator) < share).to(like.device)
