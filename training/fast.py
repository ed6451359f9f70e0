"""FAST's own stage: a foreground network and one adapter for each prompt, and the contexts, on the frozen UNet.

Xu et al., "FAST", NeurIPS 2025 (arXiv:2509.20295), Algorithm 1. The weights of the loss are those of the released
code, as are that its adapter is told of the mask and that the denoising loss trains the foreground too, which the
algorithm keeps apart. The paper leaves open whether prompts share a foreground network; it is told of none, so each
has its own here.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from stage_rt.recipe import Branch
from stage_rt.spec import FOREGROUND, ModelSpec

from .adapter import MaskGuidanceAdapter
from .denoiser import Contexts, Latents
from .foreground import ForegroundNetwork
from .guidance import build
from .loop import Device, Report
from .presets import Preset
from .prompts import fit_prompts

DENOISING_WEIGHT = 2.0
FOREGROUND_WEIGHT = 5.0


def train(
    unet: UNet2DConditionModel,
    contexts: Contexts,
    latents: Latents,
    spec: ModelSpec,
    preset: Preset,
    seed: int,
    work: Path,
    device: Device,
    report: Report,
) -> dict[str, dict[str, nn.Module]]:
    """FAST's adapter and foreground network of every prompt by their name, and the contexts, on a frozen UNet.

    Each step trains those of one prompt, drawn at random. ``work`` is where the stage keeps its state.
    """
    aware = {name: build(preset, spec.latent_channels)[Branch.AWARE] for name in spec.adapters}
    fronts = {
        name: ForegroundNetwork(spec.latent_channels, preset.foreground_width) for name in spec.adapters
    }
    nets = {name: nn.ModuleList([aware[name], fronts[name]]) for name in spec.adapters}

    def loss_of(name: str, prompt: int, draws: torch.Generator) -> Tensor:
        batch = preset.foreground.batch
        return loss(unet, aware[name], fronts[name], contexts, latents, prompt, batch, device, draws)

    fit_prompts(
        "foreground",
        nets,
        contexts,
        loss_of,
        latents.examples.names,
        spec,
        preset.foreground,
        seed=seed,
        work=work,
        device=device,
        report=report,
    )
    return {name: {Branch.AWARE.value: aware[name], FOREGROUND: fronts[name]} for name in spec.adapters}


def loss(
    unet: UNet2DConditionModel,
    adapter: MaskGuidanceAdapter,
    foreground: ForegroundNetwork,
    contexts: Contexts,
    latents: Latents,
    prompt: int,
    batch: int,
    device: Device,
    generator: torch.Generator,
) -> Tensor:
    """Algorithm 1 for one prompt, as the released code computes it: means of squares over all cells.

    The foreground is foreseen from the noised latent and noised again by the same noise, which the guided estimate
    then has to find in the latent that shows it under the mask.
    """
    clean, masks, names, timesteps = latents.draw(batch, generator, prompt=prompt)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    noised = latents.noised(clean, timesteps, noise)
    with device.precision():
        foreseen = foreground(noised, timesteps, masks).float()
        shown = torch.where(masks > 0, latents.noised(foreseen, timesteps, noise), noised)
        guided = adapter(unet(shown, timesteps, contexts(names)).sample, masks).float()
    denoising = (noise - guided).square().mean()
    total: Tensor = (
        DENOISING_WEIGHT * denoising + FOREGROUND_WEIGHT * (foreseen - masks * clean).square().mean()
    )
    return total
