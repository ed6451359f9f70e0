"""The random numbers of the loop, as functions of (seed, sample, step, draw, element) and of nothing else.

A sample's noise never depends on the batch it runs in, on its neighbours or on how far the loop has come, so
a pair can be made again alone and a run can be resumed anywhere.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stage_rt import kernels
from stage_rt.errors import InputError
from stage_rt.kernels.reference import Draw

__all__ = [
    "ATTEMPT_BITS",
    "REGION_BITS",
    "Draw",
    "NoiseSource",
    "PhiloxNoise",
    "region_of",
    "reseeded",
    "stream",
]

Shape = tuple[int, ...]

REGION_BITS, ATTEMPT_BITS = 8, 4
"""Of a stream's number; a photograph has at most ``2**REGION_BITS`` regions."""


def stream(sample: int, region: int = 0, attempt: int = 0) -> int:
    """The number of a region's stream under a run's seed: 20 bits of sample, 8 of region, 4 of attempt.

    Region and attempt 0 are the sample itself, so that what is painted whole and once has the noise it always had.

    Raises:
        InputError: one of them is out of its range.
    """
    number = 0
    for name, value, bits, shift in (
        ("sample", sample, 20, 0),
        ("region", region, REGION_BITS, 20),
        ("attempt", attempt, ATTEMPT_BITS, 28),
    ):
        if not 0 <= value < 1 << bits:
            raise InputError(f"`{name}` must be from 0 to {(1 << bits) - 1}, not {value}")
        number |= value << shift
    return number


def region_of(number: int) -> int:
    """The region of the `stream` of that number."""
    return number >> 20 & (1 << REGION_BITS) - 1


def reseeded(seed: int, times: int) -> int:
    """The seed of a sample's noise once what was painted was rejected so often: another for each, 0 the run's own."""
    if not times:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {times}".encode()).digest()[:8], "little")


class NoiseSource(Protocol):
    """Where the sampler takes its standard normal noise from.

    ``shape`` is that of the whole batch, [B, C, h, w], or [B, 1, h, w] for `mask`; ``i`` is the network index
    of the iteration that uses the noise.
    """

    def initial(self, shape: Shape) -> NDArray[np.float32]:
        """The state the loop starts from (``x_T``)."""

    def background(self, i: int, shape: Shape) -> NDArray[np.float32]:
        """Noise of the clean background."""

    def mask(self, i: int, shape: Shape) -> NDArray[np.float32]:
        """Noise of the noisy mask: one channel."""

    def posterior(self, i: int, shape: Shape) -> NDArray[np.float32]:
        """Noise of the posterior sample (Eq. 2)."""


class PhiloxNoise:
    """Counter-based noise: one 64-bit seed a sample, and a sample number for more streams under one seed.

    ``seeds`` are B integers from 0 to 2**64 - 1, ``samples`` B integers from 0 to 2**32 - 1 (0 for all when
    left out); both are kept as arrays, uint64 [B] and uint32 [B]. Raises `InputError` for other values, for
    ``samples`` of another length and, in every draw, for a shape whose first axis is not B.
    """

    def __init__(self, seeds: Iterable[int], samples: Iterable[int] | None = None) -> None:
        self.seeds: NDArray[np.uint64] = _integers("seeds", seeds, 64).astype(np.uint64)
        if samples is None:
            samples = [0] * len(self.seeds)
        self.samples: NDArray[np.uint32] = _integers("samples", samples, 32).astype(np.uint32)
        if len(self.samples) != len(self.seeds):
            raise InputError(f"`samples` has {len(self.samples)} entries for {len(self.seeds)} `seeds`")

    def initial(self, shape: Shape) -> NDArray[np.float32]:
        """The state the loop starts from, [B, C, h, w]."""
        return self._draw(0, Draw.INITIAL, shape)

    def background(self, i: int, shape: Shape) -> NDArray[np.float32]:
        """Noise of the clean background at iteration ``i``, [B, C, h, w]."""
        return self._draw(i, Draw.BACKGROUND, shape)

    def mask(self, i: int, shape: Shape) -> NDArray[np.float32]:
        """Noise of the noisy mask at iteration ``i``, [B, 1, h, w]."""
        return self._draw(i, Draw.MASK, shape)

    def posterior(self, i: int, shape: Shape) -> NDArray[np.float32]:
        """Noise of the posterior sample at iteration ``i``, [B, C, h, w]."""
        return self._draw(i, Draw.POSTERIOR, shape)

    def encode(self, shape: Shape) -> NDArray[np.float32]:
        """Noise of the autoencoder's posterior sample, [B, C, h, w]."""
        return self._draw(0, Draw.ENCODE, shape)

    def select(self, part: slice | NDArray[np.bool_]) -> PhiloxNoise:
        """The noise of some of the samples, by their place in the batch."""
        return PhiloxNoise(self.seeds[part].tolist(), self.samples[part].tolist())

    def _draw(self, i: int, draw: Draw, shape: Shape) -> NDArray[np.float32]:
        if not shape or shape[0] != len(self.seeds):
            raise InputError(f"noise of shape {shape} needs one seed a sample, got {len(self.seeds)} seeds")
        return kernels.normal(self.seeds, self.samples, i, draw, shape[1:])


def _integers(name: str, values: Iterable[int], bits: int) -> NDArray[np.uint64]:
    try:
        integers = [operator.index(value) for value in values]
    except TypeError:
        raise InputError(f"`{name}` must be a sequence of integers, one a sample") from None
    if any(not 0 <= value < 2**bits for value in integers):
        raise InputError(f"`{name}` must lie between 0 and 2**{bits} - 1, got {integers}")
    return np.array(integers, dtype=np.uint64)
