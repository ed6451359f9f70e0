"""Eq. 12 and the identity start of the adapters."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from stage_rt.recipe import Branch, Recipe
from stage_rt.training import guidance
from stage_rt.training.adapter import MaskGuidanceAdapter
from stage_rt.training.denoiser import Contexts
from stage_rt.training.loop import Device
from stage_rt.training.presets import PRESETS

CPU = Device(torch.device("cpu"), False)


def test_identity_start_carries_unit_normal_estimates_through() -> None:
    adapter = MaskGuidanceAdapter(latent_channels=4, hidden_channels=(16, 32, 16))
    guidance.start_as_identity(adapter)
    eps = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 16, 16)
    torch.testing.assert_close(adapter.eval()(eps, mask), eps, atol=1e-4, rtol=0)


def test_identity_start_needs_no_more_than_the_preset_widths() -> None:
    for preset in PRESETS.values():
        assert min(preset.adapter_widths) >= 8
        guidance.build(preset, preset.latent_channels(1))


def test_adapters_of_colour_wavelets_are_wide_enough_to_carry_them() -> None:
    for adapter in guidance.build(PRESETS["tiny"], 12).values():
        eps = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(adapter.eval()(eps, torch.zeros(2, 1, 16, 16)), eps, atol=1e-4, rtol=0)


class _Latents:
    """Two fixed latents whose noised value is the latent plus the noise, so that the loss is known by hand."""

    def draw(self, count: int, generator: torch.Generator, *, prompt: int) -> tuple[Tensor, ...]:
        assert prompt == 1
        masks = torch.zeros(count, 1, 4, 4)
        masks[:, :, :2] = 1
        return torch.full((count, 4, 4, 4), 2.0), masks, torch.ones(count).long(), torch.tensor([600, 100])

    def noised(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        return latents + noise


class _Unet(nn.Module):
    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> SimpleNamespace:
        assert timesteps.tolist() == [600, 100, 600, 100]
        return SimpleNamespace(sample=x)


class _Plus(nn.Module):
    def __init__(self, offset: float, masks: list[Tensor]) -> None:
        super().__init__()
        self.offset, self.masks = offset, masks

    def forward(self, eps: Tensor, mask: Tensor) -> Tensor:
        self.masks.append(mask)
        return eps + self.offset


def test_loss_is_equation_12_with_the_authors_weights() -> None:
    handed: dict[Branch, list[Tensor]] = {branch: [] for branch in Branch}
    adapters = {Branch.AWARE: _Plus(0.5, handed[Branch.AWARE]), Branch.ONLY: _Plus(0.25, handed[Branch.ONLY])}
    loss = guidance.loss(
        _Unet(),  # type: ignore[arg-type]
        adapters,  # type: ignore[arg-type]
        Contexts(2, 1, 1, torch.Generator()),
        _Latents(),  # type: ignore[arg-type]
        Recipe.authors(),
        1,
        2,
        CPU,
        torch.Generator().manual_seed(0),
    )
    # Aware: |n - (2 + n + 0.5)| under a mask of 1 on half of the cells and zeta elsewhere. zeta(600) = 0.5.
    aware = 2.5 * ((0.5 + 0.5 * 0.5) + 0.5) / 2
    # Only: |n' - (2 M0 + n' + 0.25)|, unmasked.
    only = (2.25 + 0.25) / 2
    assert math.isclose(loss.item(), 4 * aware + only, rel_tol=1e-6)
    soft = handed[Branch.AWARE][0]
    assert soft[0, 0, 3, 3] == 0.5
    assert soft[1, 0, 3, 3] == 0.0
    assert handed[Branch.ONLY][0].unique().tolist() == [0.0, 1.0]
