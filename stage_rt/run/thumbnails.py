"""Small pictures of pairs: what surrounds a label before and after, and the label, in one file for each pair.

They lie in ``report/thumbnails`` under the pair's number and the beginning of its image's digest, so that one is made
once and a pair that was painted again gets another. Behind its JPEG, where readers of JPEG look no more, a file has a
seal of 8 bytes, which tells whether it is as it was written, and for this pair.
"""

import hashlib
import io
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.files import write_atomic
from stage_rt.images.regions import Region
from stage_rt.spec import PairRecord

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the picture; it may reach beyond."""

FOLDER = "report/thumbnails"
SIDE = 144
"""The longest side of what is shown, in pixels; what is smaller keeps its own scale."""
CONTEXT = 0.35
"""How much of the surroundings is shown on each side of a label, in sides of its square."""
LEAST_SIDE = 24
NAMED = 8
"""Digits of the image's digest in a name."""
TOGETHER = 1000
"""Numbers of pairs that share a folder."""

_QUALITY = 88
_SEAL_BYTES = 8
_OWN = re.compile(r"\d{6,}-[0-9a-f]{8}\.jpg|\.\d{6,}-[0-9a-f]{8}\.jpg\.[0-9a-f]{8}\.tmp")


def largest(label: NDArray[np.bool_], regions: Sequence[Region]) -> NDArray[np.bool_]:
    """Of a label bool ``[H, W]`` with its regions what belongs to the largest defect."""
    group = max(regions, key=lambda region: int(region.label.sum())).group
    only = np.zeros_like(label)
    for region in regions:
        if region.group == group:
            only[region.window] |= region.own
    return only


def square_around(label: NDArray[np.bool_]) -> Box:
    """The square that shows a label bool ``[H, W]`` with some of its surroundings.

    It is moved into the picture and reaches beyond only where the label is longer than the picture's short side; all
    of the picture if nothing is labelled.
    """
    height, width = label.shape
    if not label.any():
        return 0, 0, width, height
    rows, columns = (np.flatnonzero(label.any(axis=axis)) for axis in (1, 0))
    side = max(int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
    side = min(max(round(side * (1 + 2 * CONTEXT)), LEAST_SIDE), max(height, width))
    top, left = (
        max(min((int(span[0]) + int(span[-1]) + 1 - side) // 2, length - side), 0)
        for span, length in ((rows, height), (columns, width))
    )
    return left, top, left + side, top + side


def draw(photo: NDArray[np.uint8], result: Image.Image, label: NDArray[np.bool_], box: Box) -> bytes:
    """The picture of a pair, as a JPEG file.

    ``photo`` uint8 ``[H, W, 3]`` is what it was painted into, ``label`` bool has the size of ``result``.
    """
    before = Image.fromarray(photo)
    if before.size != result.size:
        before = before.resize(result.size, Image.Resampling.BICUBIC)
    mask = Image.fromarray(label.astype(np.uint8) * 255)
    tiles = [_tile(before, box), _tile(result.convert("RGB"), box), _whole_label(mask, box)]
    strip = Image.new("RGB", (sum(tile.width for tile in tiles), tiles[0].height))
    for number, tile in enumerate(tiles):
        strip.paste(tile, (number * tile.width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def put(folder: Path, kind: str, record: PairRecord, picture: bytes) -> None:
    """Write the picture of a pair of type ``kind``, and its seal, into the run's ``folder``.

    It is not waited for: if the machine loses power it is made again.
    """
    sealed = (picture, _seal(record, picture))
    write_atomic(f"{folder}/{path(kind, record)}", sealed, synced=False)


def whole(folder: Path, kind: str, record: PairRecord) -> bool:
    """Whether the picture of a pair is there, with the bytes that `put` wrote; it is read and not decoded."""
    try:
        with open(f"{folder}/{path(kind, record)}", "rb") as file:
            content = file.read()
    except OSError:
        return False
    return content[-_SEAL_BYTES:] == _seal(record, content[:-_SEAL_BYTES])


def path(kind: str, record: PairRecord) -> str:
    """Where the picture of a pair is, from the run's folder."""
    assert record.image_sha256 is not None
    name = f"{record.index:06d}-{record.image_sha256[:NAMED]}.jpg"
    return f"{FOLDER}/{kind}/{record.index // TOGETHER:03d}/{name}"


def sweep(folder: Path, kind: str, wanted: Collection[str]) -> None:
    """Remove the pictures of a type that are not ``wanted``, of images that are no more."""
    parts: list[str] = []
    with suppress(FileNotFoundError):
        parts = os.listdir(folder / FOLDER / kind)
    for part in parts:
        at = f"{FOLDER}/{kind}/{part}"
        # Others leave files of their own beside the folders.
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / at) as found:
            for one in found:
                if _OWN.fullmatch(one.name) and f"{at}/{one.name}" not in wanted:
                    os.unlink(one)


def _seal(record: PairRecord, picture: bytes) -> bytes:
    """Of a picture and of the three files it was drawn from: as good as another pair's it is no good for this one."""
    drawn_from = f"{record.normal_sha256} {record.image_sha256} {record.mask_sha256} "
    return hashlib.blake2b(drawn_from.encode() + picture, digest_size=_SEAL_BYTES).digest()


def _tile(image: Image.Image, box: Box) -> Image.Image:
    return _shown(image, box, Image.Resampling.LANCZOS)


def _whole_label(mask: Image.Image, box: Box) -> Image.Image:
    """A label in which no line is lost, however thin."""
    return _shown(mask, box, Image.Resampling.BOX).point(lambda level: 255 * (level > 0)).convert("RGB")


def _shown(image: Image.Image, box: Box, resampling: Image.Resampling) -> Image.Image:
    """What a box holds, at most `SIDE` long and black beyond the picture."""
    left, top, right, bottom = box
    size = right - left, bottom - top
    if max(size) <= SIDE:
        return image.crop(box)
    # Cut out with what is beyond, a line scan's square would be larger than Pillow makes a picture.
    inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    longest = max(size)
    start = round((inside[0] - left) * SIDE / longest), round((inside[1] - top) * SIDE / longest)
    seen = _fitted((inside[2] - inside[0], inside[3] - inside[1]), longest)
    shown = Image.new(image.mode, _fitted(size, longest))
    shown.paste(image.crop(inside).resize(seen, resampling), start)
    return shown


def _fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    width, height = (max(round(side * SIDE / longest), 1) for side in size)
    return width, height
