"""Latents of wavelets: nothing is lost, every coefficient counts alike, and the model is used as any other."""

import numpy as np
import pytest
import torch

from stage_rt.training import autoencoder
from stage_rt.training.data import Examples
from stage_rt.training.folder import load_autoencoder
from stage_rt.training.loop import Device
from stage_rt.training.lossless import HaarAutoencoder

CPU = Device(torch.device("cpu"), False)


def surfaces(channels: int) -> Examples:
    """Smooth photographs with a little noise, like those of real surfaces."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 180, 32)[None, None, :, None]
    images = np.clip(ramp + rng.normal(0, 4, (9, channels, 32, 32)), 0, 255).astype(np.uint8)
    labels, masks = torch.zeros(9, 32, 32, dtype=torch.bool), torch.zeros(9, 1, 16, 16, dtype=torch.bool)
    return Examples(torch.from_numpy(images), labels, masks, torch.zeros(9).long(), ["good"])


def scaled(examples: Examples) -> torch.Tensor:
    return examples.images.float() / 127.5 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_have_unit_variance_and_decode_to_the_image(channels: int) -> None:
    examples = surfaces(channels)
    vae = autoencoder.wavelets(examples, CPU)
    posterior = vae.encode(scaled(examples)).latent_dist
    assert posterior.mean.shape == (9, 4 * channels, 16, 16)
    assert (posterior.logvar == -30).all()
    torch.testing.assert_close(
        posterior.mean.square().mean(dim=(0, 2, 3)), torch.ones(4 * channels), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(vae.decode(posterior.mean).sample, scaled(examples), atol=1e-5, rtol=0)


def test_coefficients_are_haars() -> None:
    image = torch.tensor([[[[0.4, 0.2], [0.1, -0.3]]]])
    coefficients = HaarAutoencoder().encode(image).latent_dist.mean.flatten()
    expected = torch.tensor(
        [0.4 + 0.2 + 0.1 - 0.3, 0.4 - 0.2 + 0.1 + 0.3, 0.4 + 0.2 - 0.1 + 0.3, 0.4 - 0.2 - 0.1 - 0.3]
    )
    torch.testing.assert_close(coefficients, expected / 2)


def test_half_precision_keeps_every_grey_level() -> None:
    examples = surfaces(1)
    vae = autoencoder.wavelets(examples, CPU).half().float()
    mean = vae.encode(scaled(examples)).latent_dist.mean.half().float()
    levels = ((vae.decode(mean).sample + 1) * 127.5).round()
    assert (levels - examples.images).abs().max() <= 1


def test_a_flat_training_set_is_not_scaled_without_limit() -> None:
    examples = surfaces(1)
    examples.images[:] = 100
    vae = autoencoder.wavelets(examples, CPU)
    assert torch.isfinite(vae.encode(scaled(examples)).latent_dist.mean).all()


def test_it_comes_back_from_disk_as_what_it_was(tmp_path) -> None:
    vae = autoencoder.wavelets(surfaces(3), CPU)
    vae.save_pretrained(tmp_path / "vae")
    again = load_autoencoder(tmp_path / "vae")
    assert isinstance(again, HaarAutoencoder)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
