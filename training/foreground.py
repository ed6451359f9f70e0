"""FAST's foreground network (FARM): the clean latent under a mask, foreseen from a noisy one.

Xu et al., "FAST", NeurIPS 2025 (arXiv:2509.20295), Section 3.2. The paper says that it is an encoder and a decoder
with Eq. 9 and 10 between them, and that the decoder is told of the mask at several sizes. The file that holds it is
missing from the released code; what calls it has 64 for its width and 128 for the time embedding. Open were, and
decided here: two halvings of the latent, one convolution a size with group normalisation and SiLU, no connections
past the bottleneck, a background weight for each of its channels, and the mask as one more channel of every
convolution of the decoder.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

GROUPS = 8


class ForegroundNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The clean latent under a mask, foreseen from a noisy one; FAST's "foreground-aware reconstruction module".

    ``width`` is a multiple of 8, the channels at the latent's own size; each halving doubles them.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, latent_channels: int = 4, width: int = 64, time_dim: int = 128) -> None:
        super().__init__()
        deepest = 4 * width
        self.encoder = nn.ModuleList(
            [
                _block(latent_channels, width),
                _block(width, 2 * width, stride=2),
                _block(2 * width, deepest, stride=2),
            ]
        )
        self.project = nn.Linear(time_dim, deepest)
        self.background = nn.Sequential(
            nn.Linear(time_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, deepest), nn.Sigmoid()
        )
        self.decoder = nn.ModuleList(
            [_block(deepest + 1, deepest), _block(deepest + 1, 2 * width), _block(2 * width + 1, width)]
        )
        self.out = nn.Conv2d(width, latent_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
        """``sample`` ``[B, C, h, w]``, ``timestep`` int64 ``[B]``, ``mask`` ``[B, 1, h, w]`` to ``[B, C, h, w]``."""
        embedded = get_timestep_embedding(timestep, self.config.time_dim).to(sample.dtype)
        masks = [mask]
        for _ in range(2):
            # A cell is masked where any of those it stands for is, so that small defects stay.
            masks.append(F.max_pool2d(masks[-1], 2, ceil_mode=True))
        x = sample
        for block in self.encoder:
            x = block(x)
        background = self.background(embedded)[:, :, None, None]
        x = (masks[-1] + (1 - masks[-1]) * background) * x + self.project(embedded)[:, :, None, None]
        for block, known in zip(self.decoder, reversed(masks), strict=True):
            if x.shape[2:] != known.shape[2:]:
                x = F.interpolate(x, size=known.shape[2:], mode="nearest")
            x = block(torch.cat([x, known], dim=1))
        foreseen: Tensor = self.out(x)
        return foreseen


def _block(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride=stride, padding=1), nn.GroupNorm(GROUPS, out), nn.SiLU()
    )
