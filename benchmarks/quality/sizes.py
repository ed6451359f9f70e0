"""The two sizes of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stage_rt.images.inputs import read_header
from stage_rt.names import SizeName

from .learning import Lesson

SCALE = 0.7
"""Of photographs in the smaller evaluation: a crack of three pixels still has two."""
LIMITS = (128, 384)
"""Least and largest side of its pictures; sides are multiples of `GRID`."""
GRID = 32
TYPES = 2
"""How many types the steps of a size's lesson are for; see `lesson_of`."""
PROBE = 50
"""How many photographs are asked for their size."""


@dataclass(frozen=True)
class Size:
    """``side`` of the pictures in pixels, ``pairs`` a type and source, network ``steps`` a pair, and the lesson.

    Without a ``side`` it follows from the photographs (`side_of`).
    """

    side: int | None
    pairs: int
    steps: int
    lesson: Lesson


SIZES: dict[SizeName, Size] = {
    "cpu": Size(
        side=None,
        pairs=160,
        steps=100,
        lesson=Lesson("unet", steps=4000, batch=16, rate=1e-2, crop=64),
    ),
    "paper": Size(
        side=256,
        pairs=500,
        steps=1000,
        lesson=Lesson("segformer", steps=20000, batch=16, rate=1e-3, crop=256),
    ),
}


def lesson_of(size: Size, types: int) -> Lesson:
    """The lesson for so many ``types``: longer for more than `TYPES`, each of which is then shown as often.

    Types share a batch's crops. In as many steps for five types as for two each would be learned in two fifths of the
    crops, and what is not learned in time looks like what cannot be learned.
    """
    return replace(size.lesson, steps=size.lesson.steps * max(types, TYPES) // TYPES)


def side_of(photographs: Sequence[Path]) -> int:
    """Side of square pictures that hold about `SCALE` of the median photograph's side, within `LIMITS`."""
    sizes = [read_header(path) for path in photographs[:: -(-len(photographs) // PROBE)]]
    middle = float(np.median([(size.width * size.height) ** 0.5 for size in sizes]))
    return min(max(round(SCALE * middle / GRID) * GRID, LIMITS[0]), LIMITS[1])
