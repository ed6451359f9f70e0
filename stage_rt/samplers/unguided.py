"""What the samplers without adapters share: the step of which each is an instance (spec, section g)::

    x  = m * x + (1 - m) * q(clean, level, n1)       some put the noised background back first
    e  = denoise(x)
    x0 = (x - sqrt(1 - abar) e) / sqrt(abar)
    x  = a * x0 + b * x + c * e + d * n2

They use the UNet's own estimate, so ``denoise`` is called with the mask and the aware branch and needs neither.
``callback(k, state)`` is told how many calls of the denoiser are left; draws are addressed by the transitions left.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import BackendError
from stage_rt.recipe import Branch
from stage_rt.sampler import Denoiser

Array = NDArray[Any]


def estimate(denoise: Denoiser, x: Array, i: int, mask: Array, most: int = 1) -> Array:
    """The denoiser's estimate at network index ``i``, ``[B, C, h, w]``, or with up to ``most`` times the channels.

    Raises:
        BackendError: it has another shape.
    """
    eps = denoise(x, i, mask, Branch.AWARE)
    allowed = [(x.shape[0], n * x.shape[1], *x.shape[2:]) for n in range(1, most + 1)]
    if eps.shape not in allowed:
        raise BackendError(f"the denoiser returned shape {eps.shape} at step {i}, expected {x.shape}")
    return eps


def with_background(x: Array, clean: Array, mask: Array, abar: float, n: Array) -> Array:
    """``x`` with the clean latent at level ``abar`` outside the mask."""
    return np.asarray(mask * x + (1 - mask) * (math.sqrt(abar) * clean + math.sqrt(1 - abar) * n))


def x0_of(x: Array, eps: Array, abar: float) -> Array:
    """The clean latent that ``x`` at level ``abar`` is the noised one of, if ``eps`` is its noise (Eq. 1)."""
    return np.asarray((x - math.sqrt(1 - abar) * eps) / math.sqrt(abar))
