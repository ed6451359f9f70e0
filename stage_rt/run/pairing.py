"""Which normal goes with which mask: decided by the seed, each file used as evenly as the shapes allow."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import DatasetError
from stage_rt.images.inputs import Header, same_aspect
from stage_rt.kernels import philox_words

Shows = Callable[[Path, tuple[int, int], tuple[int, int]], bool]
"""Whether a mask drawn at a (width, height) is seen by the networks in a photograph of another."""

# Words of the noise generator that no step draws (`stage_rt.noise.Draw` ends far below).
_MASK_ORDER = 64
_NORMAL_ORDER = 65


def pair(
    normals: Mapping[Path, Header],
    masks: Mapping[Path, Header],
    *,
    count: int,
    seed: int,
    shows: Shows = lambda mask, drawn, size: True,
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """The (normal, mask) files of samples ``0 .. count - 1``, and the masks that fit no normal.

    Masks are taken in a seeded order, reshuffled every time all were used. A mask gets the least used of the
    normals whose aspect ratio agrees with its own and in whose size it ``shows``; the seeded order decides between
    equals. The first pairs do not depend on ``count``.

    Raises:
        DatasetError: no mask has a normal of its shape, or none shows in one.
    """
    names, sizes = list(normals), np.array([(header.width, header.height) for header in normals.values()])
    distinct, size_of = np.unique(sizes, axis=0, return_inverse=True)

    @cache
    def of_sizes(agrees: tuple[bool, ...]) -> NDArray[np.intp]:
        return np.flatnonzero(np.array(agrees)[size_of.ravel()])

    def fitting(path: Path, header: Header) -> NDArray[np.intp]:
        drawn = (header.width, header.height)
        sizes = [(int(width), int(height)) for width, height in distinct]
        return of_sizes(tuple(same_aspect(drawn, size) and shows(path, drawn, size) for size in sizes))

    choices = {path: fitting(path, header) for path, header in masks.items()}
    usable = [path for path in masks if len(choices[path])]
    left_out = [path for path in masks if not len(choices[path])]
    if not usable and any(
        same_aspect(mask[:2], size[:2]) for mask in masks.values() for size in normals.values()
    ):
        raise DatasetError(
            "every mask is so small that the networks would see nothing of a defect: draw larger ones or use "
            "`--view region`"
        )
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
