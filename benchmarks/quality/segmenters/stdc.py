"""STDC1-Seg (Fan et al., CVPR 2021): short-term dense concatenation, and a decoder that learned detail."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import convolution, enlarged, plain
from .encoder import begin_with

WIDTHS = (32, 64, 256, 512, 1024)
BLOCKS = 4


class STDC(nn.Module):
    """The backbone STDC1 of Table 1: stages at 1/2 to 1/32 of the size, the last three of two modules each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(
            [convolution(3, WIDTHS[0], stride=2), convolution(WIDTHS[0], WIDTHS[1], stride=2)]
        )
        pairs = pairwise(WIDTHS[1:])
        self.stages = nn.ModuleList(
            nn.Sequential(_Module(channels, out, 2), _Module(out, out, 1)) for channels, out in pairs
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features at 1/8, 1/16 and 1/32."""
        for layer in self.first:
            x = layer(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class _Module(nn.Module):
    """Fig. 3: convolutions of falling width, joined."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        widths = [out >> k for k in range(1, BLOCKS)]
        widths.append(widths[-1])
        self.first = convolution(channels, widths[0], 1)
        self.shrink = plain(widths[0], widths[0], 3, 2, groups=widths[0]) if stride == 2 else nn.Identity()
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.rest = nn.ModuleList(convolution(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        parts = [self.pool(x)]
        x = self.shrink(x)
        for layer in self.rest:
            x = layer(x)
            parts.append(x)
        return torch.cat(parts, dim=1)


class _Refine(nn.Module):
    """Attention refinement of BiSeNet (Yu et al., ECCV 2018), which the paper's decoder has."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.inner = convolution(channels, out)
        self.weigh = plain(out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        weight: Tensor = self.weigh(x.mean(dim=(2, 3), keepdim=True)).sigmoid()
        return x * weight


class STDCSeg(nn.Module):
    """Backbone, context path, feature fusion and head; one auxiliary head at 1/8 learns the detail in training."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = STDC()
        _, _, eighth, sixteenth, last = WIDTHS
        self.mean = convolution(last, 128, 1)
        self.refine = nn.ModuleList([_Refine(last, 128), _Refine(sixteenth, 128)])
        self.smooth = nn.ModuleList([convolution(128, 128), convolution(128, 128)])
        self.fuse = convolution(eighth + 128, 256, 1)
        self.attend = nn.Sequential(
            nn.Conv2d(256, 64, 1, bias=False), nn.ReLU(), nn.Conv2d(64, 256, 1, bias=False)
        )
        self.head = nn.Sequential(convolution(256, 256), nn.Conv2d(256, classes, 1, bias=False))
        self.detail = nn.Sequential(convolution(eighth, 64), nn.Conv2d(64, classes, 1, bias=False))

    @property
    def last(self) -> nn.Module:
        """See `SEGMENTERS`."""
        return self.head[-1]

    def begin_with(self, weights: dict[str, Tensor]) -> list[str]:
        """See `stage_rt.quality.segmenters.encoder`."""
        return begin_with(self.encoder, weights)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See `SEGMENTERS`."""
        eighth, sixteenth, last = self.encoder(x)
        deep = self.refine[0](last) + self.mean(last.mean(dim=(2, 3), keepdim=True))
        deep = self.smooth[0](_nearest(deep, sixteenth))
        deep = self.smooth[1](_nearest(self.refine[1](sixteenth) + deep, eighth))
        fused = self.fuse(torch.cat([eighth, deep], dim=1))
        fused = fused + fused * self.attend(fused.mean(dim=(2, 3), keepdim=True)).sigmoid()
        scores = enlarged(self.head(fused), x)
        return [scores, enlarged(self.detail(eighth), x)] if self.training else scores


def _nearest(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[-2:], mode="nearest")
