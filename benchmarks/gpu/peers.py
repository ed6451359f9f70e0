"""The loop as PyTorch users run it: the authors' two states, the single state, and that compiled by PyTorch.

Each peer is a generator of steps: after every ``next`` one more iteration was launched. They are given what is good
for them: folded adapters, networks in half precision with channels last, the fastest convolutions cuDNN finds (our
engines leave that choice alone, since it may differ between two runs of one seed), float32 states, noise from the
device's own generator.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from model import ADAPTER, PROMPT
from torch import nn

from stage_rt.export.fold import FoldedAdapter
from stage_rt.export.networks import Denoiser
from stage_rt.recipe import Branch, Recipe
from stage_rt.training.folder import Model

Tensor = torch.Tensor
Denoise = Callable[[Tensor, int, Tensor, Branch], Tensor]


def denoiser(model: Model, batch: int, device: str, dtype: torch.dtype, compiled: str | None) -> Denoise:
    """UNet and adapter of a branch on ``[batch, ...]``; ``compiled`` is a mode of ``torch.compile`` or None."""
    torch.backends.cudnn.benchmark = True

    def ready(network: nn.Module) -> Any:
        network = nn.Module.to(network, device, dtype, memory_format=torch.channels_last).eval()
        return torch.compile(network, mode=compiled, fullgraph=True) if compiled else network

    unet = ready(Denoiser(model.unet))
    adapters = {branch: ready(FoldedAdapter(adapter)) for branch, adapter in model.adapters[ADAPTER].items()}
    context = model.contexts[PROMPT].to(device, dtype).repeat(batch, 1, 1)
    timesteps = torch.arange(model.spec.recipe.steps, device=device).unsqueeze(1)

    @torch.inference_mode()
    def denoise(x: Tensor, i: int, mask: Tensor, branch: Branch) -> Tensor:
        if compiled:
            torch.compiler.cudagraph_mark_step_begin()
        last = x.to(dtype, memory_format=torch.channels_last)
        guided: Tensor = adapters[branch](unet(last, timesteps[i], context), mask.to(dtype))
        return guided.float()

    return denoise


@torch.inference_mode()
def two_states(denoise: Denoise, clean: Tensor, mask: Tensor, recipe: Recipe) -> Iterator[None]:
    """The authors' loop: an image state, an auxiliary state, and all three draws at every step."""
    x = torch.randn_like(clean)
    a, soft = x, torch.ones_like(mask)
    for i in reversed(range(recipe.steps)):
        before = float(recipe.schedule.abar[max(i - 1, 0)])
        b = before**0.5 * clean + (1 - before) ** 0.5 * torch.randn_like(clean)
        m = before**0.5 * mask + (1 - before) ** 0.5 * torch.randn_like(mask)
        only = recipe.branch(i) is Branch.ONLY
        state, handed = (a, mask) if only else (x, soft)
        x0 = _estimate(state, denoise(state, i, handed, recipe.branch(i)), recipe, i)
        x0 = mask * x0 + (1 - mask) * mask if only else soft * x0 + (1 - soft) * clean
        y = _posterior(state, x0, recipe, i)
        blend = mask if only else soft
        x, a = blend * y + (1 - blend) * b, mask * y + (1 - mask) * m
        soft = mask + recipe.zeta(i) * (1 - mask)
        yield


@torch.inference_mode()
def single_state(denoise: Denoise, clean: Tensor, mask: Tensor, recipe: Recipe) -> Iterator[None]:
    """The same loop in the single-state form this engine runs, one operation after the other."""
    x = torch.randn_like(clean)
    for i in reversed(range(recipe.steps)):
        c = recipe.coefficients[i]
        soft = mask + c.mix * (1 - mask)
        x0 = x * c.sqrt_recip_abar - denoise(x, i, soft, recipe.branch(i)) * c.sqrt_recipm1_abar
        x0 = soft * x0 + (1 - soft) * clean
        y = c.posterior_x0 * x0 + c.posterior_xt * x + c.sigma * torch.randn_like(x)
        n = torch.randn_like(mask if c.shared_noise else clean)
        blend = mask + c.blend * (1 - mask)
        x = blend * y + (1 - blend) * (c.background_signal * clean + c.background_noise * n)
        yield


def _estimate(x: Tensor, eps: Tensor, recipe: Recipe, i: int) -> Tensor:
    abar = float(recipe.schedule.abar[i])
    return x * abar**-0.5 - eps * (1 / abar - 1) ** 0.5


def _posterior(x: Tensor, x0: Tensor, recipe: Recipe, i: int) -> Tensor:
    mean = float(recipe.schedule.posterior_x0[i]) * x0 + float(recipe.schedule.posterior_xt[i]) * x
    return mean + (recipe.coefficients[i].sigma if i else 0.0) * torch.randn_like(x)


PEERS: dict[str, tuple[Callable[..., Iterator[None]], str | None]] = {
    "authors_eager": (two_states, None),
    "eager": (single_state, None),
    "compiled": (single_state, "max-autotune"),
}
