"""A trained encoder from a file in place of random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stage_rt.errors import InputError, ModelError


@runtime_checkable
class Encoding(Protocol):
    """A segmenter with an encoder that may have been trained apart."""

    def begin_with(self, weights: dict[str, Tensor]) -> Sequence[str]:
        """Take an encoder's weights; the names of those that are missing or of another shape."""
        ...


def load_encoder(network: nn.Module, path: Path) -> None:
    """Give a network's encoder the weights of a safetensors file, whatever else it holds.

    Raises:
        InputError: the network is not one with an encoder.
        ModelError: the file is no such file, not of this encoder, or has weights that are not finite.
    """
    if not isinstance(network, Encoding):
        raise InputError(
            "this segmenter has no encoder to be trained apart", "use `--segmenter segformer` or `stdc`"
        )
    try:
        weights = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"`{path}` cannot be read as safetensors ({type(error).__name__})",
            "save the encoder's weights as such",
        ) from None
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise ModelError(
            f"`{path}` has a weight `{broken[0]}` that is not finite", "give weights that are whole"
        )
    if missing := network.begin_with(weights):
        raise ModelError(
            f"`{path}` has no weight `{missing[0]}` of the right shape",
            "give weights of this segmenter's encoder",
        )


def begin_with(encoder: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """As `Encoding.begin_with`, for weights named as the encoder's own after whatever they all begin with."""
    own = encoder.state_dict()
    first = next(iter(own))
    prefix = next((name.removesuffix(first) for name in weights if f".{name}".endswith(f".{first}")), "")
    fitting = {
        name: weights[prefix + name]
        for name, tensor in own.items()
        if prefix + name in weights and weights[prefix + name].shape == tensor.shape
    }
    encoder.load_state_dict(own | fitting)
    return [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
