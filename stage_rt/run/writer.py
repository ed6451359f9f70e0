"""Pairs on their way to the disk: their names, their bytes, and the thread that writes them.

A run's folder has the MVTec layout, ``test/<type>/000000.png`` and ``ground_truth/<type>/000000_mask.png``.
"""

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.errors import PromptError
from stage_rt.files import write_atomic

GOOD = "good"
"""What good photographs are called where defect types are: no defect may be."""


def type_of(prompt: str) -> str:
    """What a prompt calls the type of its defects: what follows its last ``+``."""
    return prompt.rpartition("+")[2]


def defect_type(prompt: str) -> str:
    """The folder name of a prompt's pairs, which is its `type_of`.

    Raises:
        PromptError: that is not a plain folder name.
    """
    name = type_of(prompt)
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise PromptError(
            f"prompt {prompt!r} does not end in a name a folder can have: rename it in the model"
        )
    return name


def check_type(prompt: str) -> None:
    """See that the pairs of a prompt have a folder of their own.

    Raises:
        PromptError: its defect type is no name of a folder, or that of good photographs.
    """
    if defect_type(prompt) == GOOD:
        raise PromptError(
            f"prompt {prompt!r} would be painted into `test/{GOOD}`, where good photographs are: rename it in the "
            "model"
        )


def pair_paths(prompt: str, index: int) -> tuple[str, str]:
    """Paths of sample ``index``'s image and mask, relative to the run's folder."""
    kind = defect_type(prompt)
    return f"test/{kind}/{index:06d}.png", f"ground_truth/{kind}/{index:06d}_mask.png"


def write_pair(folder: Path, paths: tuple[str, str], image: bytes, mask: bytes) -> tuple[str, str]:
    """Write the files of image and mask, each atomically, the mask first; returns their sha256.

    When either cannot be written neither stays.
    """
    image_path, mask_path = (f"{folder}/{path}" for path in paths)
    try:
        write_atomic(mask_path, mask)
        write_atomic(image_path, image)
    except BaseException:
        # A file can be in place all the same, when the sync of its folder was what failed.
        for path in (image_path, mask_path):
            with suppress(OSError):
                os.unlink(path)
        raise
    return hashlib.sha256(image).hexdigest(), hashlib.sha256(mask).hexdigest()


class WriterThread:
    """Finishes and writes a batch while the next one is painted; what it was given is always finished."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "stage-rt-writer")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "WriterThread":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._wait()

    def start(self, write: Callable[[], None]) -> None:
        """Hand over a batch; waits for the one before and raises what it raised."""
        self._wait()
        self._writing = self._pool.submit(write)

    def check(self) -> None:
        """Raise what the batch in hand raised, if it did, so that nothing more is painted for a full disk."""
        if self._writing is not None and self._writing.done():
            self._wait()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def png_of(label: NDArray[np.bool_]) -> bytes:
    """A label, bool ``[H, W]``, as the bytes of a PNG file of 0 and 255."""
    return png(Image.fromarray(label.astype(np.uint8) * 255))
