"""What is launched on the GPU, in which order and how large: decided here, with nothing of CUDA in sight."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.recipe import Branch, Recipe

ALIGNMENT = 256
"""Of every buffer, in bytes: what CUDA's own allocations have and inference libraries ask for."""

BLOCK = 64
"""Threads a block. Small, so that a batch of one still reaches sixteen multiprocessors."""

PROGRESS_STEPS = 50
"""Steps between two reports of progress."""

AUTOENCODER_BATCH = 8
"""The autoencoder works on at most as many images at once: it fills the GPU with less, at 64 times the cells."""

class Part(NamedTuple):
    """Samples ``start .. start + length`` in a batch of size ``bucket``; what is over is padding."""

    start: int
    length: int
    bucket: int


class Stretch(NamedTuple):
    """Steps launched without a look back: their branches in order, and the share of all steps done after them."""

    branches: tuple[Branch, ...]
    done: float


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


def stretches(recipe: Recipe) -> list[Stretch]:
    """All steps of the loop from its first to its last, cut after every `PROGRESS_STEPS`."""
    branches = [recipe.branch(row.timestep) for row in reversed(recipe.coefficients)]
    cuts = range(0, len(branches), PROGRESS_STEPS)
    ends = [min(cut + PROGRESS_STEPS, len(branches)) for cut in cuts]
    return [
        Stretch(tuple(branches[cut:end]), end / len(branches)) for cut, end in zip(cuts, ends, strict=True)
    ]


def branches(recipe: Recipe) -> dict[Branch, int]:
    """Each branch the recipe uses, with a row of `Recipe.coefficients` from the middle of its steps."""
    rows: dict[Branch, list[int]] = {branch: [] for branch in Branch}
    for number, row in enumerate(recipe.coefficients):
        rows[recipe.branch(row.timestep)].append(number)
    return {branch: numbers[len(numbers) // 2] for branch, numbers in rows.items() if numbers}


def layout(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Offsets of buffers of ``sizes`` bytes in one block of memory, and the size of the block."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def padded(array: NDArray[Any], bucket: int) -> NDArray[Any]:
    """``array`` with copies of its last sample behind it up to ``bucket``; padding is computed with as well."""
    return np.ascontiguousarray(array[np.minimum(np.arange(bucket), len(array) - 1)])


def step_grid(batch: int, elements: int) -> tuple[int, int]:
    """Grid of a ``stage_step_*`` kernel; ``elements`` of one sample, four a thread."""
    return -(-elements // (4 * BLOCK)), batch


def gather_grid(cells: int) -> tuple[int, int]:
    """Grid of a ``stage_gather_*`` kernel; ``cells`` of the whole batch."""
    return -(-cells // BLOCK), 1
