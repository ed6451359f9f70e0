"""Photographs and labels in memory, at the size a segmenter sees them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.images.inputs import read_image
from stage_rt.images.masks import labelled

LABELLED = 1 / 3
"""Share of a pixel of the smaller picture that must be labelled: thin defects would be lost at a half."""

NDUint8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """``images`` uint8 ``[N, S, S, 3]`` and what each pixel shows, ``classes`` uint8 ``[N, S, S]``, 0 for no defect.

    ``names`` says where they come from. A process that is sent those that are ``shared`` maps the files that are
    there, so that all have one copy in memory.
    """

    images: NDUint8
    classes: NDUint8
    names: list[str]
    _files: tuple[Path, Path] | None = None

    def shared(self, folder: Path) -> "Pictures":
        """The same from files in ``folder``, which stay as long as they are used."""
        files = (folder / f"{self.digest}-images.npy", folder / f"{self.digest}-classes.npy")
        folder.mkdir(parents=True, exist_ok=True)
        for path, array in zip(files, (self.images, self.classes), strict=True):
            np.save(path, array)
        return _mapped(files, self.names)

    def in_memory(self) -> "Pictures":
        """The same without files."""
        return Pictures(np.array(self.images), np.array(self.classes), self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._files is None:
            return Pictures, (self.images, self.classes, self.names)
        return _mapped, (self._files, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def pick(self, chosen: NDArray[np.bool_]) -> "Pictures":
        """Those of them that are ``chosen``, bool ``[N]``."""
        index = np.flatnonzero(chosen)
        return Pictures(self.images[index], self.classes[index], [self.names[n] for n in index])

    def showing(self, *numbers: int) -> NDArray[np.bool_]:
        """Which of them hold any of some classes, bool ``[N]``."""
        return np.asarray(np.isin(self.classes, numbers).any(axis=(1, 2)))

    @cached_property
    def digest(self) -> str:
        """sha256 of all pixels."""
        content = hashlib.sha256(self.images.tobytes())
        content.update(self.classes.tobytes())
        return content.hexdigest()


def _mapped(files: tuple[Path, Path], names: list[str]) -> Pictures:
    images, classes = (np.load(path, mmap_mode="r") for path in files)
    return Pictures(images, classes, names, files)


def load(pairs: Iterable[tuple[Path, Path | None, int]], side: int) -> Pictures:
    """Read (photograph, mask or None, class) triples, each whole, at ``side`` pixels.

    Raises:
        ImageError, MaskError: a file is unusable.
    """
    images, classes, names = [], [], []
    for photo, mask, number in pairs:
        image, label = (read_image(photo), None) if mask is None else labelled(photo, mask)
        small, drawn = at_size(image, label, side)
        images.append(small)
        classes.append(drawn * np.uint8(number))
        names.append(f"{photo.parent.name}/{photo.name}")
    return Pictures(np.stack(images), np.stack(classes), names)


def at_size(image: NDUint8, label: NDArray[np.bool_] | None, side: int) -> tuple[NDUint8, NDUint8]:
    """An image uint8 ``[H, W, 3]`` and its label bool ``[H, W]`` as ``[S, S, 3]`` and 0/1 ``[S, S]``.

    Of a label that covers no pixel well enough those stay that it covers best: it would be good surface otherwise.
    """
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3))
    if label is None:
        return small, np.zeros((side, side), dtype=np.uint8)
    share = Image.fromarray(label.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    covered = np.asarray(share)
    return small, (covered >= min(LABELLED, covered.max())).astype(np.uint8)
