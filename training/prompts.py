"""The stage in which every prompt has networks of its own, on a UNet that all share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from stage_rt.spec import ModelSpec

from .denoiser import Contexts
from .loop import Device, Report, fit
from .presets import Stage


def fit_prompts(
    stage: str,
    networks: Mapping[str, nn.Module],
    contexts: Contexts,
    loss_of: Callable[[str, int, torch.Generator], Tensor],
    prompts: list[str],
    spec: ModelSpec,
    length: Stage,
    *,
    seed: int,
    work: Path,
    device: Device,
    report: Report,
) -> None:
    """Train the networks of every prompt, and the contexts, in place; each step is of one prompt, drawn at random.

    Args:
        stage: name of the stage.
        networks: what is trained, by the name of the adapter it belongs to.
        contexts: those of all prompts.
        loss_of: scalar loss of one batch of a prompt, by its adapter's name and its number in ``prompts``.
        prompts: names of all that the UNet knows; the first is good surface and has no networks.
        spec: says which adapter a prompt has.
        length: ``steps`` are counted per prompt.
        seed, work, device, report: as `fit`.

    Raises:
        ModelError: as `fit`.
    """
    trainables = nn.ModuleDict({"adapters": nn.ModuleList(networks.values()), "contexts": contexts})

    def drawn(draws: torch.Generator) -> Tensor:
        number = int(torch.randint(1, len(prompts), (), generator=draws))
        name = spec.prompts[prompts[number]]
        assert name is not None
        return loss_of(name, number, draws)

    fit(
        stage,
        device.place(trainables).train(),
        drawn,
        replace(length, steps=length.steps * len(networks)),
        seed=seed,
        work=work,
        report=report,
    )
    trainables.eval()
