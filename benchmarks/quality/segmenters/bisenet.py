"""BiSeNet V2 (Yu et al., IJCV 2021): a wide shallow branch for detail, a narrow deep one for meaning."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import convolution, enlarged, plain

EXPANSION = 6
HEAD = 128


class BiSeNetV2(nn.Module):
    """Tables 1 to 3 of the paper, with its four booster heads, which are used in training only."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.detail = nn.Sequential(*_stage(3, 64, 2), *_stage(64, 64, 3), *_stage(64, 128, 3))
        self.stem = _Stem(16)
        self.semantic = nn.ModuleList(
            [
                nn.Sequential(_Gather(16, 32, 2), _Gather(32, 32, 1)),
                nn.Sequential(_Gather(32, 64, 2), _Gather(64, 64, 1)),
                nn.Sequential(_Gather(64, 128, 2), *(_Gather(128, 128, 1) for _ in range(3))),
            ]
        )
        self.context = _Context(128)
        self.merge = _Aggregation(128)
        self.head = _head(128, HEAD * 8, classes)
        self.boosters = nn.ModuleList(_head(width, HEAD, classes) for width in (16, 32, 64, 128))

    @property
    def last(self) -> nn.Module:
        """See `SEGMENTERS`."""
        return self.head[-1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See `SEGMENTERS`."""
        meaning = self.stem(x)
        stages = [meaning]
        for stage in self.semantic:
            meaning = stage(meaning)
            stages.append(meaning)
        scores = enlarged(self.head(self.merge(self.detail(x), self.context(meaning))), x)
        if not self.training:
            return scores
        return [scores, *(enlarged(head(one), x) for head, one in zip(self.boosters, stages, strict=True))]


def _stage(channels: int, out: int, count: int) -> list[nn.Module]:
    rest = (convolution(out, out) for _ in range(count - 1))
    return [convolution(channels, out, stride=2), *rest]


def _head(channels: int, inner: int, classes: int) -> nn.Sequential:
    return nn.Sequential(convolution(channels, inner), nn.Dropout(0.1), nn.Conv2d(inner, classes, 1))


class _Stem(nn.Module):
    """Fig. 4a: two ways of shrinking at once."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.first = convolution(3, out, stride=2)
        self.left = nn.Sequential(convolution(out, out // 2, 1), convolution(out // 2, out, stride=2))
        self.join = convolution(2 * out, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        both = torch.cat([self.left(x), functional.max_pool2d(x, 3, 2, 1)], dim=1)
        joined: Tensor = self.join(both)
        return joined


class _Gather(nn.Module):
    """Fig. 5: gather and expand, an inverted bottleneck with depthwise convolutions."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide = channels * EXPANSION
        layers: list[nn.Module] = [convolution(channels, channels)]
        if stride == 2:
            layers += [
                plain(channels, wide, 3, 2, groups=channels),
                plain(wide, wide, groups=wide),
                nn.ReLU(),
            ]
            self.skip: nn.Module = nn.Sequential(
                plain(channels, channels, 3, 2, groups=channels), plain(channels, out, 1)
            )
        else:
            layers += [plain(channels, wide, 3, 1, groups=channels), nn.ReLU()]
            self.skip = nn.Identity()
        self.body = nn.Sequential(*layers, plain(wide, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.skip(x))


class _Context(nn.Module):
    """Fig. 4b: the mean of the whole picture, added everywhere."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.inner = convolution(channels, channels, 1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.inner(self.norm(x.mean(dim=(2, 3), keepdim=True)))
        embedded: Tensor = self.last(x + mean)
        return embedded


class _Aggregation(nn.Module):
    """Fig. 6: bilateral guided aggregation of both branches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail_here = _separable(channels)
        self.detail_far = nn.Sequential(
            plain(channels, channels, 3, 2), nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        )
        self.meaning_here = plain(channels, channels)
        self.meaning_far = _separable(channels)
        self.last = plain(channels, channels)

    def forward(self, detail: Tensor, meaning: Tensor) -> Tensor:
        near = self.detail_here(detail) * enlarged(self.meaning_here(meaning), detail).sigmoid()
        far = enlarged(self.detail_far(detail), meaning) * self.meaning_far(meaning).sigmoid()
        merged: Tensor = self.last(near + enlarged(far, detail))
        return merged


def _separable(channels: int) -> nn.Sequential:
    return nn.Sequential(plain(channels, channels, groups=channels), nn.Conv2d(channels, channels, 1))
