"""Random checkpoints in the format the authors' code writes, of any size: pickled modules and all."""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from stage_rt.export.importers.bert import PLACEHOLDER
from stage_rt.export.importers.keys import (
    BERT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    AutoencoderSizes,
    BertSizes,
    Shape,
    UNetSizes,
)
from stage_rt.recipe import Recipe


@dataclass(frozen=True)
class Sizes:
    unet: UNetSizes
    vae: AutoencoderSizes
    bert: BertSizes
    adapter: tuple[int, ...]
    vectors: int = 4


SMALL = Sizes(
    unet=UNetSizes(4, 4, widths=(32, 32), attention=(True, False), layers=1, context_dim=16),
    vae=AutoencoderSizes(3, 4, widths=(32, 32), layers=1),
    bert=BertSizes(words=28_700, tokens=12, dim=16, attention_dim=64, feed_forward_dim=24, layers=1),
    adapter=(8, 12),
    vectors=3,
)
"""Sixteen-cell latents of 32-pixel images; the text encoder knows just the words it is asked for."""

FULL = Sizes(
    unet=UNetSizes(4, 4, (320, 640, 1280, 1280), (True, True, True, False), layers=2, context_dim=1280),
    vae=AutoencoderSizes(3, 4, widths=(128, 256, 512, 512), layers=2),
    bert=BertSizes(30_522, tokens=77, dim=1280, attention_dim=512, feed_forward_dim=5120, layers=32),
    adapter=(64, 256, 512, 256, 64),
)


def state_dict(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    """All tensors of a ``model.ckpt``: schedule, UNet, autoencoder, text encoder."""
    betas = torch.from_numpy(Recipe.authors().levels.betas)
    state = {"betas": betas.float(), "alphas_cumprod": torch.cumprod(1 - betas, 0).float()}
    parts = ((UNET_PREFIX, sizes.unet), (VAE_PREFIX, sizes.vae), (BERT_PREFIX, sizes.bert))
    for prefix, part in parts:
        for name, shape in part.entries():
            state[f"{prefix}{name}"] = weight(name, shape, generator)
    state[f"{BERT_PREFIX}to_logits.bias"] = torch.zeros(sizes.bert.words)
    return state


def weight(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """Values that keep a signal through many layers near one."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return torch.randn(shape, generator=generator).mul_(math.prod(shape[1:]) ** -0.5)


def write_ldm(path: Path, sizes: Sizes = SMALL, seed: int = 0) -> Path:
    """A ``model.ckpt``."""
    generator = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": 7, "state_dict": state_dict(sizes, generator)}, path)
    return path


def write_run(
    folder: Path,
    names: Iterable[str] = ("part+dent", "part+spot"),
    *,
    step: int | str = 10,
    sizes: Sizes = SMALL,
    seed: int = 0,
    trained: str | None = None,
) -> Path:
    """The three files of a training run at ``step``; all names but ``trained`` keep the vectors of one word."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    word = torch.randn(sizes.vectors, sizes.bert.dim, generator=generator)
    vectors = {
        name: torch.randn(word.shape, generator=generator) if trained in (None, name) else word.clone()
        for name in names
    }
    write_embeddings(folder / f"embeddings_gs-{step}.pt", vectors)
    for stem in ("fine_image", "fine_mask"):
        write_adapter(folder / f"{stem}-{step}.pt", sizes.adapter, generator)
    return folder


def write_embeddings(path: Path, vectors: dict[str, Tensor]) -> Path:
    parameters = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in vectors.items()})
    # A view into a row of tokens, as the authors cut theirs out of a text.
    token = torch.tensor([101, PLACEHOLDER, 102])[1]
    torch.save({"string_to_token": {"*": token}, "string_to_param": parameters}, path)
    return path


def write_adapter(path: Path, hidden: Iterable[int], generator: torch.Generator, channels: int = 4) -> Path:
    layers: list[nn.Module] = []
    width = 2 * channels
    for out in hidden:
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    layers.append(nn.Conv2d(width, channels, 1))
    with _their_class() as kind:
        adapter = kind()
        adapter.conv = nn.Sequential(*layers)
        with torch.no_grad():
            for name, tensor in adapter.state_dict().items():
                if "running_mean" in name:
                    tensor.normal_(generator=generator)
                elif "running_var" in name:
                    tensor.uniform_(0.5, 2, generator=generator)
                elif tensor.ndim == 4:
                    tensor.copy_(weight(name, tensor.shape, generator))
        torch.save(adapter.eval(), path)
    return path


@contextmanager
def _their_class() -> Iterator[type[nn.Module]]:
    """The class the adapters are pickled as, in a module that exists for as long as it takes."""
    names = ("ldm", "ldm.models", "ldm.models.diffusion", "ldm.models.diffusion.ddpm")
    kind = type("MGA", (nn.Module,), {"__module__": names[-1]})
    try:
        for name in names:
            sys.modules[name] = ModuleType(name)
        sys.modules[names[-1]].MGA = kind  # type: ignore[attr-defined]
        yield kind
    finally:
        for name in names:
            del sys.modules[name]
