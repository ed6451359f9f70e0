"""Whether a label tells the truth: how much of it was painted, and how far paint went beyond it.

A pixel counts as painted when it changed more than the rest of the picture explains. Far from the label the decoded
picture differs from its photograph by the photograph's own noise, which the autoencoder does not keep, and by the
autoencoder's round trip; the 99th percentile of that change is what is to be exceeded, and `LEAST_CHANGE` where it
is less.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from stage_rt.images.luminance import tinted

LEAST_CHANGE = 8.0
"""Grey levels below which nobody sees a change, however quiet the picture is."""
EXPLAINED = 0.99
"""Quantile of the change far from the label that the picture itself explains."""
REDUCED = 4
"""A photograph with sides of more than this many times the network's is measured at a smaller size."""


class Figures(NamedTuple):
    """What was measured of one pair, before compositing.

    ``fill``: share of the label's pixels that were painted. ``leak``: share of the pixels one to three latent cells
    from the label that were painted too, beyond the share that any picture shows. ``contrast``: mean change under
    the label in grey levels, negative where it became darker. ``threshold``: the change that counts, in grey levels.
    ``label_pixels``: size of the label.
    """

    fill: float
    leak: float
    contrast: float
    threshold: float
    label_pixels: int


def measure(
    photo: NDArray[np.uint8],
    painted: NDArray[np.uint8],
    label: NDArray[np.bool_],
    latent_size: int,
    channels: int = 3,
) -> Figures:
    """The `Figures` of a pair.

    Args:
        photo: uint8 ``[H, W, 3]``.
        painted: uint8 ``[S, S, 3]``, the decoded picture, before compositing.
        label: bool ``[H, W]``.
        latent_size: cells of a side of the latent.
        channels: of the networks; what those of one painted counts as it is put into a photograph in colour.
    """
    labelled = int(label.sum())
    photo, label = _reduced(photo, label, REDUCED * painted.shape[0])
    enlarged = np.asarray(Image.fromarray(painted).resize(label.shape[::-1], Image.Resampling.BICUBIC))
    if channels == 1:
        enlarged = tinted(photo, enlarged)
    difference = _grey(enlarged) - _grey(photo)
    change = np.abs(difference)
    cell = max(label.shape) / latent_size
    distance = ndimage.distance_transform_edt(~label) if label.any() else np.full(label.shape, np.inf)
    far, ring = distance > 4 * cell, (distance > cell) & (distance <= 3 * cell)
    explained = float(np.quantile(change[far], EXPLAINED)) if far.any() else 0.0
    threshold = max(explained, LEAST_CHANGE)
    return Figures(
        fill=_share(change[label] > threshold),
        leak=max(_share(change[ring] > threshold) - (1 - EXPLAINED), 0.0),
        contrast=float(difference[label].mean()) if label.any() else 0.0,
        threshold=threshold,
        label_pixels=labelled,
    )


def round_trip(before: NDArray[np.uint8], after: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """How much the networks change a picture where nothing is painted, in grey levels; `LEAST_CHANGE` at least.

    ``before`` and ``after`` are uint8 ``[S, S, 3]``, at the networks' own size whatever the photograph's, so that
    pictures of all scales compare; ``mask`` is the latent mask, bool ``[h, w]``.
    """
    factor = before.shape[0] // mask.shape[0]
    label = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    return measure(before, after, label, mask.shape[0]).threshold


def _reduced(
    photo: NDArray[np.uint8], label: NDArray[np.bool_], longest: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Photograph and label with their longer side cut down to ``longest``; what is labelled stays labelled."""
    factor = -(-max(label.shape) // longest)
    if factor == 1:
        return photo, label
    return np.asarray(Image.fromarray(photo).reduce(factor)), in_blocks(label, factor)


def in_blocks(label: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Whether a pixel is labelled in each block of ``side`` pixels of a label bool ``[H, W]``, cut at its end."""
    bands = np.logical_or.reduceat(label, np.arange(0, label.shape[0], side), axis=0)
    return np.logical_or.reduceat(bands, np.arange(0, label.shape[1], side), axis=1)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(image.mean(axis=2, dtype=np.float32))


def _share(true: NDArray[np.bool_]) -> float:
    return float(true.mean()) if true.size else 0.0
