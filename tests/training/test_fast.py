"""FAST's stage: the loss by hand, the network's shapes, and a model that trains and goes on."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from stage_rt.errors import InputError
from stage_rt.spec import FOREGROUND
from stage_rt.training import fast
from stage_rt.training.denoiser import Contexts
from stage_rt.training.folder import load_model
from stage_rt.training.foreground import ForegroundNetwork
from stage_rt.training.loop import Device
from stage_rt.training.presets import Preset
from stage_rt.training.train import train

CPU = Device(torch.device("cpu"), autocast=False)


@pytest.mark.parametrize("size", [16, 15, 6])
def test_the_network_keeps_the_size_of_any_latent(size: int) -> None:
    network = ForegroundNetwork(latent_channels=3, width=8)
    x, mask = torch.randn(2, 3, size, size), torch.zeros(2, 1, size, size)
    mask[..., 1] = 1
    first = network(x, torch.tensor([0, 999]), mask)
    assert first.shape == x.shape
    assert not torch.allclose(first, network(x, torch.tensor([999, 0]), mask))
    assert not torch.allclose(first, network(x, torch.tensor([0, 999]), 1 - mask))


class _Latents:
    """A latent of 2 whose noised value is it plus the noise, and a mask of half of the cells."""

    def draw(self, count: int, generator: torch.Generator, *, prompt: int) -> tuple[Tensor, ...]:
        masks = torch.zeros(count, 1, 4, 4)
        masks[:, :, :2] = 1
        return torch.full((count, 4, 4, 4), 2.0), masks, torch.ones(count).long(), torch.tensor([600, 100])

    def noised(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        return latents + noise


class _Foreground(nn.Module):
    def forward(self, x: Tensor, timesteps: Tensor, mask: Tensor) -> Tensor:
        return torch.full_like(x, 0.5)


class _Unet(nn.Module):
    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=x)


class _Plus(nn.Module):
    def forward(self, eps: Tensor, mask: Tensor) -> Tensor:
        return eps + 0.25


def test_loss_is_algorithm_1_with_the_weights_of_the_released_code() -> None:
    loss = fast.loss(
        _Unet(),  # type: ignore[arg-type]
        _Plus(),  # type: ignore[arg-type]
        _Foreground(),  # type: ignore[arg-type]
        Contexts(2, 1, 1, torch.Generator()),
        _Latents(),  # type: ignore[arg-type]
        1,
        2,
        CPU,
        torch.Generator().manual_seed(0),
    )
    # The UNet is shown 0.5 under the mask and 2 around it, each with the noise.
    denoising = (0.75**2 + 2.25**2) / 2
    foreground = ((0.5 - 2) ** 2 + 0.5**2) / 2
    assert math.isclose(loss.item(), 2 * denoising + 5 * foreground, rel_tol=1e-5)


def test_no_rim_is_measured_for_it(dataset: Path, tmp_path: Path, micro: Preset) -> None:
    with pytest.raises(InputError, match="only STAGE has: leave `--rim` out"):
        train(dataset, tmp_path / "model", system="fast", rim=True, report=print, say=print, notify=print)


def test_a_model_of_fasts_has_no_other_branch_and_nothing_calibrated(
    dataset: Path, tmp_path: Path, micro: Preset
) -> None:
    stages: list[str] = []

    def report(stage: str, step: int, steps: int, loss: float | None) -> None:
        stages.append(stage)

    train(dataset, tmp_path / "model", system="fast", report=report, say=lambda line: None, notify=print)
    assert stages.count("foreground") == 2 * micro.foreground.steps
    assert {"guidance", "calibration"}.isdisjoint(stages)
    model = load_model(tmp_path / "model")
    assert (model.spec.system, model.spec.recipe.guidance, model.spec.defaults) == ("fast", 1.0, {})
    assert set(model.adapters["part+dent"]) == {"aware", FOREGROUND}
    assert (tmp_path / "model" / "adapters" / "part+spot" / FOREGROUND / "config.json").is_file()
