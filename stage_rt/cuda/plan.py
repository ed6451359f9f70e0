"""What is launched on the GPU, in which order and how large: decided here, with nothing of CUDA in sight."""

from collections.abc import Mapping
from typing import NamedTuple

from stage_rt.recipe import Branch, Recipe

ALIGNMENT = 256
"""Of every buffer, in bytes: what CUDA's own allocations have and inference libraries ask for."""

BLOCK = 64
"""Threads a block. Small, so that a batch of one still reaches sixteen multiprocessors."""

PROGRESS_STEPS = 50
"""Steps between two reports of progress."""


class Stretch(NamedTuple):
    """Steps launched without a look back: their branches in order, and the share of all steps done after them."""

    branches: tuple[Branch, ...]
    done: float


def stretches(recipe: Recipe) -> list[Stretch]:
    """All steps of the loop from its first to its last, cut after every `PROGRESS_STEPS`."""
    branches = [recipe.branch(row.timestep) for row in reversed(recipe.coefficients)]
    cuts = range(0, len(branches), PROGRESS_STEPS)
    ends = [min(cut + PROGRESS_STEPS, len(branches)) for cut in cuts]
    return [
        Stretch(tuple(branches[cut:end]), end / len(branches)) for cut, end in zip(cuts, ends, strict=True)
    ]


def rows(recipe: Recipe) -> dict[Branch, list[int]]:
    """Each branch the recipe uses, with its rows of `Recipe.coefficients`."""
    rows: dict[Branch, list[int]] = {branch: [] for branch in Branch}
    for number, row in enumerate(recipe.coefficients):
        rows[recipe.branch(row.timestep)].append(number)
    return {branch: numbers for branch, numbers in rows.items() if numbers}


def branches(recipe: Recipe) -> dict[Branch, int]:
    """Each branch the recipe uses, with a row from the middle of its steps."""
    return {branch: numbers[len(numbers) // 2] for branch, numbers in rows(recipe).items()}


def layout(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Offsets of buffers of ``sizes`` bytes in one block of memory, and the size of the block."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def step_grid(batch: int, elements: int) -> tuple[int, int]:
    """Grid of a ``stage_step_*`` kernel; ``elements`` of one sample, four a thread."""
    return -(-elements // (4 * BLOCK)), batch


def gather_grid(cells: int) -> tuple[int, int]:
    """Grid of a ``stage_gather_*`` kernel; ``cells`` of the whole batch."""
    return -(-cells // BLOCK), 1
