"""One picture of a pack, and what a format has to do with it."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["train", "val"]
SIDES: tuple[Side, Side] = ("train", "val")


@dataclass(frozen=True)
class File:
    """The bytes of a file; ``original`` is one on disk that has them."""

    content: bytes
    original: Path | None = None

    def put(self, path: Path) -> None:
        """Make ``path`` this file: linked to the original where the file system allows it, else written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.original is not None and not self.original.is_symlink():
            with suppress(OSError):
                os.link(self.original, path)
                return
        path.write_bytes(self.content)


@dataclass(frozen=True)
class Picture:
    """A pair, or a good photograph, whose ``kind`` (defect type) is None.

    ``number`` counts the pictures of the pack from 0. ``image`` and ``mask`` (0 and 255) are PNG, ``label`` is what
    the mask shows, bool ``[H, W]``. ``provenance`` holds JSON values.
    """

    number: int
    side: Side
    kind: str | None
    image: File
    mask: File
    label: NDArray[np.bool_]
    provenance: Mapping[str, object]

    @property
    def name(self) -> str:
        """What its files are called, without suffix."""
        return f"{self.number:06d}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.label.shape
        return width, height


class Format(ABC):
    """A pack being written into an empty ``folder``; ``classes`` are the defect types in order.

    ``called`` is what its readers call a side.
    """

    called: ClassVar[Mapping[Side, str]] = {"train": "train", "val": "val"}

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, classes

    @abstractmethod
    def add(self, picture: Picture) -> str:
        """Write one picture; returns the place of its image inside the pack."""

    def finish(self) -> None:  # noqa: B027  # most formats have nothing to add
        """Write what is known once every picture was added."""

    def close(self) -> None:  # noqa: B027
        """Let go of open files, whether the pack was finished or not."""

    def number(self, kind: str | None) -> int:
        """The class of a defect type, counted from 1; 0 of good parts."""
        return 0 if kind is None else self.classes.index(kind) + 1
