"""The text encoder of latent-diffusion text2img: run once a prompt, then left behind (spec, section b).

A function of the checkpoint's own tensors: the one published module for it comes with a library that would be
needed for nothing else.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from .keys import BERT_HEAD, BertSizes

PLACEHOLDER = 1008
"""The token ``*``, in whose place a prompt's learned vectors stand."""

CAPTIONS = {
    "Anomaly *": (101, 28685, PLACEHOLDER, 102),
    "a photo of a *": (101, 1037, 6302, 1997, 1037, PLACEHOLDER, 102),
    "*": (101, PLACEHOLDER, 102),
    "": (101, 102),
}
"""The texts models are painted with, as ids of the BERT-uncased vocabulary with its start and end tokens."""


@torch.no_grad()
def encode(
    read: Callable[[str], Tensor], sizes: BertSizes, ids: Sequence[int], vectors: Tensor | None = None
) -> Tensor:
    """The context of a text, or of a caption whose placeholder is replaced by learned vectors.

    Args:
        read: a tensor of the encoder by its name; layers are read when it is their turn.
        sizes: the encoder's sizes.
        ids: the caption; padding is added here, and attended to as the authors do.
        vectors: ``[n, dim]``, any n that leaves room for the caption; None for a text without a placeholder.

    Returns:
        float32 ``[tokens, dim]``.
    """
    padded = torch.tensor([*ids, *[0] * (sizes.tokens - len(ids))])
    x = read("token_emb.weight")[padded].float()
    if vectors is not None:
        place = list(ids).index(PLACEHOLDER)
        x = torch.cat([x[:place], vectors.float(), x[place + 1 :]])[: sizes.tokens]
    x = x + read("pos_emb.emb.weight").float()
    for layer in range(sizes.layers):
        attention, feed_forward = (f"attn_layers.layers.{2 * layer + n}" for n in (0, 1))
        x = x + _attention(read, f"{attention}.1", _norm(read, f"{attention}.0", x))
        hidden = F.gelu(_linear(read, f"{feed_forward}.1.net.0.0", _norm(read, f"{feed_forward}.0", x)))
        x = x + _linear(read, f"{feed_forward}.1.net.2", hidden)
    return _norm(read, "norm", x)


def _attention(read: Callable[[str], Tensor], name: str, x: Tensor) -> Tensor:
    """Every token attends to every token, padding included."""
    q, k, v = (
        (x @ read(f"{name}.{part}.weight").float().T).reshape(len(x), -1, BERT_HEAD).transpose(0, 1)
        for part in ("to_q", "to_k", "to_v")
    )
    return _linear(read, f"{name}.to_out", F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))


def _norm(read: Callable[[str], Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], read(f"{name}.weight").float(), read(f"{name}.bias").float())


def _linear(read: Callable[[str], Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, read(f"{name}.weight").float(), read(f"{name}.bias").float())
