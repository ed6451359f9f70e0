"""An autoencoder that loses nothing and has nothing to learn: a level of wavelets (Haar, Math. Ann. 69, 1910)."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

FACTOR = 2
"""Pixels of a side that become one latent cell."""
CERTAIN = -30.0
"""Log variance of a posterior without spread; less would be clamped (`stage_rt.engine.LOGVAR_RANGE`)."""
LEAST_DEVIATION = 1e-3
"""A coefficient that never changes in the training set is not scaled up without limit."""


class HaarAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Every square of 2x2 pixels as its mean and three differences, scaled to unit variance.

    A drop-in for `AutoencoderKL` where latents need not be small: `encode` and `decode` return what its do. Images
    ``[B, c, S, S]`` have latents ``[B, 4 c, S/2, S/2]``; the coefficients of a channel are neighbours.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        latent = in_channels * FACTOR**2
        self.encoder = nn.Conv2d(in_channels, 2 * latent, FACTOR, stride=FACTOR)
        self.decoder = nn.ConvTranspose2d(latent, in_channels, FACTOR, stride=FACTOR)
        self.standardise(torch.zeros(in_channels), torch.ones(latent))

    @torch.no_grad()
    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Let mean coefficients of means ``[c]`` become 0 and coefficients of deviations ``[4 c]`` become 1.

        Differences keep their mean: decoding adds one number a channel, not one a pixel.
        """
        weight, channels = self.encoder.weight, self.config.in_channels
        mean, deviation = mean.to(weight), deviation.to(weight).clamp(min=LEAST_DEVIATION)
        signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).to(weight)
        basis = torch.stack([torch.outer(down, right) for down in signs for right in signs]) / FACTOR
        kernel = torch.zeros_like(self.decoder.weight)
        for channel in range(channels):
            kernel[4 * channel : 4 * channel + 4, channel] = basis
        weight.zero_()
        weight[: 4 * channels] = kernel / deviation[:, None, None, None]
        self.decoder.weight.copy_(kernel * deviation[:, None, None, None])
        shift, bias = self.encoder.bias, self.decoder.bias
        assert shift is not None
        assert bias is not None
        shift.zero_()
        shift[: 4 * channels : 4] = -mean / deviation[::4]
        shift[4 * channels :] = CERTAIN
        bias.copy_(mean / FACTOR)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Images ``[B, c, S, S]`` in [-1, 1] to a posterior without spread over ``[B, 4 c, S/2, S/2]``."""
        posterior = DiagonalGaussianDistribution(self.encoder(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """Latents ``[B, 4 c, S/2, S/2]`` back to images ``[B, c, S, S]``."""
        image: Tensor = self.decoder(z)
        return DecoderOutput(sample=image) if return_dict else (image,)
