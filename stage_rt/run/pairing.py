"""Which normal goes with which mask: decided by the seed, each file used as evenly as the shapes allow."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from heapq import heapify, heapreplace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import DatasetError
from stage_rt.images.inputs import Header, same_aspect
from stage_rt.kernels import philox_words
from stage_rt.progress import Progress, counted, portion, silent

Shows = Callable[[Path, tuple[int, int], tuple[int, int]], bool]
"""Whether a mask drawn at a (width, height) is seen by the networks in a photograph of another."""

# Words of the noise generator that no step draws (`stage_rt.noise.Draw` ends far below).
_MASK_ORDER = 64
_NORMAL_ORDER = 65

_WORDS = 65536
"""Random keys that are drawn at a time."""


def pair(
    normals: Mapping[Path, Header],
    masks: Mapping[Path, Header],
    *,
    count: int,
    seed: int,
    shows: Shows = lambda mask, drawn, size: True,
    progress: Progress = silent,
) -> tuple[NDArray[np.int64], list[Path]]:
    """Which file of ``normals`` and which of ``masks``, by their places, samples ``0 .. count - 1`` are made from.

    Masks are taken in a seeded order, reshuffled every time all were used. A mask gets the least used of the
    normals whose aspect ratio agrees with its own and in whose size it ``shows``; the seeded order decides between
    equals. The first pairs do not depend on ``count``.

    ``shows`` may take long: it is asked of the sizes that a mask comes to, and of all only if it does not show in
    one of them. ``progress`` is told the share of the masks and samples that is done.

    Returns:
        int64 ``[count, 2]``, and the masks that fit no normal.

    Raises:
        DatasetError: no mask has a normal of its shape, or none shows in one.
    """
    mask_paths = list(masks)
    choices = _Choices(normals, masks, shows)
    usable = [path for path in counted(mask_paths, portion(progress, 0.0, 0.5)) if choices.any(path)]
    left_out = [path for path in masks if not len(choices.of(path))]
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

    place_of = {path: place for place, path in enumerate(masks)}
    columns = np.array([place_of[path] for path in usable])
    order = columns[
        np.concatenate(list(_permutations(len(usable), seed, -(-count // len(usable)), _MASK_ORDER)))
    ]
    normals_of = _LeastUsed(len(normals), seed)
    chosen = []
    for place in counted(order[:count].tolist(), portion(progress, 0.5, 1.0)):
        path = mask_paths[place]
        normal = normals_of.least(choices.of(path))
        if not choices.right(path, normal):
            normal = normals_of.least(choices.of(path))
        normals_of.use(normal)
        chosen.append(normal)
    return np.stack([np.array(chosen, dtype=np.int64), order[:count]], axis=1), left_out


class _Choices:
    """The normals that each mask may go with: those of its shape, until it is seen not to show in one of them."""

    def __init__(self, normals: Mapping[Path, Header], masks: Mapping[Path, Header], shows: Shows) -> None:
        sizes = np.array([(header.width, header.height) for header in normals.values()])
        distinct, size_of = np.unique(sizes, axis=0, return_inverse=True)
        self._sizes: list[tuple[int, int]] = [(width, height) for width, height in distinct.tolist()]
        self._size_of = size_of.ravel()
        self._masks, self._shows = masks, shows
        self._of_sizes = cache(self._in_sizes)
        self._alike = cache(self._shaped_as)
        self._of: dict[Path, NDArray[np.intp]] = {}
        self._asked: set[Path] = set()

    def of(self, path: Path) -> NDArray[np.intp]:
        """The places of the normals; the same array for masks that may go with the same ones."""
        if path not in self._of:
            self._of[path] = self._of_sizes(self._alike(self._masks[path][:2]))
        return self._of[path]

    def any(self, path: Path) -> bool:
        """Whether there are any for a mask: it shows in the largest of its shape, or in another."""
        alike = self._alike(self._masks[path][:2])
        sizes = [size for size, agrees in zip(self._sizes, alike, strict=True) if agrees]
        if sizes and not self._seen(path, max(sizes, key=lambda size: size[0] * size[1])):
            self._ask_all(path)
        return bool(len(self.of(path)))

    def right(self, path: Path, normal: int) -> bool:
        """Whether a mask shows in the normal at a place; if not, it is asked of all sizes once."""
        if path in self._asked or self._seen(path, self._sizes[self._size_of[normal]]):
            return True
        self._ask_all(path)
        return False

    def _seen(self, path: Path, size: tuple[int, int]) -> bool:
        return self._shows(path, self._masks[path][:2], size)

    def _ask_all(self, path: Path) -> None:
        alike = self._alike(self._masks[path][:2])
        shown = tuple(
            agrees and self._seen(path, size) for size, agrees in zip(self._sizes, alike, strict=True)
        )
        self._of[path] = self._of_sizes(shown)
        self._asked.add(path)

    def _in_sizes(self, chosen: tuple[bool, ...]) -> NDArray[np.intp]:
        return np.flatnonzero(np.array(chosen)[self._size_of])

    def _shaped_as(self, drawn: tuple[int, int]) -> tuple[bool, ...]:
        return tuple(same_aspect(drawn, size) for size in self._sizes)


class _LeastUsed:
    """Hands out normals: of those that may be taken the one used least; the seeded order of a round decides."""

    def __init__(self, count: int, seed: int) -> None:
        self._uses = [0] * count
        self._rank = cache(lambda round_: _ranks(count, seed, round_))
        self._heaps: dict[int, list[tuple[int, int, int]]] = {}

    def least(self, allowed: NDArray[np.intp]) -> int:
        """The next of ``allowed``, which is the same array for masks that may go with the same normals."""
        heap = self._heaps.get(id(allowed))
        if heap is None:
            heap = self._heaps[id(allowed)] = [self._entry(normal) for normal in allowed.tolist()]
            heapify(heap)
        # A normal that was used meanwhile is further back than it stands in this heap.
        while heap[0][0] != self._uses[heap[0][2]]:
            heapreplace(heap, self._entry(heap[0][2]))
        return heap[0][2]

    def use(self, normal: int) -> None:
        """Take it."""
        self._uses[normal] += 1

    def _entry(self, normal: int) -> tuple[int, int, int]:
        return self._uses[normal], self._rank(self._uses[normal])[normal], normal


def _ranks(count: int, seed: int, round_: int) -> list[int]:
    [order] = _permutations(count, seed, 1, _NORMAL_ORDER, first=round_)
    ranks: list[int] = np.argsort(order).tolist()
    return ranks


def _permutations(
    count: int, seed: int, cycles: int, draw: int, *, first: int = 0
) -> Iterator[NDArray[np.intp]]:
    """The orders of ``count`` files in so many cycles."""
    # Sorting 64-bit random keys shuffles the same on every NumPy; two words make a key.
    together = max(_WORDS // count, 1)
    for start in range(first, first + cycles, together):
        streams = np.arange(start, min(start + together, first + cycles), dtype=np.uint32)
        seeds = np.full(len(streams), seed, dtype=np.uint64)
        words = philox_words(seeds, streams, 0, draw, (count + 1) // 2).astype(np.uint64)
        keys = words[:, 0::2] << np.uint64(32) | words[:, 1::2]
        yield from np.argsort(keys[:, :count], axis=1, kind="stable")


def _shape(files: Mapping[Path, Header]) -> str:
    header = next(iter(files.values()))
    return f"{header.width}x{header.height}"
