"""Mask-guidance adapter (MGA): replaces the UNet's noise estimate by one that knows the mask."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class MaskGuidanceAdapter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Convolutional stack on the UNet's estimate and the mask; the paper's "mask guidance adapter".

    ``hidden_channels`` are the widths of the 3x3 convolutions, each followed by BatchNorm and ReLU; a 1x1
    convolution ends the stack. The default widths are the authors' (2,662,532 parameters). The layout of
    ``conv`` is theirs too, so that their weights load under the same names.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, latent_channels: int = 4, hidden_channels: tuple[int, ...] = (64, 256, 512, 256, 64)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 2 * latent_channels
        for hidden in hidden_channels:
            layers += [nn.Conv2d(width, hidden, 3, padding=1), nn.BatchNorm2d(hidden), nn.ReLU()]
            width = hidden
        layers.append(nn.Conv2d(width, latent_channels, 1))
        self.conv = nn.Sequential(*layers)

    def forward(self, eps: Tensor, mask: Tensor) -> Tensor:
        """Guided estimate.

        Args:
            eps: the UNet's estimate, ``[B, C, h, w]``.
            mask: soft EMA mask (aware branch) or binary mask (only branch), ``[B, 1, h, w]``, same dtype.

        Returns:
            ``[B, C, h, w]``; it replaces ``eps``, nothing is added to it.
        """
        guided: Tensor = self.conv(torch.cat([eps, mask.expand_as(eps)], dim=1))
        return guided
