"""Names and shapes that a latent-diffusion checkpoint must have, for any width and depth.

The sizes are read off a few tensors; from them follows every other. Names are those of the CompVis code: a
residual block has a norm, a convolution, the timestep's projection, a norm and a convolution; a transformer has
self-attention, cross-attention and a gated feed-forward layer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Entries = Iterator[tuple[str, Shape]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
BERT_PREFIX = "cond_stage_model.transformer."

BERT_HEAD = 64
"""Channels of an attention head of the text encoder, whatever its width."""


@dataclass(frozen=True)
class UNetSizes:
    """A UNet: channels and attention of each level, residual blocks a level, width of the context."""

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    context_dim: int

    @classmethod
    def of(cls, shapes: Shapes) -> "UNetSizes":
        """The sizes of a UNet with tensors of these ``shapes``. Raises `KeyError` for a tensor that is missing."""
        widths, attention, layers, block = [], [], 0, 1
        while f"input_blocks.{block}.0.in_layers.2.weight" in shapes:
            widths.append(shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0])
            attention.append(f"input_blocks.{block}.1.proj_in.weight" in shapes)
            first = block
            while f"input_blocks.{block}.0.in_layers.2.weight" in shapes:
                block += 1
            layers = max(layers, block - first)
            block += 1  # the convolution that halves the picture
        return cls(
            in_channels=shapes["input_blocks.0.0.weight"][1],
            out_channels=shapes["out.2.weight"][0],
            widths=tuple(widths),
            attention=tuple(attention),
            layers=layers,
            context_dim=shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        )

    def entries(self) -> Entries:
        """Name and shape of every tensor."""
        width, time = self.widths[0], 4 * self.widths[0]
        yield from _affine("time_embed.0", time, width)
        yield from _affine("time_embed.2", time, time)
        yield from _affine("input_blocks.0.0", width, self.in_channels, 3, 3)
        skips, block, levels = [width], 1, len(self.widths)
        for level, out in enumerate(self.widths):
            for _ in range(self.layers):
                yield from self._block(f"input_blocks.{block}", width, out, self.attention[level])
                width, block = out, block + 1
                skips.append(width)
            if level < levels - 1:
                yield from _affine(f"input_blocks.{block}.0.op", width, width, 3, 3)
                block += 1
                skips.append(width)
        yield from _residual("middle_block.0", width, width, time)
        yield from _transformer("middle_block.1", width, self.context_dim)
        yield from _residual("middle_block.2", width, width, time)
        block = 0
        for level in reversed(range(levels)):
            out = self.widths[level]
            for layer in range(self.layers + 1):
                name = f"output_blocks.{block}"
                yield from self._block(name, width + skips.pop(), out, self.attention[level])
                width, block = out, block + 1
                if level and layer == self.layers:
                    yield from _affine(f"{name}.{1 + self.attention[level]}.conv", out, out, 3, 3)
        yield from _norm("out.0", width)
        yield from _affine("out.2", self.out_channels, width, 3, 3)

    def _block(self, name: str, width: int, out: int, attention: bool) -> Entries:
        yield from _residual(f"{name}.0", width, out, 4 * self.widths[0])
        if attention:
            yield from _transformer(f"{name}.1", out, self.context_dim)


@dataclass(frozen=True)
class AutoencoderSizes:
    """An autoencoder: channels of the picture, of the latent and of each level, residual blocks a level."""

    image_channels: int
    latent_channels: int
    widths: tuple[int, ...]
    layers: int

    @classmethod
    def of(cls, shapes: Shapes) -> "AutoencoderSizes":
        """The sizes of an autoencoder with these ``shapes``. Raises `KeyError` for a tensor that is missing."""
        widths: list[int] = []
        while (first := f"encoder.down.{len(widths)}.block.0.conv2.weight") in shapes:
            widths.append(shapes[first][0])
        layers = 0
        while f"encoder.down.0.block.{layers}.conv2.weight" in shapes:
            layers += 1
        return cls(
            image_channels=shapes["encoder.conv_in.weight"][1],
            latent_channels=shapes["post_quant_conv.weight"][1],
            widths=tuple(widths),
            layers=layers,
        )

    def entries(self) -> Entries:
        """Name and shape of every tensor."""
        latent, last = self.latent_channels, len(self.widths) - 1
        width = self.widths[0]
        yield from _affine("encoder.conv_in", width, self.image_channels, 3, 3)
        for level, out in enumerate(self.widths):
            for layer in range(self.layers):
                yield from _plain_residual(f"encoder.down.{level}.block.{layer}", width, out)
                width = out
            if level < last:
                yield from _affine(f"encoder.down.{level}.downsample.conv", out, out, 3, 3)
        yield from _middle("encoder", width)
        yield from _affine("encoder.conv_out", 2 * latent, width, 3, 3)
        yield from _affine("quant_conv", 2 * latent, 2 * latent, 1, 1)
        yield from _affine("post_quant_conv", latent, latent, 1, 1)
        yield from _affine("decoder.conv_in", width, latent, 3, 3)
        for level in reversed(range(last + 1)):
            out = self.widths[level]
            for layer in range(self.layers + 1):
                yield from _plain_residual(f"decoder.up.{level}.block.{layer}", width, out)
                width = out
            if level:
                yield from _affine(f"decoder.up.{level}.upsample.conv", out, out, 3, 3)
        yield from _middle("decoder", self.widths[-1], out=width)
        yield from _affine("decoder.conv_out", self.image_channels, width, 3, 3)


@dataclass(frozen=True)
class BertSizes:
    """The text encoder: words it knows, tokens of a text, width, widths of attention and feed-forward, layers."""

    words: int
    tokens: int
    dim: int
    attention_dim: int
    feed_forward_dim: int
    layers: int

    @classmethod
    def of(cls, shapes: Shapes) -> "BertSizes":
        """The sizes of an encoder with tensors of these ``shapes``.

        Raises:
            KeyError: one is missing.
            ValueError: its attention does not divide into heads.
        """
        layers = 0
        while f"attn_layers.layers.{2 * layers}.1.to_q.weight" in shapes:
            layers += 1
        words, dim = shapes["token_emb.weight"]
        attention_dim = shapes["attn_layers.layers.0.1.to_q.weight"][0]
        if not attention_dim or attention_dim % BERT_HEAD:
            raise ValueError(f"its attention is {attention_dim} wide, a multiple of {BERT_HEAD} was wanted")
        return cls(
            words=words,
            tokens=shapes["pos_emb.emb.weight"][0],
            dim=dim,
            attention_dim=attention_dim,
            feed_forward_dim=shapes["attn_layers.layers.1.1.net.0.0.weight"][0],
            layers=layers,
        )

    def entries(self) -> Entries:
        """Name and shape of every tensor that is used; ``to_logits`` is not."""
        yield "token_emb.weight", (self.words, self.dim)
        yield "pos_emb.emb.weight", (self.tokens, self.dim)
        for layer in range(self.layers):
            attention, feed_forward = (f"attn_layers.layers.{2 * layer + n}" for n in (0, 1))
            yield from _norm(f"{attention}.0", self.dim)
            for name in ("to_q", "to_k", "to_v"):
                yield f"{attention}.1.{name}.weight", (self.attention_dim, self.dim)
            yield from _affine(f"{attention}.1.to_out", self.dim, self.attention_dim)
            yield from _norm(f"{feed_forward}.0", self.dim)
            yield from _affine(f"{feed_forward}.1.net.0.0", self.feed_forward_dim, self.dim)
            yield from _affine(f"{feed_forward}.1.net.2", self.dim, self.feed_forward_dim)
        yield from _norm("norm", self.dim)


def _affine(name: str, out: int, *rest: int) -> Entries:
    yield f"{name}.weight", (out, *rest)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Entries:
    return _affine(name, width)


def _residual(name: str, width: int, out: int, time: int) -> Entries:
    yield from _norm(f"{name}.in_layers.0", width)
    yield from _affine(f"{name}.in_layers.2", out, width, 3, 3)
    yield from _affine(f"{name}.emb_layers.1", out, time)
    yield from _norm(f"{name}.out_layers.0", out)
    yield from _affine(f"{name}.out_layers.3", out, out, 3, 3)
    if width != out:
        yield from _affine(f"{name}.skip_connection", out, width, 1, 1)


def _transformer(name: str, width: int, context_dim: int) -> Entries:
    block = f"{name}.transformer_blocks.0"
    yield from _norm(f"{name}.norm", width)
    yield from _affine(f"{name}.proj_in", width, width, 1, 1)
    for attention, source in (("attn1", width), ("attn2", context_dim)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, source)
        yield f"{block}.{attention}.to_v.weight", (width, source)
        yield from _affine(f"{block}.{attention}.to_out.0", width, width)
    yield from _affine(f"{block}.ff.net.0.proj", 8 * width, width)
    yield from _affine(f"{block}.ff.net.2", width, 4 * width)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _norm(f"{block}.{norm}", width)
    yield from _affine(f"{name}.proj_out", width, width, 1, 1)


def _plain_residual(name: str, width: int, out: int) -> Entries:
    yield from _norm(f"{name}.norm1", width)
    yield from _affine(f"{name}.conv1", out, width, 3, 3)
    yield from _norm(f"{name}.norm2", out)
    yield from _affine(f"{name}.conv2", out, out, 3, 3)
    if width != out:
        yield from _affine(f"{name}.nin_shortcut", out, width, 1, 1)


def _middle(half: str, width: int, out: int | None = None) -> Entries:
    """The lowest level of one half of an autoencoder, and the norm at its end, ``out`` wide."""
    yield from _plain_residual(f"{half}.mid.block_1", width, width)
    yield from _norm(f"{half}.mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        yield from _affine(f"{half}.mid.attn_1.{name}", width, width, 1, 1)
    yield from _plain_residual(f"{half}.mid.block_2", width, width)
    yield from _norm(f"{half}.norm_out", width if out is None else out)
