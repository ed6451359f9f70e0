"""A segmenter whose lesson showed classes in other shares than the world does."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage_rt.names import SegmenterName

from . import SEGMENTERS


class Calibrated(nn.Module):
    """A network of `SEGMENTERS` and what is added to each class's score when it is asked, not while it learns."""

    odds: Tensor

    def __init__(self, name: SegmenterName, classes: int) -> None:
        super().__init__()
        self.network = SEGMENTERS[name](classes)
        self.register_buffer("odds", torch.zeros(classes, 1, 1))

    @property
    def last(self) -> nn.Module:
        """See `SEGMENTERS`."""
        last: nn.Module = self.network.last  # type: ignore[assignment]  # PyTorch types attributes as tensors
        return last

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See `SEGMENTERS`."""
        scores: Tensor | list[Tensor] = self.network(x)
        return scores if isinstance(scores, list) or self.training else scores + self.odds

    def bring(self, learned: NDArray[np.floating], shares: Sequence[float]) -> None:
        """Bring scores of a lesson in which classes had shares ``learned`` ``[C]`` of all pixels to other ``shares``.

        The logarithm of their ratio is added to the scores (Menon et al., ICLR 2021); a class that either lacks stays
        as it is.
        """
        wanted = np.asarray(shares)
        both = (learned > 0) & (wanted > 0)
        odds = np.log(np.where(both, wanted, 1) / np.where(both, learned, 1))
        self.odds.copy_(torch.from_numpy(odds)[:, None, None])
