"""What the denoiser is shown and how much each error counts."""

import math
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from stage_rt.names import PresetName
from stage_rt.training import denoiser
from stage_rt.training.denoiser import Contexts
from stage_rt.training.loop import Device
from stage_rt.training.presets import PRESETS

CPU = Device(torch.device("cpu"), False)
CLEAN = 3.0
ABAR = torch.tensor([0.5, 0.01])


class _Latents:
    """A good part and a defect in the upper half, constant, at the two noise levels of ``ABAR``."""

    def __init__(self, prompts: list[int]) -> None:
        self._prompts = torch.tensor(prompts)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        masks = torch.zeros(count, 1, 4, 4)
        masks[self._prompts > 0, :, :2] = 1
        return torch.full((count, 4, 4, 4), CLEAN), masks, self._prompts, torch.tensor([0, 1])

    abar = staticmethod(lambda timesteps: ABAR[timesteps][:, None, None, None])
    noised = denoiser.Latents.noised


class _Unet(nn.Module):
    """Predicts the noise that would have led to the whole clean latent, and keeps what it saw."""

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> SimpleNamespace:
        self.seen = x
        abar = ABAR[timesteps][:, None, None, None]
        return SimpleNamespace(sample=(x - abar.sqrt() * CLEAN) / (1 - abar).sqrt())


def _loss(prompts: list[int]) -> tuple[float, Tensor]:
    unet = _Unet()
    contexts = Contexts(2, 1, 1, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    value = denoiser.loss(unet, contexts, _Latents(prompts), 2, CPU, generator)  # type: ignore[arg-type]
    return value.item(), unet.seen


def test_an_anomaly_only_view_has_one_noise_channel_around_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "ANOMALY_ONLY_SHARE", 1.0)
    monkeypatch.setattr(denoiser, "SINGLE_CHANNEL_SHARE", 1.0)
    _, seen = _loss([0, 1])
    around = seen[1, :, 2:]
    assert (around == around[:1]).all()
    assert (1 - ABAR[1]).sqrt() * -4 < around.mean() < (1 - ABAR[1]).sqrt() * 4
    assert (seen[1, 0, :2] != seen[1, 1, :2]).all()
    assert (seen[0, 0] != seen[0, 1]).all()


def test_an_anomaly_only_view_may_have_independent_noise_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "ANOMALY_ONLY_SHARE", 1.0)
    monkeypatch.setattr(denoiser, "SINGLE_CHANNEL_SHARE", 0.0)
    _, seen = _loss([1, 1])
    assert (seen[:, 0] != seen[:, 1]).all()


def test_an_error_counts_by_its_label_and_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "ANOMALY_ONLY_SHARE", 1.0)
    value, _ = _loss([1, 1])
    # The network is wrong outside the masks only, by -sqrt(abar/(1 - abar)) * CLEAN; half of the cells are there
    # and count once, the other half counts DEFECT_WEIGHT times.
    squared = ABAR / (1 - ABAR) * CLEAN**2
    emphasis = torch.tensor([2.0, denoiser.EMPHASIS_LIMIT])
    expected = (squared * emphasis).mean().item() / (1 + denoiser.DEFECT_WEIGHT)
    assert math.isclose(value, expected, rel_tol=1e-4)


def test_a_whole_view_keeps_its_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "ANOMALY_ONLY_SHARE", 0.0)
    value, seen = _loss([0, 1])
    assert value < 1e-8
    assert (seen[:, 0] != seen[:, 1]).all()


@pytest.mark.parametrize("name", get_args(PresetName))
def test_the_unet_of_every_preset_fits_its_latents(name: PresetName) -> None:
    preset = PRESETS[name]
    channels = preset.latent_channels(1)
    with torch.device("meta"):
        unet = denoiser.build(preset, channels)
        latent = torch.empty(1, channels, preset.latent_size, preset.latent_size)
        context = torch.empty(1, preset.tokens, preset.context_dim)
        estimate = unet(latent, torch.zeros(1), encoder_hidden_states=context).sample
    assert estimate.shape == latent.shape
