"""What the small segmenters are built of."""

from torch import Tensor, nn
from torch.nn import functional


def convolution(channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU; the size is kept but for the stride."""
    return nn.Sequential(*plain(channels, out, kernel, stride, groups), nn.ReLU())


def plain(channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)
    )


def enlarged(scores: Tensor, like: Tensor) -> Tensor:
    """``scores`` ``[B, c, h, w]`` at the size of ``like`` ``[B, *, H, W]``."""
    return functional.interpolate(scores, like.shape[-2:], mode="bilinear", align_corners=False)
