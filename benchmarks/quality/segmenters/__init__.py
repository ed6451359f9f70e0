"""Networks that learn to segment the pairs, by name, each with random weights; no hub is asked for any."""

from collections.abc import Callable

from torch import nn

from stage_rt.names import SegmenterName

from . import bisenet, segformer, stdc, unet

SEGMENTERS: dict[SegmenterName, Callable[[int], nn.Module]] = {
    "unet": unet.UNet,
    "segformer": segformer.SegFormer,
    "bisenetv2": bisenet.BiSeNetV2,
    "stdc": stdc.STDCSeg,
}
"""By name, what builds a network of so many classes: images float ``[B, 3, S, S]`` to scores ``[B, classes, S, S]``.

In training mode networks with auxiliary heads return a list of scores, the main one first. ``last`` is the layer that
makes the main scores of features.
"""
