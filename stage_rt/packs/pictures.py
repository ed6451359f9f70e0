"""The pictures of a pack, one after the other: pairs of finished runs, then good photographs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from stage_rt.images.inputs import read_grey, read_header, read_image
from stage_rt.packs.picture import File, Picture, Side
from stage_rt.packs.runs import FinishedRun
from stage_rt.packs.survey import left_out
from stage_rt.run.sample import readable
from stage_rt.run.writer import png

IN_TRAIN = "painted into train/good"
EMPTY = "without a label"

SideOf = Callable[[str], Side | None]
"""Where the pairs of a photograph of some name stand; None for nowhere."""

_PROVENANCE = {
    *("index", "normal", "label", "prompt", "seed", "sampler", "recipe", "steps", "regions", "attempts"),
    *("weak", "fill", "leak", "contrast", "label_pixels"),
}


def pairs(
    runs: Sequence[FinishedRun], side_of: SideOf, numbers: "count[int]", skipped: Counter[str], *, weak: bool
) -> Iterator[Picture]:
    """Every pair that has a side, checked against its run's manifest; ``skipped`` counts the others.

    Raises:
        RunError: a file is missing or was changed.
    """
    for place, run in enumerate(runs):
        for record in run.records():
            if left_out(record, weak=weak):
                continue
            side = side_of(record.normal)
            if side is None:
                skipped[IN_TRAIN] += 1
                continue
            image, mask = run.files(record)
            label = read_grey(run.folder / str(record.mask))[0] > 0
            # Without compositing a small label can vanish at the size of the network.
            if not label.any():
                skipped[EMPTY] += 1
                continue
            provenance = record.model_dump(include=_PROVENANCE, exclude_none=True)
            provenance |= {"run": place, "engine": run.spec.engine}
            yield Picture(next(numbers), side, run.kind, image, mask, label, provenance)


def good(
    photographs: Sequence[Path], side_of: Callable[[str], Side], numbers: "count[int]"
) -> Iterator[Picture]:
    """Photographs of good parts.

    Raises:
        ImageError: one cannot be read.
    """
    for path in photographs:
        photo = read_image(path)
        label = np.zeros(photo.shape[:2], dtype=bool)
        # Decoded as the pairs were, so that nothing of the file's own tells good from painted.
        image = png(Image.fromarray(photo).convert("L" if read_header(path).grey else "RGB"))
        mask = png(Image.fromarray(label.astype(np.uint8)))
        name = readable(path)
        yield Picture(next(numbers), side_of(name), None, File(image), File(mask), label, {"normal": name})
