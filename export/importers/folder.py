"""A model folder from imported parts, one network after the other so that few weights are in memory at once."""

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor

from stage_rt import __version__
from stage_rt.errors import CheckpointError, first_line
from stage_rt.files import sha256

from .checks import compare, require_floats

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Where diffusers looks for a network's weights."""


@dataclass(frozen=True)
class Network:
    """A network to write: its class in diffusers' manner, the arguments of that, and where its weights are.

    ``weights`` reads them when it is called; ``source`` is named when something is wrong with them.
    """

    kind: Any
    config: Mapping[str, Any]
    weights: Callable[[], Mapping[str, Tensor]]
    source: Path


def write_network(network: Network, folder: Path, dtype: torch.dtype) -> None:
    """Write ``config.json`` and the weights of a network as ``dtype``.

    Raises:
        CheckpointError: the configuration makes no network, or the weights are not its own, are quantised or do not
            fit ``dtype``.
    """
    empty, weights = _empty(network), network.weights()
    wanted = empty.state_dict()
    compare(
        network.source,
        f"a {network.kind.__name__}",
        {name: tuple(tensor.shape) for name, tensor in weights.items()},
        {name: tuple(tensor.shape) for name, tensor in wanted.items()},
    )
    for name, tensor in weights.items():
        if wanted[name].is_floating_point():
            require_floats(network.source, name, tensor)
    folder.mkdir(parents=True)
    empty.save_config(folder)
    cast = {name: _cast(network.source, name, tensor, dtype) for name, tensor in weights.items()}
    save_file(cast, folder / WEIGHTS, metadata={"format": "pt"})
    # The library lets nobody but the owner read what it writes.
    shutil.copymode(folder / "config.json", folder / WEIGHTS)


def _empty(network: Network) -> Any:
    try:
        with torch.device("meta"):
            return network.kind.from_config(dict(network.config))
    except Exception as error:  # The library checks little: what odd values end in has no common base.
        raise CheckpointError(
            f"no {network.kind.__name__} can be made for `{network.source}` by its configuration "
            f"({first_line(error)})"
        ) from None


def adapter_name(prompt: str, taken: Collection[str]) -> str:
    """A folder's name for the adapters of ``prompt`` that is not ``taken`` yet."""
    plain = re.sub(r"[^A-Za-z0-9_+-]", "_", prompt)
    plain = plain if plain[:1].isalnum() else f"a{plain}"
    name, n = plain, 1
    while name in taken:
        n += 1
        name = f"{plain}-{n}"
    return name


def origin(kind: str, **sources: JsonValue) -> dict[str, JsonValue]:
    """Provenance of an imported model."""
    return {"imported": kind, "stage_rt": __version__, **sources}


def file_origin(path: Path) -> dict[str, JsonValue]:
    """Name and sha256 of a file a model was made from."""
    return {"file": path.name, "sha256": sha256(path)}


def _cast(source: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor.contiguous()
    cast = tensor.to(dtype)
    if not torch.isfinite(cast).all():
        raise CheckpointError(
            f"`{source}` holds values in `{name}` that fp16 cannot hold: use `--dtype fp32`"
        )
    return cast.contiguous()
