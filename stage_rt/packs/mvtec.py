"""MVTec AD: ``train/good``, ``test/good``, ``test/<type>`` and ``ground_truth/<type>``, one object.

Readers of the layout train on good photographs alone, so every pair stands in ``test``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from stage_rt.packs.picture import Format, Picture, Side


class MVTec(Format):
    """Pairs number from 0 in every type, good photographs in ``train/good`` and ``test/good``."""

    called: ClassVar[Mapping[Side, str]] = {"train": "train", "val": "test"}

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder, classes)
        self._counts: Counter[str] = Counter()

    def add(self, picture: Picture) -> str:
        """Link or write one picture, and its mask if it shows a defect."""
        place = f"{self.called[picture.side]}/{picture.kind or 'good'}"
        name = f"{self._counts[place]:06d}"
        self._counts[place] += 1
        picture.image.put(self.folder / place / f"{name}.png")
        if picture.kind is not None:
            picture.mask.put(self.folder / "ground_truth" / picture.kind / f"{name}_mask.png")
        return f"{place}/{name}.png"
