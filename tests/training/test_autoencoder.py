"""Folding the standardisation into the autoencoder keeps what it encodes and decodes."""

import torch

from stage_rt.training import autoencoder
from stage_rt.training.data import Examples
from stage_rt.training.loop import Device
from stage_rt.training.presets import Preset

CPU = Device(torch.device("cpu"), False)


def examples(side: int = 32, cells: int = 16) -> Examples:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 1, side, side), generator=draws).to(torch.uint8)
    masks = torch.zeros(6, 1, cells, cells, dtype=torch.bool)
    masks[3:, 0, 4:6, 4:6] = True
    labels = torch.zeros(6, side, side, dtype=torch.bool)
    labels[3:, 16:24, 16:24] = True
    return Examples(images, labels, masks, torch.tensor([0, 0, 0, 1, 1, 2]), ["good", "part+a", "part+b"])


def test_standardised_latents_are_unit_and_decode_the_same(micro: Preset) -> None:
    torch.manual_seed(0)
    vae = autoencoder.build(micro.autoencoder, 1, 32).eval()
    data = examples()
    before = vae.decode(vae.encode(data.images.float() / 127.5 - 1).latent_dist.mean).sample
    autoencoder.standardise(vae, data, CPU)
    mean, logvar = autoencoder.encode(vae, data.images, CPU).chunk(2, dim=1)
    after = vae.decode(mean).sample
    variance = mean.var(dim=(0, 2, 3)) + logvar.exp().mean(dim=(0, 2, 3))
    torch.testing.assert_close(mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_a_quarter_of_the_draws_is_good_and_types_are_even() -> None:
    data = examples()
    names = data.prompt[data.draw(4000, torch.Generator().manual_seed(0))]
    shares = torch.bincount(names, minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.375, 0.375]), atol=0.03, rtol=0)
    assert (data.prompt[data.draw(200, torch.Generator(), prompt=2)] == 2).all()


def test_patches_of_defects_hold_labelled_cells(micro: Preset) -> None:
    data = examples()
    data.images[:3] = 0
    data.images[3:] = 0
    data.images[3:, :, 8:12, 8:12] = 255
    patches, labels = autoencoder._patches(data, micro.autoencoder, torch.Generator().manual_seed(1))
    assert torch.equal(patches > 0, labels > 0)
    bright = (patches > 0).flatten(1).any(dim=1)
    drawn = data.draw(micro.autoencoder.stage.batch, torch.Generator().manual_seed(1))
    assert torch.equal(bright, data.prompt[drawn] > 0)
