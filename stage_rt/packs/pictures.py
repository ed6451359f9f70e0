"""The pictures of a pack, one after the other: pairs of finished runs, then real photographs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.images.inputs import read_grey, read_header, read_image
from stage_rt.images.masks import labelled
from stage_rt.packs.picture import File, Picture, Side
from stage_rt.packs.real import Real
from stage_rt.packs.runs import FinishedRun
from stage_rt.packs.survey import LeftOut
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
    runs: Sequence[FinishedRun],
    reason_of: LeftOut,
    side_of: SideOf,
    numbers: "count[int]",
    skipped: Counter[str],
) -> Iterator[Picture]:
    """Every pair that has a side, checked against its run's manifest; ``skipped`` counts the others.

    Those that ``reason_of`` names a reason for were counted before.

    Raises:
        RunError: a file is missing or was changed.
    """
    for place, run in enumerate(runs):
        for record in run.records():
            if reason_of(run, record):
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
    photographs: Iterable[Path], side_of: Callable[[str], Side], numbers: "count[int]"
) -> Iterator[Picture]:
    """Photographs of good parts.

    Raises:
        ImageError: one cannot be read.
    """
    for path in photographs:
        name = readable(path)
        yield _good(path, side_of(name), next(numbers), {"normal": name})


def real(photographs: Real, numbers: "count[int]") -> Iterator[Picture]:
    """Those with a label, then the good ones.

    Raises:
        ImageError, MaskError: a file cannot be used.
    """
    for kind, path, mask, side in photographs.labelled:
        photo, label = labelled(path, mask)
        provenance = {"real": photographs.place(path), "label": readable(mask)}
        yield Picture(next(numbers), side, kind, *_files(path, photo, label), label, provenance)
    for path in photographs.good:
        yield _good(path, "val", next(numbers), {"real": photographs.place(path)})


def _good(path: Path, side: Side, number: int, provenance: Mapping[str, object]) -> Picture:
    photo = read_image(path)
    label = np.zeros(photo.shape[:2], dtype=bool)
    return Picture(number, side, None, *_files(path, photo, label), label, provenance)


def _files(path: Path, photo: NDArray[np.uint8], label: NDArray[np.bool_]) -> tuple[File, File]:
    # Decoded as the pairs were, so that nothing of the file's own tells real from painted.
    image = png(Image.fromarray(photo).convert("L" if read_header(path).grey else "RGB"))
    return File(image), File(png(Image.fromarray(label.astype(np.uint8) * np.uint8(255))))
