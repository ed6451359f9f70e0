"""The networks of a model, each as one function of tensors: what is traced and what parity is judged against."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call

from stage_rt.errors import ModelError, first_line
from stage_rt.names import DType
from stage_rt.networks import tensors
from stage_rt.spec import FOREGROUND, MODEL_FILE, UNET, VAE_DECODER, VAE_ENCODER, adapter_graph, is_foreground

from ..training.folder import (
    AGAIN,
    Autoencoder,
    Description,
    Model,
    load_autoencoder,
    load_network,
    load_part,
)

TORCH_DTYPES: dict[DType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

_ENCODER = ("encoder", "quant_conv")
_DECODER = ("decoder", "post_quant_conv")
"""Parts of an autoencoder that only its encoder or decoder needs; not every kind has all."""


class Denoiser(nn.Module):
    """The UNet; every sample has a timestep of its own."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """The noise estimate ``[B, C, h, w]`` of ``sample``, which has its shape.

        ``timestep`` int64 ``[B]``, ``context`` ``[B, tokens, dim]``.
        """
        eps: Tensor = self.unet(sample, timestep, context, return_dict=False)[0]
        return eps


class Encoder(nn.Module):
    """The encoder half of the autoencoder."""

    def __init__(self, vae: Autoencoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        """``image`` ``[B, c, S, S]`` to mean and log variance ``[B, 2C, h, w]``, the latter not clamped."""
        moments: Tensor = self.vae.encode(image).latent_dist.parameters
        return moments


class Decoder(nn.Module):
    """The decoder half of the autoencoder."""

    def __init__(self, vae: Autoencoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        """``latent`` ``[B, C, h, w]``, already divided by the latent scale, to an image ``[B, c, S, S]``."""
        image: Tensor = self.vae.decode(latent, return_dict=False)[0]
        return image


def networks(model: Model) -> dict[str, nn.Module]:
    """Every network of ``model`` under the name of its graph, in eval mode."""
    adapters = {
        adapter_graph(name, part): network
        for name, parts in model.adapters.items()
        for part, network in parts.items()
    }
    return {
        UNET: Denoiser(model.unet).eval(),
        **adapters,
        VAE_ENCODER: Encoder(model.vae).eval(),
        VAE_DECODER: Decoder(model.vae).eval(),
    }


def load(folder: Path, graph: str, dtype: torch.dtype) -> nn.Module:
    """One of the `networks` of a model folder, read alone.

    Raises:
        ModelError: it is missing, unreadable or inconsistent.
    """
    if graph == UNET:
        return Denoiser(load_network(UNet2DConditionModel, folder / "unet", dtype)).eval()
    if graph in (VAE_ENCODER, VAE_DECODER):
        vae = load_autoencoder(folder / "vae", dtype)
        half, other = (Encoder, _DECODER) if graph == VAE_ENCODER else (Decoder, _ENCODER)
        # The exporter holds on to weights that it leaves out of the graph.
        for part in other:
            if hasattr(vae, part):
                delattr(vae, part)
        return half(vae).eval()
    return load_part(folder / graph.replace(".", "/"), dtype)


def check(network: nn.Module, graph: str, model: Description) -> None:
    """Refuse a network that does not take and give what ``stage.json`` says of it; nothing is computed.

    Raises:
        ModelError: it cannot run on inputs of those sizes, or its output has another.
    """
    inputs = random_inputs(graph, model, batch=2, timesteps=[1], generator=torch.Generator().manual_seed(0))
    weights = {
        name: tensor.to("meta", torch.float32 if tensor.is_floating_point() else None)
        for name, tensor in chain(network.named_parameters(), network.named_buffers())
    }
    try:
        with torch.no_grad():
            found = functional_call(network, weights, (), {name: x.to("meta") for name, x in inputs.items()})
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the model's {graph} does not fit its {MODEL_FILE} ({first_line(error)})", AGAIN
        ) from None
    _, (_, wanted) = tensors(model.spec, "fp32", graph, 2)
    if tuple(found.shape) != wanted.shape:
        raise ModelError(
            f"the model's {graph} gives {list(found.shape[1:])} where its {MODEL_FILE} says {list(wanted.shape[1:])}",
            AGAIN,
        )


def output_name(graph: str) -> str:
    """Name of a graph's only output."""
    if is_foreground(graph):
        return FOREGROUND
    return {UNET: "eps", VAE_ENCODER: "moments", VAE_DECODER: "image"}.get(graph, "guided")


def random_inputs(
    graph: str, model: Description, *, batch: int, timesteps: Sequence[int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Inputs like those of a run, by name, float32: unit normal latents, the model's own contexts, binary masks.

    The samples are at the ``timesteps`` in turn.
    """
    spec = model.spec
    size = (spec.latent_size, spec.latent_size)

    def latent() -> Tensor:
        return torch.randn(batch, spec.latent_channels, *size, generator=generator)

    steps = torch.tensor([timesteps[n % len(timesteps)] for n in range(batch)])
    if graph == UNET:
        contexts = list(model.contexts.values())
        context = torch.stack([contexts[n % len(contexts)] for n in range(batch)])
        return {"sample": latent(), "timestep": steps, "context": context}
    if graph == VAE_ENCODER:
        pixels = torch.rand(batch, spec.image_channels, spec.image_size, spec.image_size, generator=generator)
        return {"image": 2 * pixels - 1}
    if graph == VAE_DECODER:
        return {"latent": latent() / spec.latent_scale}
    mask = torch.randint(2, (batch, 1, *size), generator=generator).float()
    if is_foreground(graph):
        return {"sample": latent(), "timestep": steps, "mask": mask}
    return {"eps": latent(), "mask": mask}
