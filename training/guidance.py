"""Stage three: a pair of mask-guidance adapters for each prompt, and the contexts, on the frozen UNet (Eq. 12)."""

import math

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from stage_rt.recipe import Branch, Recipe

from .adapter import MaskGuidanceAdapter
from .denoiser import Contexts, Latents
from .loop import Device
from .presets import Preset

AWARE_WEIGHT = 4.0
ONLY_WEIGHT = 1.0


def build(preset: Preset, latent_channels: int) -> dict[Branch, MaskGuidanceAdapter]:
    """The adapters of one prompt, started as the identity on unit-normal estimates.

    An adapter replaces the UNet's estimate, so a random one would have to learn to copy before it can guide. Its
    layers are wide enough for that, whatever the preset says.
    """
    pair = {}
    widths = tuple(max(width, 2 * latent_channels) for width in preset.adapter_widths)
    for branch in Branch:
        adapter = MaskGuidanceAdapter(latent_channels=latent_channels, hidden_channels=widths)
        start_as_identity(adapter)
        pair[branch] = adapter
    return pair


@torch.no_grad()
def start_as_identity(adapter: MaskGuidanceAdapter) -> None:
    """Let the first ``2 C`` hidden channels carry ``relu(eps)`` and ``relu(-eps)`` through to the output.

    BatchNorm of a rectified unit normal is undone by its own mean ``1/sqrt(2 pi)`` and deviation. The other
    channels keep their random weights and start with no say in the output.
    """
    channels = adapter.config.latent_channels
    carried = 2 * channels
    mean = 1 / math.sqrt(2 * math.pi)
    deviation = math.sqrt(0.5 - mean**2)
    convolutions = [layer for layer in adapter.conv if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in adapter.conv if isinstance(layer, nn.BatchNorm2d)]
    for depth, (convolution, norm) in enumerate(zip(convolutions, norms, strict=False)):
        weight, bias = convolution.weight, _present(convolution.bias)
        weight[:carried], bias[:carried] = 0, 0
        for channel in range(carried):
            source, sign = (channel, 1) if depth else (channel % channels, 1 if channel < channels else -1)
            weight[channel, source, 1, 1] = sign
        norm.weight[:carried] = math.sqrt((deviation**2 if depth else 1.0) + norm.eps)
        norm.bias[:carried] = mean if depth else 0.0
        _present(norm.running_mean)[:carried] = mean if depth else 0.0
        _present(norm.running_var)[:carried] = deviation**2 if depth else 1.0
    last = convolutions[-1]
    last.weight.zero_()
    _present(last.bias).zero_()
    for channel in range(channels):
        last.weight[channel, channel] = 1.0
        last.weight[channel, channel + channels] = -1.0


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def loss(
    unet: UNet2DConditionModel,
    adapters: dict[Branch, MaskGuidanceAdapter],
    contexts: Contexts,
    latents: Latents,
    recipe: Recipe,
    prompt: int,
    batch: int,
    device: Device,
    generator: torch.Generator,
) -> Tensor:
    """Eq. 12 for one prompt as the authors' code computes it: L1, aware term masked by the EMA mask and weighted 4.

    One ``t`` a sample serves both branches; the two noises are independent. Both means run over all cells,
    masked zeros included.
    """
    clean, masks, names, timesteps = latents.draw(batch, generator, prompt=prompt)
    noise, other = (torch.randn(clean.shape, generator=generator).to(clean.device) for _ in range(2))
    zeta = torch.tensor([recipe.zeta(i) for i in range(recipe.steps)], dtype=torch.float32).to(clean.device)[
        timesteps
    ][:, None, None, None]
    soft = masks + zeta * (1 - masks)
    inputs = torch.cat(
        [latents.noised(clean, timesteps, noise), latents.noised(clean * masks, timesteps, other)]
    )
    with device.precision():
        estimates = unet(inputs, timesteps.repeat(2), contexts(names).repeat(2, 1, 1)).sample
        aware, only = estimates.chunk(2)
        guided_aware = adapters[Branch.AWARE](aware, soft).float()
        guided_only = adapters[Branch.ONLY](only, masks).float()
    aware_loss = (soft * (noise - guided_aware)).abs().mean()
    only_loss = (other - guided_only).abs().mean()
    total: Tensor = AWARE_WEIGHT * aware_loss + ONLY_WEIGHT * only_loss
    return total
