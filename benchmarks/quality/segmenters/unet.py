"""A small U-Net (Ronneberger, Fischer and Brox, MICCAI 2015) for CPUs that still answers for every pixel.

It works on squares of 2x2 pixels as channels and gives their scores back as pixels (Shi et al., CVPR 2016): a quarter
of the work, and nothing of a defect of a few pixels is lost.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import convolution

WIDTHS = (16, 32, 64)
SQUARE = 2
PRIOR = 0.9
"""How likely a pixel is no defect before anything was learned (Lin et al., ICCV 2017): hardly any is one."""


class UNet(nn.Module):
    """Three levels of two convolutions each, joined by skips."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        pairs = list(zip((3 * SQUARE**2, *WIDTHS), WIDTHS, strict=False))
        self.down = nn.ModuleList(_level(channels, out) for channels, out in pairs)
        self.up = nn.ModuleList(
            _level(below + beside, beside)
            for below, beside in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[0], classes * SQUARE**2, 1)
        odds = torch.zeros(classes * SQUARE**2)
        odds[: SQUARE**2] = math.log(PRIOR / (1 - PRIOR) * max(classes - 1, 1))
        self.head.bias = nn.Parameter(odds)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    @property
    def last(self) -> nn.Module:
        """See `SEGMENTERS`."""
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        """See `SEGMENTERS`; the size of pictures is a multiple of 8."""
        x = functional.pixel_unshuffle(x, SQUARE).contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []
        for level in self.down:
            x = level(functional.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for level, beside in zip(self.up, kept[-2::-1], strict=True):
            x = level(torch.cat([functional.interpolate(x, scale_factor=2.0), beside], dim=1))
        return functional.pixel_shuffle(self.head(x), SQUARE)


def _level(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(convolution(channels, out), convolution(out, out))
