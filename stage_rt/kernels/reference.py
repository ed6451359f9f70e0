"""The fused step and its noise in NumPy: the definition that the compiled kernels are tested against.

Random numbers are counter-based (Philox4x32-10; Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
easy as 1, 2, 3", SC'11). The key is the sample's 64-bit seed, low word first; the counter is (block, step,
draw, sample). Any number of any draw is therefore known without the ones before it, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stage_rt.recipe import StepCoefficients

Float = TypeVar("Float", bound=np.floating[Any])


class Draw(IntEnum):
    """What a random number is for: the third word of the Philox counter."""

    INITIAL = 0
    BACKGROUND = 1
    MASK = 2
    POSTERIOR = 3
    ENCODE = 4


_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HIGH_SHIFT = np.uint64(32)


def philox4x32(counter: Sequence[NDArray[np.uint64]], seed: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Philox4x32-10 of four counter words under a 64-bit key.

    The words are uint64 arrays of values below 2**32 and broadcast together and with ``seed``. Returns uint32
    with a last axis of 4, the output words.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = seed & _LOW, seed >> _HIGH_SHIFT
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HIGH_SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HIGH_SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def philox_words(
    seeds: NDArray[np.uint64], samples: NDArray[np.uint32], step: int, draw: int, blocks: int
) -> NDArray[np.uint32]:
    """Random words of a draw.

    ``seeds`` uint64 [B] and ``samples`` uint32 [B] name the streams. Returns uint32 [B, 4 * blocks]; block
    ``b`` gives elements ``4b .. 4b + 3``.
    """
    block = np.arange(blocks, dtype=np.uint64)[None, :]
    sample = samples.astype(np.uint64)[:, None]
    words = philox4x32([block, *np.array([step, draw], np.uint64), sample], seeds[:, None])
    return words.reshape(len(seeds), 4 * blocks)


def normal(
    seeds: NDArray[np.uint64], samples: NDArray[np.uint32], step: int, draw: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Standard normal numbers of a draw by Box and Muller's method.

    ``shape`` is that of one sample; returns float32 [B, *shape]. Of each block, words 0 and 1 make elements 0
    and 1, words 2 and 3 make elements 2 and 3: the even word the radius, the odd word the angle. The uniforms
    are float32, ``u1 = w0 * 2**-32 + 2**-33`` (never 0) and ``u2 = w1 * 2**-32``; from there on the number is
    the float32 nearest to ``sqrt(-2 ln u1) * (cos, sin)(2 pi u2)``.
    """
    elements = int(np.prod(shape))
    words = philox_words(seeds, samples, step, draw, -(-elements // 4)).astype(np.float32)
    u1 = words[:, 0::2] * np.float32(2**-32) + np.float32(2**-33)
    u2 = words[:, 1::2] * np.float32(2**-32)
    radius = np.sqrt(-2.0 * np.log(u1.astype(np.float64)))
    angle = 2.0 * np.pi * u2.astype(np.float64)
    numbers = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    flat = numbers.reshape(words.shape)[:, :elements]
    return flat.astype(np.float32).reshape(len(seeds), *shape)


def guide(unet: NDArray[Float], adapter: NDArray[Float], weight: float | NDArray[Any]) -> NDArray[Float]:
    """Adapter guidance: the UNet's estimate moved ``weight`` times as far as the adapter moves it.

    As classifier-free guidance (Ho and Salimans, 2022) with the UNet's own estimate for the unconditional one, so it
    costs no further call. Estimates ``[B, C, h, w]`` of one dtype; ``weight`` is one number or one a sample, ``[B]``,
    and 1 is the adapter's, bit for bit.
    """
    weights = np.asarray(weight, unet.dtype).reshape(-1, 1, 1, 1)
    if (weights == 1).all():
        return adapter
    with np.errstate(invalid="ignore", over="ignore"):
        moved: NDArray[Float] = np.where(weights == 1, adapter, unet + weights * (adapter - unet))
    return moved


def select(aware: NDArray[Float], only: NDArray[Float], in_only: NDArray[np.bool_]) -> NDArray[Float]:
    """Every sample's estimate by the adapter of its own branch: ``[B, C, h, w]``; ``in_only`` bool ``[B]``."""
    return np.where(in_only[:, None, None, None], only, aware)


def clean_estimate(
    x: NDArray[Float],
    eps: NDArray[Float],
    clean: NDArray[Float],
    mask: NDArray[Float],
    c: StepCoefficients,
) -> NDArray[Float]:
    """The ``x0`` that a transition takes for the end of the loop, mixed with the clean latent (Eq. 2 and 6).

    Arguments as `step`; returns ``[B, C, h, w]``.
    """
    a, b, mix, free = map(x.dtype.type, (c.sqrt_recip_abar, c.sqrt_recipm1_abar, c.mix, c.free))
    with np.errstate(invalid="ignore", over="ignore"):
        mixing = mask + max(mix, free) * (1 - mask)
        x0: NDArray[Float] = mixing * (x * a - eps * b) + (1 - mixing) * clean
    return x0


def step(
    x: NDArray[Float],
    eps: NDArray[Float],
    clean: NDArray[Float],
    mask: NDArray[Float],
    c: StepCoefficients,
    background_noise: NDArray[Float],
    posterior_noise: NDArray[Float],
) -> NDArray[Float]:
    """One transition of the single-state loop (Eq. 2, 6 and 7) for noise given as arrays.

    ``x``, ``eps``, ``clean`` and ``posterior_noise`` [B, C, h, w]; ``mask`` [B, 1, h, w] in {0, 1};
    ``background_noise`` [B, C, h, w], or [B, 1, h, w] when ``c.shared_noise``. Returns the next state
    [B, C, h, w] in the dtype of ``x`` (float32 or float64). Non-finite inputs go through without a warning.
    """
    # NumPy float64 scalars would lift float32 arrays to float64.
    posterior_x0, posterior_xt, sigma, _, blend, signal, noise = map(x.dtype.type, c[2:9])
    # A broken sample is reported by its finite flag, not by one warning a step.
    with np.errstate(invalid="ignore", over="ignore"):
        x0 = clean_estimate(x, eps, clean, mask, c)
        y = posterior_x0 * x0 + posterior_xt * x + sigma * posterior_noise
        blending = mask + blend * (1 - mask)
        background = signal * clean + noise * background_noise
        following: NDArray[Float] = blending * y + (1 - blending) * background
    return following


def recalled_estimate(
    following: NDArray[Float],
    eps: NDArray[Float],
    clean: NDArray[Float],
    mask: NDArray[Float],
    c: StepCoefficients,
    posterior_noise: NDArray[Float],
) -> NDArray[Float]:
    """`clean_estimate` of a transition that is over, from the state it led to: under the mask; ``clean`` beyond it.

    There the next state is linear in the one before, which can be had back from it (Eq. 2), so that a step may
    overwrite it. Arguments as `step`; returns ``[B, C, h, w]``.
    """
    a, b, posterior_x0, posterior_xt, sigma = map(
        following.dtype.type,
        (c.sqrt_recip_abar, c.sqrt_recipm1_abar, c.posterior_x0, c.posterior_xt, c.sigma),
    )
    with np.errstate(invalid="ignore", over="ignore"):
        x = (following - sigma * posterior_noise + posterior_x0 * b * eps) / (posterior_x0 * a + posterior_xt)
        return np.where(mask > 0, x * a - eps * b, clean)


def fused_step(
    x: NDArray[np.float32],
    eps: NDArray[np.float32],
    clean: NDArray[np.float32],
    mask: NDArray[np.float32],
    c: StepCoefficients | Sequence[StepCoefficients],
    seeds: NDArray[np.uint64],
    samples: NDArray[np.uint32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """`step` with the noise of ``c.timestep`` drawn here, and a flag a sample.

    Arrays as in `step`, float32; ``seeds`` uint64 [B], ``samples`` uint32 [B]; ``c`` one transition for all samples,
    or one a sample, each of which then goes its own. Returns the next state [B, C, h, w] and bool [B], True where
    all of that sample's next state is finite.
    """
    if not isinstance(c, StepCoefficients):
        following, finite = np.empty_like(x), np.empty(len(x), np.bool_)
        for n, own in enumerate(c):
            k = slice(n, n + 1)
            following[k], finite[k] = fused_step(x[k], eps[k], clean[k], mask[k], own, seeds[k], samples[k])
        return following, finite
    shape, i = x.shape[1:], c.timestep
    if c.shared_noise:
        background = normal(seeds, samples, i, Draw.MASK, (1, *shape[1:]))
    else:
        background = normal(seeds, samples, i, Draw.BACKGROUND, shape)
    posterior = normal(seeds, samples, i, Draw.POSTERIOR, shape)
    stepped = step(x, eps, clean, mask, c, background, posterior)
    return stepped, np.asarray(np.isfinite(stepped).all(axis=(1, 2, 3)))
