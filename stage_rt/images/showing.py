"""Good photographs that show a part of which a data set has a photograph with a label."""

from collections.abc import Collection
from pathlib import Path

from stage_rt.images import twins
from stage_rt.images.inputs import read_image
from stage_rt.images.layouts import Dataset
from stage_rt.images.masks import labelled
from stage_rt.progress import Progress, counted, portion, silent


def showing_a_defect(
    photographs: Collection[Path], dataset: Dataset, progress: Progress = silent
) -> list[Path]:
    """Those of the good ``photographs`` that show a part of which the data set has a photograph with a label.

    None of them where that is all: then these are photographs that show no single part.
    """
    pairs = [pair for defects in dataset.defects.values() for pair in defects]
    known = (labelled(photo, mask) for photo, mask in counted(pairs, portion(progress, 0.0, 0.2)))
    read = (read_image(path) for path in counted(photographs, portion(progress, 0.2, 0.6)))
    shown = twins.showing(read, known, portion(progress, 0.6, 1.0))
    found = [path for path, parts in zip(photographs, shown, strict=True) if parts.any()]
    return found if len(found) < len(photographs) else []
