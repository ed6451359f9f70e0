"""Photographs in colour and networks of one channel: what these paint is a change of luminance."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def luminance(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How networks of one channel see a photograph uint8 ``[H, W, 3]``: three equal channels.

    A photograph that has no colour is its own luminance, to the byte.
    """
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    return np.ascontiguousarray(np.broadcast_to(grey[..., None], photo.shape))


def tinted(photo: NDArray[np.uint8], painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``photo`` uint8 ``[H, W, 3]`` with the luminance of ``painted``, of three equal channels, and its own colour.

    How much brighter or darker ``painted`` is than the photograph is added to each channel, as far as that goes
    from 0 to 255.
    """
    seen, result = luminance(photo), photo.copy()
    changed = (painted != seen).any(axis=2)
    change = painted[changed].astype(np.int16) - seen[changed]
    result[changed] = np.clip(photo[changed] + change, 0, 255)
    return result
