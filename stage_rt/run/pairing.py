"""Which normal goes with which mask: decided by the seed, each file used as evenly as the shapes allow."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import DatasetError
from stage_rt.images.inputs import Header, same_aspect
from stage_rt.kernels import philox_words

# Words of the noise generator that no step draws (`stage_rt.noise.Draw` ends far below).
_MASK_ORDER = 64
_NORMAL_ORDER = 65


def pair(
    normals: Mapping[Path, Header], masks: Mapping[Path, Header], *, count: int, seed: int
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """The (normal, mask) files of samples ``0 .. count - 1``, and the masks that fit no normal.

    Masks are taken in a seeded order, reshuffled every time all were used. A mask gets the least used of the
    normals whose aspect ratio agrees with its own; the seeded order decides between equals. The first pairs
    do not depend on ``count``.

    Raises:
        DatasetError: no mask has a normal of its shape.
    """
    names, sizes = list(normals), np.array([(header.width, header.height) for header in normals.values()])
    distinct, size_of = np.unique(sizes, axis=0, return_inverse=True)

    @cache
    def fitting(width: int, height: int) -> NDArray[np.intp]:
        agrees = np.array([same_aspect((width, height), (int(w), int(h))) for w, h in distinct])
        return np.flatnonzero(agrees[size_of.ravel()])

    choices = {path: fitting(header.width, header.height) for path, header in masks.items()}
    usable = [path for path in masks if len(choices[path])]
    left_out = [path for path in masks if not len(choices[path])]
    if not usable:
        raise DatasetError(
            f"no mask has the shape of a photograph (the first mask is {_shape(masks)}, the first photograph "
            f"{_shape(normals)}): give masks drawn on such photographs"
        )

    order_of_masks = cache(lambda cycle: _permutation(len(usable), seed, cycle, _MASK_ORDER))
    rank_of_normals = cache(lambda cycle: np.argsort(_permutation(len(names), seed, cycle, _NORMAL_ORDER)))
    uses = np.zeros(len(names), dtype=np.int64)
    pairs = []
    for sample in range(count):
        cycle, position = divmod(sample, len(usable))
        mask = usable[order_of_masks(cycle)[position]]
        candidates = choices[mask]
        fewest = uses[candidates].min()
        candidates = candidates[uses[candidates] == fewest]
        normal = candidates[rank_of_normals(int(fewest))[candidates].argmin()]
        uses[normal] += 1
        pairs.append((names[normal], mask))
    return pairs, left_out


def _permutation(count: int, seed: int, cycle: int, draw: int) -> NDArray[np.intp]:
    # Sorting 64-bit random keys shuffles the same on every NumPy; two words make a key.
    words = philox_words(
        np.array([seed], dtype=np.uint64), np.array([cycle], dtype=np.uint32), 0, draw, (count + 1) // 2
    )
    keys = words[0].astype(np.uint64)
    return np.argsort((keys[0::2] << np.uint64(32) | keys[1::2])[:count], kind="stable")


def _shape(files: Mapping[Path, Header]) -> str:
    header = next(iter(files.values()))
    return f"{header.width}x{header.height}"
