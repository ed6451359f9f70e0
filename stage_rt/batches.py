"""Batches cut into sizes that an engine was built for, halved when memory is short, padded when samples are few."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import InputError

MOST_BATCH = 2**16
"""Samples a call; no device has the memory for more."""
AUTOENCODER_BATCH = 8
"""The autoencoder works on at most as many images at once: it fills the GPU with less, at 64 times the cells."""


class Part(NamedTuple):
    """Samples ``start .. start + length`` in a batch of size ``bucket``; what is over is padding."""

    start: int
    length: int
    bucket: int


def check_sizes(batch: Sequence[int]) -> None:
    """Refuse batch sizes that no engine can be built for.

    Raises:
        InputError: there is none, or one is not from 1 to `MOST_BATCH`.
    """
    if not batch or min(batch) < 1:
        raise InputError(f"a batch of {min(batch, default=0)} serves nobody: use `--batch 1` or more")
    if max(batch) > MOST_BATCH:
        raise InputError(
            f"a batch of {max(batch)} is more than any device serves: use `--batch {MOST_BATCH}` or less"
        )


def parts(count: int, buckets: Sequence[int]) -> list[Part]:
    """``count`` samples in few launches: full ones of the largest size, then one that holds the rest."""
    largest = max(buckets)
    starts = range(0, count, largest)
    rests = [min(largest, count - start) for start in starts]
    return [
        Part(start, rest, min(size for size in buckets if size >= rest))
        for start, rest in zip(starts, rests, strict=True)
    ]


def halved(buckets: Sequence[int], failed: int) -> list[int]:
    """The bucket sizes left once a batch of ``failed`` did not fit: at most half of it; empty when none is."""
    return [size for size in buckets if size <= failed // 2]


def autoencoder_bucket(buckets: Sequence[int]) -> int:
    """The bucket the autoencoder works in: the largest up to `AUTOENCODER_BATCH`, or the smallest there is."""
    return max((size for size in buckets if size <= AUTOENCODER_BATCH), default=min(buckets))


def padded(array: NDArray[Any], bucket: int) -> NDArray[Any]:
    """``array`` with copies of its last sample behind it up to ``bucket``; padding is computed with as well."""
    return np.ascontiguousarray(array[np.minimum(np.arange(bucket), len(array) - 1)])
