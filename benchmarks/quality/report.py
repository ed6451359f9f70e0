"""The page of an evaluation, a plot of its rows, and pictures of what segmenters said."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stage_rt.files import write_atomic
from stage_rt.run.report import template
from stage_rt.run.writer import png

from .metrics import FALSE_ALARMS, FOUND
from .pictures import Pictures
from .protocol import REAL, has_real
from .statistics import FEWEST_DEFECTS
from .trials import Figures

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

RESULT, PAGE, PLOT, EXAMPLES = "result.json", "report.html", "miou.png", "examples.png"
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_COLOURS = np.array([[230, 80, 60], [60, 140, 230], [240, 180, 40], [90, 190, 90], [170, 90, 200]])
_CELL, _LINE, _MARGIN = 128, 14, 3


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write result, plot and page into ``folder``."""
    write_atomic(folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    _plot(result["rows"], folder / PLOT)
    shown = {
        "verdicts": verdicts(result),
        "alone": best_alone(result),
        "unknown": unknown(result),
        "splits": result.get("splits", []),
        "fewest": FEWEST_DEFECTS,
        "found": FOUND,
        "false_alarms": FALSE_ALARMS,
        "page": PAGE,
        "plot": PLOT,
        "examples": EXAMPLES,
    }
    page = template(_TEMPLATE).render(result=result, **shown)
    write_atomic(folder / PAGE, page.encode())


def verdicts(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every row with real pairs against real only, in words: helps, harms, or no difference that can be told."""
    told = []
    for one in result["differences"]:
        if one["from"] != REAL or not has_real(one["row"]):
            continue
        told.append(_worded(one, "helps" if one["points"] > 0 else "harms"))
    return told


def best_alone(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The best source without real pairs against every other: above it, or no difference that can be told."""
    rows = [row for row in result["rows"] if not has_real(row["row"])]
    best = max(rows, key=lambda row: row["miou"], default={"row": ""})["row"]
    return [
        _worded(one, "above")
        for one in result["differences"]
        if one["row"] == best and not has_real(one["from"])
    ]


def unknown(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of every source the types whose painted defects segmenters of real ones do not know."""
    return {
        source: [kind for kind in result["types"] if kind not in known]
        for source, known in result["convincing"].items()
    }


def _worded(one: Mapping[str, Any], word: str) -> dict[str, Any]:
    return {**one, "word": word if one["told_apart"] else "no difference that can be told"}


def _plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 0.32 * len(rows) + 1), layout="constrained")
    for n, row in enumerate(reversed(rows)):
        axis.barh(n, row["miou"], color="#4a7bb5" if has_real(row["row"]) else "#b9cbe2")
        axis.plot(row["miou_by_seed"], [n] * row["seeds"], "k.", markersize=4)
    axis.set_yticks(range(len(rows)), [row["row"] for row in reversed(rows)], parse_math=False)
    axis.set_xlabel("mean IoU of the types on held-out photographs; dots are seeds")
    axis.grid(axis="x", alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    write_atomic(path, drawn.getvalue())


def write_examples(
    folder: Path, test: Pictures, figures: Mapping[str, Figures], types: Sequence[str], each: int = 2
) -> None:
    """A sheet of test pictures, ``each`` a type: photograph, label, and what a segmenter of some rows found."""
    chosen = [
        n
        for number in range(1, len(types) + 1)
        for n in np.flatnonzero((test.classes == number).any(axis=(1, 2)))[:each]
    ]
    found = {name: one.found(chosen) for name, one in figures.items()}
    font = ImageFont.load_default(11)
    heads = [_wrapped(name, font) for name in ["photograph", "label", *found]]
    top = _MARGIN + _LINE * max(len(head) for head in heads)
    sheet = Image.new("RGB", (len(heads) * _CELL, len(chosen) * _CELL + top), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        for line, words in enumerate(head):
            pen.text((column * _CELL + _MARGIN, _MARGIN + line * _LINE), words, (40, 40, 40), font)
    for line, n in enumerate(chosen):
        tiles = [test.images[n], _over(test.images[n], test.classes[n])]
        tiles += [_over(test.images[n], classes[line]) for classes in found.values()]
        for column, tile in enumerate(tiles):
            picture = Image.fromarray(tile).resize((_CELL, _CELL), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * _CELL, line * _CELL + top))
    write_atomic(folder / EXAMPLES, png(sheet))


def _wrapped(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """A row's name in lines no wider than a cell, where its words are not."""
    lines = [""]
    for word in name.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > _CELL - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _over(image: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colour = _COLOURS[(classes - 1) % len(_COLOURS)]
    mixed = np.where(classes[..., None] > 0, 0.45 * image + 0.55 * colour, image)
    return np.rint(mixed).astype(np.uint8)
