"""How much labels step where pieces of a defect meet: ``python benchmarks/seams.py ENGINE DATA RUNS``.

RUNS is the folder of `benchmarks/real_defects.py`, with a run for each type of DATA. Under every label that ENGINE's
model paints in pieces, the mean grey level of the pixels up to `REACH` from a seam on one side is held against those
on the other, and the same across the middle of each piece, where no seam is; real labels are cut as they would be
painted.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import combinations, groupby
from pathlib import Path

import numpy as np
from options import keep
from scipy import ndimage

from stage_rt.folders import read_engine
from stage_rt.images.inputs import read_image
from stage_rt.images.layouts import datasets
from stage_rt.images.masks import read_mask
from stage_rt.images.regions import Region, regions
from stage_rt.machine import cpu_name
from stage_rt.spec import RegionView

REACH = 6
LEAST = 20
"""Pixels on a side that a mean needs."""

Pair = tuple[np.ndarray, np.ndarray]


def step(grey: np.ndarray, one: np.ndarray, other: np.ndarray) -> list[float]:
    """The difference of the means of two parts where they meet; nothing where they hardly do."""
    near = [
        part & (ndimage.distance_transform_edt(~beside) <= REACH)
        for part, beside in ((one, other), (other, one))
    ]
    if min(int(part.sum()) for part in near) < LEAST:
        return []
    return [abs(float(grey[near[0]].mean() - grey[near[1]].mean()))]


def halves(own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A part cut through its middle across its longer side."""
    places = np.nonzero(own)
    axis = int(np.ptp(places[1]) > np.ptp(places[0]))
    first = np.indices(own.shape)[axis] < places[axis].mean()
    return own & first, own & ~first


def parts(label: np.ndarray, view: RegionView) -> Iterator[list[np.ndarray]]:
    """The pieces of every defect that has several, each bool ``[H, W]``."""

    def whole(region: Region) -> np.ndarray:
        own = np.zeros_like(label)
        own[region.window] = region.own
        return own

    for _, members in groupby(regions(label, view), key=lambda region: region.group):
        pieces = [whole(region) for region in members]
        if len(pieces) > 1:
            yield pieces


def steps(pairs: list[Pair], view: RegionView) -> dict[str, float]:
    """Means over all seams and over all middles of photographs ``[H, W, 3]`` and labels ``[H, W]``."""
    seams, middles = [], []
    for photo, label in pairs:
        grey = photo.mean(axis=2)
        for pieces in parts(label, view):
            seams += [each for pair in combinations(pieces, 2) for each in step(grey, *pair)]
            middles += [each for piece in pieces for each in step(grey, *halves(piece))]
    return {
        "seams": len(seams),
        "at_seams": round(float(np.mean(seams)), 1) if seams else float("nan"),
        "at_middles": round(float(np.mean(middles)), 1) if middles else float("nan"),
    }


def painted(run: Path) -> list[Pair]:
    lines = map(json.loads, (run / "manifest.jsonl").read_text().splitlines())
    return [(read_image(run / line["image"]), read_mask(run / line["mask"]).label) for line in lines]


def real(pairs: list[tuple[Path, Path]]) -> list[Pair]:
    read = [(read_image(image), read_mask(mask).label) for image, mask in pairs]
    return [(photo, label) for photo, label in read if photo.shape[:2] == label.shape]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("engine", "data", "runs"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    view = read_engine(options.engine).model.region
    if view is None:
        parser.error("the engine's model paints whole photographs, which have no pieces")
    kinds = {
        kind: {"painted": steps(painted(options.runs / kind), view), "real": steps(real(pairs), view)}
        for one in datasets(options.data)
        for kind, pairs in one.defects.items()
        if (options.runs / kind / "manifest.jsonl").is_file()
    }
    for kind, found in kinds.items():
        print(kind, json.dumps(found))
    keep({"machine": cpu_name(), "data": options.data.name, "reach": REACH, "types": kinds}, options.json)
