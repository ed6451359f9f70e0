"""Where the lines of a manifest are, and which of its pairs are known to be done: 16 bytes a pair.

``.index`` saves work and nothing else: it is believed only for as much of the manifest as has the digest it tells,
and for a pair only while its two files have the sizes, times and inodes they were checked with. It can be deleted.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage_rt.files import recall, remember

INDEX_FILE = ".index"
_PIECE = 1 << 20


class Index:
    """Of each sample the offset of its last line, -1 without one, and its seal, 0 if it is not known to be done.

    ``size`` bytes of the manifest in ``lines`` lines are indexed; ``orderly`` is whether all are as they are written.
    """

    def __init__(self, manifest: Path) -> None:
        self._manifest, self._path = manifest, manifest.with_name(INDEX_FILE)
        self.offsets: NDArray[np.int64] = np.full(0, -1, dtype=np.int64)
        self.seals: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.size = self.lines = 0
        self.orderly = True
        self._digest = hashlib.sha256()
        self._saved, self._changed = 0, False

    @classmethod
    def kept(cls, manifest: Path) -> "Index":
        """That of a manifest's beginning, as `save` left it; an empty one if it is not of this manifest."""
        index = cls(manifest)
        index._load()
        return index

    def __len__(self) -> int:
        return int((self.offsets >= 0).sum())

    def add(self, index: int, line: bytes, seal: int = 0) -> None:
        """Note the next line of the manifest, which ends in a newline."""
        if index >= len(self.offsets):
            self.reserve(max(index + 1, 2 * len(self.offsets)))
        self.offsets[index], self.seals[index] = self.size, seal
        self.size += len(line)
        self.lines += 1
        self._digest.update(line)
        self._changed = True

    def seal(self, index: int, seal: int) -> None:
        """Note that a sample, which has a line, is known to be done."""
        self.seals[index] = seal
        self._changed = True

    def offset(self, index: int) -> int:
        """Where the last line of a sample begins, -1 if it has none."""
        return int(self.offsets[index]) if 0 <= index < len(self.offsets) else -1

    def numbers(self) -> NDArray[np.intp]:
        """The samples that have a line."""
        return np.flatnonzero(self.offsets >= 0)

    def in_order(self, indices: Sequence[int] | NDArray[np.int64]) -> bool:
        """Whether the manifest has one line for each of ``indices``, in their order, and no other."""
        wanted = np.asarray(indices, dtype=np.int64)
        if not self.orderly or self.lines != len(wanted) or len(self) != len(wanted):
            return False
        offsets = self.offsets[wanted] if len(wanted) else wanted
        return bool((offsets >= 0).all() and (np.diff(offsets) > 0).all())

    def reserve(self, count: int) -> None:
        """Make room for samples below ``count``."""
        if (more := count - len(self.offsets)) > 0:
            self.offsets = np.concatenate([self.offsets, np.full(more, -1, dtype=np.int64)])
            # Written and not only promised, as zeros are: a run has its memory at the start or does not begin.
            self.seals = np.concatenate([self.seals, np.full(more, 0, dtype=np.uint64)])

    def save(self) -> None:
        """Keep it for the next process, unless nothing is new."""
        if self._changed and self.orderly:
            head = {"size": self.size, "lines": self.lines, "digest": self._digest.hexdigest()}
            # As they lie in memory: a copy now and then would make a long run's memory grow in steps.
            arrays = (self.offsets.astype("<i8", copy=False).data, self.seals.astype("<u8", copy=False).data)
            remember(self._path, json.dumps(head).encode() + b"\n", *arrays)
            self._saved, self._changed = self.lines, False

    @property
    def new(self) -> int:
        """Lines that were added since it was saved."""
        return self.lines - self._saved

    def _load(self) -> None:
        content = recall(self._path)
        if content is None:
            return
        first, _, arrays = content.partition(b"\n")
        head = json.loads(first)
        digest = hashlib.sha256()
        with self._manifest.open("rb") as file:
            left = head["size"]
            while left and (piece := file.read(min(left, _PIECE))):
                digest.update(piece)
                left -= len(piece)
        if left or digest.hexdigest() != head["digest"]:
            return
        half = len(arrays) // 2
        self.offsets = np.frombuffer(arrays[:half], "<i8").astype(np.int64)
        self.seals = np.frombuffer(arrays[half:], "<u8").astype(np.uint64)
        self.size, self.lines, self._digest = head["size"], head["lines"], digest
        self._saved = self.lines
