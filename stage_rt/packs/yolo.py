"""YOLO segmentation as ultralytics reads it: ``images/<side>``, ``labels/<side>`` and ``data.yaml``.

A line of a label is a class from 0 and an outline in shares of width and height; a part of a label is a line.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from stage_rt.packs.outlines import parts, points
from stage_rt.packs.picture import SIDES, File, Format, Picture


class YOLO(Format):
    """``data.yaml`` names no folder of its own, so that the pack may be moved."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder, classes)
        said = {side: f"images/{side}" for side in SIDES} | {"names": dict(enumerate(classes))}
        # In ASCII, which is exact: written as they are, some characters are not read back.
        (folder / "data.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
        for side in SIDES:
            (folder / "images" / side).mkdir(parents=True)

    def add(self, picture: Picture) -> str:
        """Write one picture and its label, empty where the part is good."""
        place = f"images/{picture.side}/{picture.name}.png"
        picture.image.put(self.folder / place)
        label = File("".join(self._lines(picture)).encode())
        label.put(self.folder / "labels" / picture.side / f"{picture.name}.txt")
        return place

    def _lines(self, picture: Picture) -> list[str]:
        if picture.kind is None:
            return []
        number = self.number(picture.kind) - 1
        shares = (points(part) / picture.size for part in parts(picture.label))
        return [f"{number} {' '.join(f'{share:.8f}' for share in each.ravel())}\n" for each in shares]
