"""SegFormer-B0 (Xie et al., NeurIPS 2021) as ``transformers`` has it, with random weights."""

from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from .blocks import enlarged


class SegFormer(nn.Module):
    """The default configuration of the library is B0."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes))

    @property
    def last(self) -> nn.Module:
        """See `SEGMENTERS`."""
        layer: nn.Module = self.network.decode_head.classifier
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """See `SEGMENTERS`; the network's own scores are a quarter as large."""
        return enlarged(self.network(pixel_values=x).logits, x)
