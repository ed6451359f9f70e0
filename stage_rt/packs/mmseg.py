"""mmsegmentation: ``img_dir/<side>``, ``ann_dir/<side>`` with class numbers, ``metainfo.json``.

mmsegmentation takes 255 for "ignore", so that a run's own masks would teach it nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from stage_rt.packs.palette import BACKGROUND, classes_png, colour
from stage_rt.packs.picture import Format, Picture


class MMSeg(Format):
    """``metainfo.json`` is what a dataset of mmsegmentation is told of classes and colours."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder, classes)
        names = [BACKGROUND, *classes]
        metainfo = {"classes": names, "palette": [colour(n) for n in range(len(names))]}
        (folder / "metainfo.json").write_text(json.dumps(metainfo, indent=2) + "\n")

    def add(self, picture: Picture) -> str:
        """Write one picture and its mask, all 0 where the part is good."""
        place = f"img_dir/{picture.side}/{picture.name}.png"
        picture.image.put(self.folder / place)
        mask = classes_png(picture.label, self.number(picture.kind), coloured=False)
        mask.put(self.folder / "ann_dir" / picture.side / f"{picture.name}.png")
        return place
