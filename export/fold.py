"""A mask-guidance adapter without BatchNorm, for inference."""

import torch
from torch import Tensor, nn

from ..training.adapter import MaskGuidanceAdapter


class FoldedAdapter(nn.Module):
    """What a `MaskGuidanceAdapter` computes in eval mode, as convolutions and ReLU alone.

    BatchNorm in eval mode is affine per channel, so it folds into the convolution before it exactly:
    ``w' = w g / sqrt(v + eps)`` and ``b' = (b - mu) g / sqrt(v + eps) + beta``. The adapter repeats the mask to
    as many equal channels as ``eps`` has; one channel with the sum of their weights gives the same.
    """

    def __init__(self, adapter: MaskGuidanceAdapter) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in adapter.conv:
            if isinstance(layer, nn.BatchNorm2d):
                layers[-1] = _fold(layers[-1], layer)
            else:
                layers.append(layer)
        layers[0] = _merge_mask_channels(layers[0], adapter.config.latent_channels)
        self.conv = nn.Sequential(*layers)

    def forward(self, eps: Tensor, mask: Tensor) -> Tensor:
        """``eps`` ``[B, C, h, w]`` and ``mask`` ``[B, 1, h, w]`` to the guided estimate ``[B, C, h, w]``."""
        guided: Tensor = self.conv(torch.cat([eps, mask], dim=1))
        return guided


@torch.no_grad()
def _fold(convolution: nn.Module, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = convolution.weight.double() * gain[:, None, None, None]
    bias = (convolution.bias.double() - norm.running_mean) * gain + norm.bias
    return _convolution(convolution, weight, bias)


@torch.no_grad()
def _merge_mask_channels(convolution: nn.Module, latent_channels: int) -> nn.Conv2d:
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    weight = convolution.weight.double()
    mask = weight[:, latent_channels:].sum(dim=1, keepdim=True)
    return _convolution(convolution, torch.cat([weight[:, :latent_channels], mask], dim=1), convolution.bias)


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    out_channels, in_channels = weight.shape[:2]
    size, padding = like.kernel_size, like.padding
    folded = nn.Conv2d(in_channels, out_channels, size, padding=padding)  # type: ignore[arg-type]
    folded.weight.copy_(weight)
    assert folded.bias is not None
    folded.bias.copy_(bias)
    return folded
