"""What is launched on the GPU, in which order and how large: decided here, with nothing of CUDA in sight."""

from collections.abc import Mapping, Sequence
from enum import IntFlag
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.recipe import Branch, Recipe, StepCoefficients

ALIGNMENT = 256
"""Of every buffer, in bytes: what CUDA's own allocations have and inference libraries ask for."""

BLOCK = 64
"""Threads a block. Small, so that a batch of one still reaches sixteen multiprocessors."""

PROGRESS_STEPS = 50
"""Steps between two reports of progress."""


class Kind(IntFlag):
    """What a step runs beside the UNet for the prompt: adapters, and the UNet for good surface."""

    AWARE = 1
    ONLY = 2
    SURFACE = 4

    @property
    def branches(self) -> list[Branch]:
        """The branches whose adapters run."""
        return [branch for branch, kind in OF.items() if kind in self]

    def __str__(self) -> str:
        """In words, as in ``branch `aware` ``."""
        names = " and ".join(f"`{branch}`" for branch in self.branches)
        told = f"branch {names}" if names else "the UNet alone"
        return f"{told} against good surface" if Kind.SURFACE in self else told


OF = {Branch.AWARE: Kind.AWARE, Branch.ONLY: Kind.ONLY}
"""What the adapter of a branch is to a step."""


def kind(row: StepCoefficients, *, guided: bool) -> Kind:
    """What a transition needs; ``guided`` unless there are no adapters."""
    needed = OF[Branch.ONLY if row.only else Branch.AWARE] if guided else Kind(0)
    return needed | (Kind.SURFACE if row.prompt_guidance != 1 else Kind(0))


@lru_cache(maxsize=64)
def kinds(recipe: Recipe, guided: bool) -> NDArray[np.uint8]:
    """What each row of `Recipe.coefficients` needs, uint8 ``[K]``."""
    return np.array([kind(row, guided=guided) for row in recipe.coefficients], np.uint8)


def every_kind(size: int, *, guided: bool, surface: bool) -> list[Kind]:
    """All that the steps of ``size`` samples at transitions of their own may need."""
    adapters = [Kind.AWARE, Kind.ONLY, *([Kind.AWARE | Kind.ONLY] if size > 1 else [])]
    prompts = [Kind(0), *([Kind.SURFACE] if surface else [])]
    return [adapter | prompt for prompt in prompts for adapter in (adapters if guided else [Kind(0)])]


def launched(needed: Sequence[NDArray[np.uint8]], counters: Sequence[int], steps: int) -> list[Kind]:
    """The kinds of the next ``steps`` steps, fewer where every sample ends before.

    ``needed`` are the `kinds` of each sample's table, ``counters`` where it stands, below 0 for one at rest.
    """
    found = np.zeros(min(steps, max(counters) + 1), np.uint8)
    for each, counter in zip(needed, counters, strict=True):
        if counter >= 0:
            ahead = each[counter::-1][: len(found)]
            found[: len(ahead)] |= ahead
    return [Kind(each) for each in found.tolist()]


def rehearsed(recipe: Recipe, kind: Kind, sample: int) -> list[StepCoefficients]:
    """A table for a step's rehearsal: the recipe's, but that at every row all samples together need ``kind``."""
    branch = kind.branches[sample % len(kind.branches)] if kind.branches else Branch.AWARE
    weight = 2.0 if Kind.SURFACE in kind else 1.0
    return [row._replace(only=branch is Branch.ONLY, prompt_guidance=weight) for row in recipe.coefficients]


class Stretch(NamedTuple):
    """Steps launched without a look back, and the share of all steps done after them."""

    steps: int
    done: float


def stretches(count: int) -> list[Stretch]:
    """``count`` steps from the first to the last, cut after every `PROGRESS_STEPS`."""
    ends = [*range(PROGRESS_STEPS, count, PROGRESS_STEPS), count]
    return [Stretch(end - start, end / count) for start, end in zip([0, *ends], ends, strict=False)]


def layout(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Offsets of buffers of ``sizes`` bytes in one block of memory, and the size of the block."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def step_grid(batch: int, elements: int) -> tuple[int, int]:
    """Grid of a ``stage_step_*`` or ``stage_contrast_*`` kernel; ``elements`` of one sample, four a thread."""
    return -(-elements // (4 * BLOCK)), batch


def gather_grid(batch: int, cells: int) -> tuple[int, int]:
    """Grid of a ``stage_gather_*`` kernel; ``cells`` of one sample."""
    return -(-cells // BLOCK), batch


def advance_grid(batch: int) -> tuple[int, int]:
    """Grid of ``stage_advance``."""
    return -(-batch // BLOCK), 1
