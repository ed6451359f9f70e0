"""Painted defects beside real ones: ``python benchmarks/real_defects.py ENGINE DATA -o FOLDER``.

Paints every type of a data set under the labels that the model's training held out, on good photographs, and says how
much of the labels was painted and how the surface under a label differs from the surface around it, in painted and in
real pairs. The sheet of each type, real above painted, each at its label's own scale, is written to FOLDER and shows
photographs of the data set.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from options import engine_parser, keep
from PIL import Image
from scipy import ndimage

import stage_rt
from stage_rt.images.inputs import fit_mask, read_image
from stage_rt.images.layouts import datasets, provenance_name
from stage_rt.images.masks import read_mask
from stage_rt.images.regions import regions
from stage_rt.machine import cpu_name
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.spec import RegionView

VISIBLE, TILE, SHOWN = 15, 128, 12
SHEET_VIEW = RegionView(context=0.5, least=64)


def inside_minus_outside(photo: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Mean grey level under a label less that of a ring around it, and the ratio of their deviations."""
    grey = photo.mean(axis=2)
    margin = max(4, round(np.sqrt(label.sum()) / 2))
    near = ndimage.binary_dilation(label, iterations=margin) & ~ndimage.binary_dilation(label, iterations=2)
    if not near.any():
        return 0.0, 1.0
    return float(grey[label].mean() - grey[near].mean()), float(grey[label].std() / max(grey[near].std(), 1))


def held_out(engine: stage_rt.engine.Engine, root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Labelled pairs by prompt: those that training held out, or all where it says nothing."""
    kept = set(engine.spec.model.provenance.get("held_out") or [])
    return {
        f"{one.name}+{kind}": [
            pair for pair in pairs if not kept or provenance_name(one.name, kind, pair[0]) in kept
        ]
        for one in datasets(root)
        for kind, pairs in one.defects.items()
    }


def tile(photo: np.ndarray, label: np.ndarray) -> Image.Image:
    region = max(regions(label, SHEET_VIEW), key=lambda region: int(region.label.sum()))
    cut = Image.fromarray(photo[region.window]).resize((TILE, TILE), Image.Resampling.BICUBIC)
    outlined = np.asarray(
        Image.fromarray(label[region.window]).resize((TILE, TILE), Image.Resampling.NEAREST)
    )
    both = Image.new("RGB", (TILE, 2 * TILE))
    both.paste(cut, (0, 0))
    pixels = np.array(cut)
    pixels[ndimage.binary_dilation(outlined, iterations=2) & ~outlined] = (230, 40, 40)
    both.paste(Image.fromarray(pixels), (0, TILE))
    return both


def sheet(rows: list[list[tuple[np.ndarray, np.ndarray]]], path: Path) -> None:
    """Each row's photographs, and below them the same with their labels' outline."""
    picture = Image.new("RGB", (SHOWN * TILE, len(rows) * 2 * TILE), (250, 250, 248))
    for n, row in enumerate(rows):
        for k, (photo, label) in enumerate(row[:SHOWN]):
            picture.paste(tile(photo, label), (k * TILE, n * 2 * TILE))
    picture.save(path)


def measured(before: np.ndarray | None, after: np.ndarray, label: np.ndarray) -> dict[str, float]:
    contrast, texture = inside_minus_outside(after, label)
    result = {"inside_minus_outside": contrast, "texture": texture}
    if before is not None:
        change = np.abs(after.mean(axis=2) - before.mean(axis=2))
        result["fill"] = float((change[label] > VISIBLE).mean())
    return result


def summary(each: list[dict[str, float]]) -> dict[str, float]:
    row = {name: round(float(np.median([one[name] for one in each])), 2) for name in each[0]}
    if "fill" in row:
        row["fill"] = round(float(np.mean([one["fill"] for one in each])), 2)
        row["weakest_tenth"] = round(float(np.quantile([one["fill"] for one in each], 0.1)), 2)
    return row


def main(options: argparse.Namespace) -> None:
    engine = stage_rt.load(options.engine)
    normals = [path for one in datasets(options.data) for path in one.normals]
    result: dict[str, Any] = {
        "machine": cpu_name(),
        "data": options.data.name,
        "steps": options.steps,
        "view": options.view or ("region" if engine.spec.model.region else "whole"),
        "guidance": options.guidance,
        "pairs_a_type": options.count,
        "types": {},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for prompt, pairs in held_out(engine, options.data).items():
        kind = prompt.rpartition("+")[2]
        if options.types and kind not in options.types:
            continue
        job = Job(
            normals=normals,
            masks=[mask for _, mask in pairs],
            prompt=prompt,
            count=options.count,
            seed=options.seed,
            composite=True,
            batch=max(engine.spec.batch),
            steps=options.steps,
            view=options.view,
            guidance=options.guidance,
            recipe=options.recipe,
            min_fill=options.min_fill,
        )
        start, folder = time.perf_counter(), options.output / kind
        came = fill(engine, job, folder, notify=print)
        seconds = time.perf_counter() - start
        by_name = {path.name: path for path in normals}
        painted, figures = [], []
        for line in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines()):
            after, label = read_image(folder / line["image"]), read_mask(folder / line["mask"]).label
            painted.append((after, label))
            figures.append(measured(read_image(by_name[line["normal"]]), after, label))
        real = []
        for image, mask in pairs:
            photo = read_image(image)
            real.append((photo, fit_mask(read_mask(mask).label, (photo.shape[1], photo.shape[0]), mask)))
        result["types"][kind] = {
            "painted": summary(figures),
            "real": summary([measured(None, *pair) for pair in real]),
            "refilled": came.refilled,
            "weak": len(came.weak),
            "seconds_a_pair": round(seconds / options.count, 2),
        }
        print(kind, json.dumps(result["types"][kind]), flush=True)
        sheet([real, painted], options.output / f"{kind}.png")
    keep(result, options.json)


if __name__ == "__main__":
    parser = engine_parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--types", nargs="*")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--view", choices=("whole", "region"))
    parser.add_argument("--recipe", choices=("authors", "paper", "masked"))
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--min-fill", type=float)
    main(parser.parse_args())
