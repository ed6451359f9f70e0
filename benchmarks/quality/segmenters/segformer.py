"""SegFormer-B0 (Xie et al., NeurIPS 2021) as ``transformers`` has it, with random weights."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerModel
from transformers.utils import logging

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

    def begin_with(self, weights: dict[str, Tensor]) -> Sequence[str]:
        """See `stage_rt.quality.segmenters.encoder`; the library knows the names that its older files have."""
        before = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            encoder, told = SegformerModel.from_pretrained(
                None, config=self.network.config, state_dict=weights, output_loading_info=True
            )
        except RuntimeError:
            return ["stages"]
        finally:
            logging.set_verbosity(before)
            logging.enable_progress_bar()
        self.network.segformer = encoder
        return sorted(told["missing_keys"])

    def forward(self, x: Tensor) -> Tensor:
        """See `SEGMENTERS`; the network's own scores are a quarter as large."""
        return enlarged(self.network(pixel_values=x).logits, x)
