"""The weakest labels of a run, each at its own scale: photograph, result, and result with the label's outline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from stage_rt.images.inputs import read_image
from stage_rt.images.regions import regions
from stage_rt.spec import PairRecord, RegionView

CONTEXT = 0.35
"""How much of the surroundings is shown on each side of a label, in sides of its square."""
LEAST_SIDE = 24

# In pixels.
_CELL, _GAP, _CAPTION, _MARGIN, _GROUPS = 176, 6, 20, 28, 2
_PAPER, _FAINT, _OUTLINE = (250, 250, 248), (120, 120, 124), (230, 40, 40)


def label_sheet(
    folder: Path, shown: Sequence[tuple[PairRecord, Path]], view: RegionView | None
) -> Image.Image:
    """One picture of finished pairs; with each goes its photograph's file.

    Of a pair that was painted in several regions the one with most of the label is shown.
    """
    group, row = 3 * _CELL + 2 * _GAP, _CELL + _CAPTION + 2 * _GAP
    columns = min(_GROUPS, max(len(shown), 1))
    rows = -(-len(shown) // columns)
    size = (2 * _MARGIN + columns * group + (columns - 1) * _MARGIN, 2 * _MARGIN + rows * row)
    sheet = Image.new("RGB", size, _PAPER)
    for n, (record, normal) in enumerate(shown):
        corner = (_MARGIN + n % columns * (group + _MARGIN), _MARGIN + n // columns * row)
        _draw(sheet, corner, folder, record, normal, view)
    return sheet


def _draw(
    sheet: Image.Image,
    corner: tuple[int, int],
    folder: Path,
    record: PairRecord,
    normal: Path,
    view: RegionView | None,
) -> None:
    assert record.image is not None
    assert record.mask is not None
    label = np.asarray(Image.open(folder / record.mask)) > 0
    result = Image.open(folder / record.image).convert("RGB")
    photo = Image.fromarray(read_image(normal)).resize(result.size, Image.Resampling.BICUBIC)
    box = square_around(_most(label, view))
    tiles = [_zoomed(photo, box), _zoomed(result, box), _outlined(_zoomed(result, box), label, box)]
    for n, tile in enumerate(tiles):
        sheet.paste(tile, (corner[0] + n * (_CELL + _GAP), corner[1]))
    fill = "not measured" if record.fill is None else f"{record.fill:.0%} painted"
    caption = f"{Path(record.image).name} · {fill} · {record.label_pixels or int(label.sum())} px"
    position = (corner[0], corner[1] + _CELL + 2)
    ImageDraw.Draw(sheet).text(position, caption, _FAINT, ImageFont.load_default(11))


def _most(label: NDArray[np.bool_], view: RegionView | None) -> NDArray[np.bool_]:
    """A label without what is not in its largest region or other pieces of the same defect."""
    found = regions(label, view)
    largest = max(found, key=lambda region: int(region.label.sum())).group
    only = np.zeros_like(label)
    for region in found:
        if region.group == largest:
            only[region.window] |= region.own
    return only


def square_around(label: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the square that shows a label bool ``[H, W]`` with some of its surroundings.

    It is moved into the picture and reaches beyond only where the label is longer than the picture's short side; all
    of the picture if nothing is labelled.
    """
    height, width = label.shape
    if not label.any():
        return 0, 0, width, height
    rows, columns = (np.flatnonzero(label.any(axis=axis)) for axis in (1, 0))
    side = max(int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
    side = min(max(round(side * (1 + 2 * CONTEXT)), LEAST_SIDE), max(height, width))
    top, left = (
        max(min((int(span[0]) + int(span[-1]) + 1 - side) // 2, length - side), 0)
        for span, length in ((rows, height), (columns, width))
    )
    return left, top, left + side, top + side


def _zoomed(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image.crop(box).resize((_CELL, _CELL), Image.Resampling.NEAREST)


def _outlined(tile: Image.Image, label: NDArray[np.bool_], box: tuple[int, int, int, int]) -> Image.Image:
    zoomed = np.asarray(_zoomed(Image.fromarray(label), box))
    pixels = np.array(tile)
    pixels[ndimage.binary_dilation(zoomed, iterations=2) & ~zoomed] = _OUTLINE
    return Image.fromarray(pixels)
