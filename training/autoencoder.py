"""Stage one: a small AutoencoderKL on patches of every photograph, or wavelets that need no training."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from .data import Examples
from .folder import Autoencoder
from .loop import Device
from .lossless import HaarAutoencoder
from .presets import LATENT_CHANNELS, Learned

KL_WEIGHT = 1e-6
GRADIENT_WEIGHT = 2.0

DEFECT_WEIGHT = 4.0
"""How much more a labelled pixel or cell counts than another; defects cover little of an image."""


def build(learned: Learned, channels: int, image_size: int) -> AutoencoderKL:
    """A randomly initialised autoencoder for ``channels``-channel images."""
    levels = len(learned.widths)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=learned.widths,
        layers_per_block=learned.layers,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=min(8, learned.widths[0]),
        sample_size=image_size,
        scaling_factor=1.0,
        # The attention of the middle block would see patches in training and whole images afterwards.
        mid_block_add_attention=False,
    )


def loss(
    vae: AutoencoderKL, examples: Examples, learned: Learned, device: Device, generator: torch.Generator
) -> Tensor:
    """L1 and L1 of finite differences between patch and reconstruction, plus a faint KL term.

    The differences keep texture and thin lines, which plain L1 blurs away. Three quarters of the patches, all but
    `GOOD_SHARE`, are cut around a labelled defect, and labelled pixels count :data:`DEFECT_WEIGHT` times: defects are
    what the model is for.
    """
    patches, labels = (part.to(device.device) for part in _patches(examples, learned, generator))
    with device.precision():
        posterior = vae.encode(patches).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    error = decoded.float() - patches
    weight = 1 + (DEFECT_WEIGHT - 1) * labels
    differences = _mean(error.diff(dim=2), weight[:, :, 1:]) + _mean(error.diff(dim=3), weight[..., 1:])
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    total: Tensor = _mean(error, weight) + GRADIENT_WEIGHT * differences + KL_WEIGHT * divergence
    return total


def _mean(error: Tensor, weight: Tensor) -> Tensor:
    return (error.abs() * weight).mean() / weight.mean()


def _patches(examples: Examples, learned: Learned, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches ``[B, c, crop, crop]`` in [-1, 1] and their labels, 0/1 ``[B, 1, crop, crop]``."""
    crop, factor = learned.crop, learned.factor
    span = examples.images.shape[-1] - crop
    patches, labels = [], []
    for sample in examples.draw(learned.stage.batch, generator).tolist():
        corner = torch.randint(0, span + 1, (2,), generator=generator)
        mask = examples.masks[sample]
        cells = mask[0].nonzero()
        if len(cells):
            cell = cells[int(torch.randint(len(cells), (1,), generator=generator))]
            jitter = torch.randint(0, crop, (2,), generator=generator)
            corner = (cell * factor - jitter).clamp(0, span)
        top, left = corner.tolist()
        flips = [axis for axis in (1, 2) if torch.rand((), generator=generator) < 0.5]
        label = mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        window = (slice(None), slice(top, top + crop), slice(left, left + crop))
        patches.append(examples.images[sample][window].flip(flips))
        labels.append(label[window].flip(flips))
    return torch.stack(patches).float() / 127.5 - 1, torch.stack(labels).float()


@torch.no_grad()
def standardise(vae: AutoencoderKL, examples: Examples, device: Device) -> None:
    """Fold a per-channel shift and scale into the 1x1 convolutions so that latents have mean 0, variance 1.

    The noise schedule assumes unit variance, and the only branch and the masked blends treat 0 as "nothing
    there". Afterwards the latent scale is 1; encode-decode is unchanged up to rounding.
    """
    moments = encode(vae, examples.images, device)
    mean, logvar = moments.chunk(2, dim=1)
    shift = mean.mean(dim=(0, 2, 3))
    variance = mean.var(dim=(0, 2, 3)) + logvar.exp().mean(dim=(0, 2, 3))
    scale = variance.sqrt()
    count = len(shift)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:count] /= scale[:, None, None, None].to(quant.weight.device)
    quant.bias[:count] = (quant.bias[:count] - shift.to(quant.bias.device)) / scale.to(quant.bias.device)
    quant.bias[count:] -= 2 * scale.log().to(quant.bias.device)
    post.bias += (post.weight[:, :, 0, 0] @ shift.to(post.weight.device)).reshape(-1)
    post.weight *= scale[None, :, None, None].to(post.weight.device)


@torch.no_grad()
def wavelets(examples: Examples, device: Device) -> HaarAutoencoder:
    """An autoencoder of wavelets whose coefficients have unit variance over the examples."""
    vae: HaarAutoencoder = device.place(HaarAutoencoder(examples.images.shape[1]))
    coefficients = encode(vae, examples.images, device).chunk(2, dim=1)[0]
    mean = coefficients[:, ::4].mean(dim=(0, 2, 3))
    coefficients[:, ::4] -= mean[:, None, None]
    vae.standardise(mean, coefficients.square().mean(dim=(0, 2, 3)).sqrt())
    vae.eval().requires_grad_(False)
    return vae


@torch.no_grad()
def encode(vae: Autoencoder, images: Tensor, device: Device, batch: int = 16) -> Tensor:
    """Moments (mean and clamped log variance) of uint8 images.

    Args:
        vae: the autoencoder.
        images: uint8 ``[N, c, S, S]``.
        device: where to run.
        batch: images a call.

    Returns:
        float32 ``[N, 2C, h, w]`` on the CPU.
    """
    moments = []
    for chunk in torch.split(images, batch):
        posterior = vae.encode(chunk.to(device.device).float() / 127.5 - 1).latent_dist
        moments.append(torch.cat([posterior.mean, posterior.logvar], dim=1).float().cpu())
    return torch.cat(moments)


@torch.no_grad()
def decode(vae: Autoencoder, latents: Tensor, device: Device) -> Tensor:
    """Images of latents ``[N, C, h, w]``: uint8 ``[N, c, S, S]`` on the CPU, all in one call."""
    decoded: Tensor = vae.decode(latents.to(device.device)).sample.float().cpu()
    return ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def save_reconstructions(vae: Autoencoder, examples: Examples, device: Device, path: Path) -> None:
    """Picture of photographs (upper row) and their reconstructions, two of each name, up to sixteen."""
    index = torch.cat([torch.nonzero(examples.prompt == k).flatten()[:2] for k in range(len(examples.names))])
    images = examples.images[index[:16]]
    mean, _ = encode(vae, images, device).chunk(2, dim=1)
    rows = [torch.cat(list(row), dim=2) for row in (images, decode(vae, mean, device))]
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    Image.fromarray(sheet.squeeze()).save(path)
