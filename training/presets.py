"""Sizes and lengths of the training presets."""

from dataclasses import dataclass, replace

from stage_rt.names import PresetName

from . import lossless

LATENT_CHANNELS = 4
"""Of an autoencoder that is trained, as in Stable Diffusion's."""


@dataclass(frozen=True)
class Stage:
    """Length of one training stage: optimiser steps, samples a step, peak learning rate."""

    steps: int
    batch: int
    rate: float


@dataclass(frozen=True)
class Learned:
    """An autoencoder that is trained: widths of its levels, layers of each, and the side of its patches in pixels."""

    widths: tuple[int, ...]
    layers: int
    crop: int
    stage: Stage

    @property
    def factor(self) -> int:
        """Pixels of a side that become one latent cell; every level after the first halves."""
        return 1 << (len(self.widths) - 1)


@dataclass(frozen=True)
class Trials:
    """How many pairs the calibration paints with each guidance, and in how many network calls."""

    pairs: int
    calls: int


@dataclass(frozen=True)
class Preset:
    """One size of model and how long each of its stages trains.

    ``guidance`` and ``foreground``, one of which is trained, are counted per prompt. ``image_size`` is in pixels.
    ``autoencoder`` is None where latents are wavelets, which need no training (`stage_rt.training.lossless`).
    """

    image_size: int
    autoencoder: Learned | None
    unet_widths: tuple[int, ...]
    unet_layers: int
    attention: tuple[int, ...]
    norm_groups: int
    adapter_widths: tuple[int, ...]
    tokens: int
    context_dim: int
    denoiser: Stage
    guidance: Stage
    calibration: Trials
    foreground_width: int
    foreground: Stage

    @property
    def latent_size(self) -> int:
        """Side of the latent, in cells."""
        return self.image_size // (self.autoencoder.factor if self.autoencoder else lossless.FACTOR)

    def latent_channels(self, image_channels: int) -> int:
        """Channels of the latent of an image."""
        return LATENT_CHANNELS if self.autoencoder else image_channels * lossless.FACTOR**2


_TINY = Preset(
    image_size=64,
    autoencoder=None,
    unet_widths=(32, 64, 128),
    unet_layers=1,
    attention=(2,),
    norm_groups=16,
    adapter_widths=(16, 48, 64, 48, 16),
    tokens=8,
    context_dim=64,
    denoiser=Stage(steps=12000, batch=8, rate=1e-3),
    guidance=Stage(steps=350, batch=8, rate=2e-3),
    calibration=Trials(pairs=16, calls=100),
    foreground_width=32,
    foreground=Stage(steps=1500, batch=8, rate=1e-3),
)

PRESETS: dict[PresetName, Preset] = {
    "tiny": _TINY,
    "night": replace(
        _TINY,
        image_size=128,
        unet_widths=(32, 64, 128, 128),
        attention=(2, 3),
        denoiser=Stage(steps=5000, batch=8, rate=1e-3),
    ),
    "small": Preset(
        image_size=256,
        autoencoder=Learned(
            widths=(64, 128, 256, 256), layers=2, crop=128, stage=Stage(steps=8000, batch=32, rate=1e-3)
        ),
        unet_widths=(128, 256, 384),
        unet_layers=2,
        attention=(1, 2),
        norm_groups=32,
        adapter_widths=(64, 256, 512, 256, 64),
        tokens=8,
        context_dim=256,
        denoiser=Stage(steps=16000, batch=32, rate=3e-4),
        guidance=Stage(steps=1000, batch=32, rate=1e-3),
        calibration=Trials(pairs=32, calls=100),
        foreground_width=64,
        foreground=Stage(steps=4000, batch=32, rate=3e-4),
    ),
}
