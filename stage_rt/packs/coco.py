"""COCO: ``<side>/*.png`` and, in ``annotations``, the parts of their labels twice, as RLE and as polygons.

Most tools read either; some read only polygons, and RLE is what pycocotools itself calculates with.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from stage_rt.extras import library
from stage_rt.packs.outlines import Part, corners, parts
from stage_rt.packs.picture import SIDES, Format, Picture

_FILES = ("instances", "polygons")


class Coco(Format):
    """``annotations/instances_<side>.json`` holds RLE, ``polygons_<side>.json`` the same parts as polygons.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._mask = library("pycocotools.mask", "a COCO pack needs `pycocotools`", "pack")
        super().__init__(folder, classes)
        self._images = {side: _Rows(folder) for side in SIDES}
        self._annotations = {(name, side): _Rows(folder) for name in _FILES for side in SIDES}
        for side in SIDES:
            (folder / side).mkdir()

    def add(self, picture: Picture) -> str:
        """Write one picture and keep what is to be said of it."""
        width, height = picture.size
        name, image = f"{picture.name}.png", picture.number + 1
        picture.image.put(self.folder / picture.side / name)
        self._images[picture.side].add(
            {"id": image, "file_name": name, "width": width, "height": height, "extra": picture.provenance}
        )
        if picture.kind is not None:
            category = self.number(picture.kind)
            for part in parts(picture.label):
                said = {"image_id": image, "category_id": category, "iscrowd": 0, "bbox": part.box}
                rle = self._rle(part, picture)
                said["area"] = int(self._mask.area(rle))
                segmentations = (rle | {"counts": rle["counts"].decode()}, [corners(part).ravel().tolist()])
                for file, segmentation in zip(_FILES, segmentations, strict=True):
                    rows = self._annotations[file, picture.side]
                    rows.add({"id": rows.count + 1, **said, "segmentation": segmentation})
        return f"{picture.side}/{name}"

    def finish(self) -> None:
        """Write the files of annotations."""
        categories = [{"id": n, "name": name} for n, name in enumerate(self.classes, start=1)]
        (self.folder / "annotations").mkdir()
        for (name, side), rows in self._annotations.items():
            with (self.folder / "annotations" / f"{name}_{side}.json").open("wb") as file:
                file.write(b'{"info":{},"licenses":[],"categories":' + json.dumps(categories).encode())
                for field, content in (("images", self._images[side]), ("annotations", rows)):
                    file.write(f',\n"{field}":[\n'.encode())
                    content.copy_to(file)
                    file.write(b"]")
                file.write(b"}\n")

    def close(self) -> None:
        """Remove the rows kept aside."""
        for rows in (*self._images.values(), *self._annotations.values()):
            rows.close()

    def _rle(self, part: Part, picture: Picture) -> dict[str, Any]:
        alone = np.zeros(picture.label.shape, dtype=np.uint8, order="F")
        height, width = part.label.shape
        alone[part.y : part.y + height, part.x : part.x + width] = part.label
        encoded: dict[str, Any] = self._mask.encode(alone)
        return encoded


class _Rows:
    """Rows of a JSON array, kept on the pack's disk: those of 50,000 pictures would fill the memory, or ``/tmp``."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = TemporaryFile(dir=folder)  # noqa: SIM115  # lives as long as the pack is written
        self.count = 0

    def add(self, row: object) -> None:
        self._file.write(b",\n" * bool(self.count) + json.dumps(row).encode())
        self.count += 1

    def copy_to(self, file: IO[bytes]) -> None:
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)

    def close(self) -> None:
        self._file.close()
