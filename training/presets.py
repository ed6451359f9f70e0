"""Sizes and lengths of the training presets."""

from dataclasses import dataclass

from stage_rt.names import PresetName


@dataclass(frozen=True)
class Stage:
    """Length of one training stage: optimiser steps, samples a step, peak learning rate."""

    steps: int
    batch: int
    rate: float


@dataclass(frozen=True)
class Trials:
    """How many pairs the calibration paints with each guidance, and in how many network calls."""

    pairs: int
    calls: int


@dataclass(frozen=True)
class Preset:
    """One size of model and how long each of its three stages trains; ``guidance`` is counted per prompt.

    ``image_size`` is in pixels; the autoencoder halves it once less than it has widths.
    ``crop`` is the side in pixels of the patches the autoencoder is trained on.
    """

    image_size: int
    vae_widths: tuple[int, ...]
    vae_layers: int
    crop: int
    unet_widths: tuple[int, ...]
    unet_layers: int
    attention: tuple[int, ...]
    norm_groups: int
    adapter_widths: tuple[int, ...]
    tokens: int
    context_dim: int
    autoencoder: Stage
    denoiser: Stage
    guidance: Stage
    calibration: Trials

    @property
    def latent_size(self) -> int:
        """Side of the latent, in cells."""
        return self.image_size >> (len(self.vae_widths) - 1)


PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(
        image_size=128,
        vae_widths=(16, 32, 64),
        vae_layers=1,
        crop=64,
        unet_widths=(32, 64, 128),
        unet_layers=1,
        attention=(2,),
        norm_groups=16,
        adapter_widths=(16, 48, 64, 48, 16),
        tokens=8,
        context_dim=64,
        autoencoder=Stage(steps=2400, batch=8, rate=2e-3),
        denoiser=Stage(steps=4800, batch=8, rate=1e-3),
        guidance=Stage(steps=350, batch=8, rate=2e-3),
        calibration=Trials(pairs=16, calls=100),
    ),
    "small": Preset(
        image_size=256,
        vae_widths=(64, 128, 256, 256),
        vae_layers=2,
        crop=128,
        unet_widths=(128, 256, 384),
        unet_layers=2,
        attention=(1, 2),
        norm_groups=32,
        adapter_widths=(64, 256, 512, 256, 64),
        tokens=8,
        context_dim=256,
        autoencoder=Stage(steps=8000, batch=32, rate=1e-3),
        denoiser=Stage(steps=16000, batch=32, rate=3e-4),
        guidance=Stage(steps=1000, batch=32, rate=1e-3),
        calibration=Trials(pairs=32, calls=100),
    ),
}
