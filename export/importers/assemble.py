"""What the importers share: options, and a model folder put together of an LDM checkpoint, contexts and adapters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import JsonValue, ValidationError
from torch import Tensor

from stage_rt.errors import CheckpointError
from stage_rt.names import MaskRule
from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import ModelSpec

from ...training.adapter import MaskGuidanceAdapter
from .adapters import Adapter
from .folder import Network, write_network
from .ldm import LatentDiffusion, TextEncoder, check_ldm
from .torchfile import MAX_BYTES, TorchFile, read_torch_file
from .unpickle import printable


@dataclass(frozen=True)
class Options:
    """What the files do not say, and what to do with them.

    ``image_size`` is in pixels; ``heads`` are the UNet's attention heads; ``say`` is told what is being done,
    ``notify`` what the user should know.
    """

    image_size: int = 256
    heads: int = 8
    mask_rule: MaskRule = "cover"
    dtype: torch.dtype = torch.float32
    max_bytes: int = MAX_BYTES
    say: Callable[[str], None] = field(default=lambda line: None)
    notify: Callable[[str], None] = field(default=lambda line: None)

    def read(self, path: Path) -> TorchFile:
        """`read_torch_file` within the limit; what the file wanted to call is told."""
        file = read_torch_file(path, max_bytes=self.max_bytes)
        if file.calls:
            self.notify(
                f"`{path}` asks for calls of names that are no part of a checkpoint; none was made: "
                f"{', '.join(file.calls[:3])}"
            )
        return file


DEFAULTS = Options()


def open_ldm(path: Path, options: Options) -> LatentDiffusion:
    """Read and check the LDM checkpoint, and tell what of it is left out. Raises `CheckpointError`."""
    options.say(f"reading {path.name}")
    checked = check_ldm(options.read(path))
    if checked.left_out:
        options.notify(
            f"{len(checked.left_out)} tensors of `{path}` belong to no part of a model and were left out, the "
            f"first is `{printable(checked.left_out[0])}`"
        )
    return checked


def make_contexts(
    bert: TextEncoder, caption: str, vectors: Mapping[str, Tensor], options: Options
) -> dict[str, Tensor]:
    """The context float32 ``[tokens, dim]`` of every prompt from its learned vectors."""
    contexts = {}
    for prompt, learned in vectors.items():
        options.say(f"encoding {prompt}")
        contexts[prompt] = bert.context(caption, learned)
    return contexts


def ldm_networks(ldm: LatentDiffusion, options: Options) -> dict[str, Network]:
    """UNet and autoencoder by their places in the model folder. Raises `CheckpointError` for odd sizes."""
    if options.image_size % ldm.downscale:
        raise CheckpointError(
            f"`{ldm.path}` makes latents {ldm.downscale} times smaller than the image: {options.image_size} pixels "
            "do not divide by that, give another `--image-size`"
        )
    if odd := [width for width in ldm.unet.widths if width % options.heads]:
        raise CheckpointError(
            f"`{ldm.path}` has a UNet {odd[0]} wide, which {options.heads} heads do not divide: give `--heads`"
        )
    unet = ldm.unet_config(options.image_size // ldm.downscale, options.heads)
    vae = ldm.vae_config(options.image_size)
    return {
        "unet": Network(UNet2DConditionModel, unet, lambda: ldm.unet_weights(unet), ldm.path),
        "vae": Network(AutoencoderKL, vae, lambda: ldm.vae_weights(vae), ldm.path),
    }


def adapter_networks(adapters: Mapping[str, Mapping[Branch, Adapter]]) -> dict[str, Network]:
    """Pairs of adapters, by their names, by their places in the model folder."""
    return {
        f"adapters/{name}/{branch}": Network(
            MaskGuidanceAdapter,
            {"latent_channels": adapter.latent_channels, "hidden_channels": adapter.hidden_channels},
            adapter.weights,
            adapter.path,
        )
        for name, pair in adapters.items()
        for branch, adapter in pair.items()
    }


def ldm_spec(
    ldm: LatentDiffusion,
    prompts: Mapping[str, str | None],
    contexts: Mapping[str, Tensor],
    provenance: dict[str, JsonValue],
    options: Options,
    surface: str | None = None,
) -> ModelSpec:
    """``stage.json`` of a model made from an LDM checkpoint. Raises `CheckpointError`."""
    tokens, dim = next(iter(contexts.values())).shape
    return make_spec(
        image_size=options.image_size,
        image_channels=ldm.vae.image_channels,
        latent_channels=ldm.vae.latent_channels,
        latent_size=options.image_size // ldm.downscale,
        latent_scale=ldm.latent_scale,
        tokens=tokens,
        context_dim=dim,
        recipe=Recipe.authors().model_copy(update={"mask_rule": options.mask_rule}),
        prompts=dict(prompts),
        surface=surface,
        provenance=provenance,
    )


def make_spec(**fields: Any) -> ModelSpec:
    """A `ModelSpec`. Raises `CheckpointError` naming the field that cannot be."""
    try:
        return ModelSpec(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"the model cannot be described, {'.'.join(map(str, first['loc'])) or 'its sizes'}: {first['msg']}"
        ) from None


def write_all(networks: Mapping[str, Network], folder: Path, options: Options) -> None:
    """Write every network at its place in the model folder."""
    for place, network in networks.items():
        options.say(f"writing {place}")
        write_network(network, folder / place, options.dtype)
