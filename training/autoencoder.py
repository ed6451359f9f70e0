"""Stage one: a small AutoencoderKL on patches of every photograph."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from .data import Examples
from .loop import Device
from .presets import Preset

KL_WEIGHT = 1e-6
GRADIENT_WEIGHT = 2.0
LATENT_CHANNELS = 4


def build(preset: Preset, channels: int) -> AutoencoderKL:
    """A randomly initialised autoencoder for ``channels``-channel images."""
    levels = len(preset.vae_widths)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=preset.vae_widths,
        layers_per_block=preset.vae_layers,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=min(8, preset.norm_groups),
        sample_size=preset.image_size,
        scaling_factor=1.0,
        # The attention of the middle block would see patches in training and whole images afterwards.
        mid_block_add_attention=False,
    )


def loss(
    vae: AutoencoderKL, examples: Examples, preset: Preset, device: Device, generator: torch.Generator
) -> Tensor:
    """L1 and L1 of finite differences between patch and reconstruction, plus a faint KL term.

    The differences keep texture and small defects, which plain L1 blurs away. Half of the patches are cut
    around a labelled defect, so that defects are not lost among good surface.
    """
    patches = _patches(examples, preset, generator).to(device.device)
    with device.precision():
        posterior = vae.encode(patches).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    vertical = F.l1_loss(decoded.diff(dim=2), patches.diff(dim=2))
    horizontal = F.l1_loss(decoded.diff(dim=3), patches.diff(dim=3))
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    return F.l1_loss(decoded, patches) + GRADIENT_WEIGHT * (vertical + horizontal) + KL_WEIGHT * divergence


def _patches(examples: Examples, preset: Preset, generator: torch.Generator) -> Tensor:
    batch, crop = preset.autoencoder.batch, preset.crop
    index = examples.draw(batch, generator)
    span = preset.image_size - crop
    patches = []
    for sample in index.tolist():
        corner = torch.randint(0, span + 1, (2,), generator=generator)
        cells = examples.masks[sample, 0].nonzero()
        if len(cells):
            cell = cells[int(torch.randint(len(cells), (1,), generator=generator))]
            factor = preset.image_size // preset.latent_size
            jitter = torch.randint(0, crop, (2,), generator=generator)
            corner = (cell * factor - jitter).clamp(0, span)
        top, left = corner.tolist()
        patch = examples.images[sample, :, top : top + crop, left : left + crop]
        flips = [axis for axis in (1, 2) if torch.rand((), generator=generator) < 0.5]
        patches.append(patch.flip(flips))
    return torch.stack(patches).float() / 127.5 - 1


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
def encode(vae: AutoencoderKL, images: Tensor, device: Device, batch: int = 16) -> Tensor:
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
    for chunk in images.split(batch):
        posterior = vae.encode(chunk.to(device.device).float() / 127.5 - 1).latent_dist
        moments.append(torch.cat([posterior.mean, posterior.logvar], dim=1).float().cpu())
    return torch.cat(moments)


@torch.no_grad()
def save_reconstructions(vae: AutoencoderKL, examples: Examples, device: Device, path: Path) -> None:
    """Picture of photographs (upper row) and their reconstructions, two of each name, up to sixteen."""
    index = torch.cat([torch.nonzero(examples.prompt == k).flatten()[:2] for k in range(len(examples.names))])
    images = examples.images[index[:16]]
    mean, _ = encode(vae, images, device).chunk(2, dim=1)
    decoded = vae.decode(mean.to(device.device)).sample.float().cpu()
    decoded = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    rows = [torch.cat(list(row), dim=2) for row in (images, decoded)]
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    Image.fromarray(sheet.squeeze()).save(path)
