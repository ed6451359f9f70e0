"""What a run looks like: a contact sheet and one page beside it, the same bytes for the same run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from stage_rt.errors import printable
from stage_rt.files import write_atomic
from stage_rt.images.inputs import read_image
from stage_rt.run.label_sheet import label_sheet
from stage_rt.run.writer import png
from stage_rt.spec import PairRecord, RegionView, RunSpec

if TYPE_CHECKING:
    from jinja2 import Template

    from stage_rt.run.fill import Summary
    from stage_rt.run.ledger import Place

CONTACT_SHEET = "contact_sheet.png"
LABELS = "labels.png"
PAGE = "report.html"
MAX_SHOWN = 12
_TEMPLATE, _OVERVIEW = (Path(__file__).with_name(name) for name in ("report.html.j2", "overview.html.j2"))

# Of the contact sheet, in pixels.
_CELL = 176
_GAP = 6
_CAPTION = 20
_MARGIN = 28
_TITLE = 34
_GROUPS = 2
_PAPER, _CARD, _INK, _FAINT = (250, 250, 248), (232, 232, 229), (28, 28, 30), (120, 120, 124)


def write(place: "Place", spec: RunSpec, records: Sequence[PairRecord], normals: Sequence[Path]) -> None:
    """Write the contact sheet and the page of a run; ``normals[k]`` is the photograph of ``records[k]``."""
    data, folder = place
    shown = [n for n, record in enumerate(records) if record.status == "ok"]
    shown = (
        [shown[k * len(shown) // MAX_SHOWN] for k in range(MAX_SHOWN)] if len(shown) > MAX_SHOWN else shown
    )
    sheet = _sheet(data, spec.prompt, [(records[n], normals[n]) for n in shown])
    _write_png(folder / CONTACT_SHEET, sheet)
    labels_size = _write_labels(place, records, normals, spec.region)
    up = Path(os.path.relpath(data, folder)).as_posix()
    write_atomic(folder / PAGE, _page(spec, records, sheet.size, labels_size, up).encode())


def _write_labels(
    place: "Place", records: Sequence[PairRecord], normals: Sequence[Path], view: RegionView | None
) -> tuple[int, int] | None:
    """Write the sheet of the weakest labels, if any were measured; returns its size."""
    measured = [pair for pair in zip(records, normals, strict=True) if pair[0].fill is not None]
    if not measured:
        return None
    measured.sort(key=lambda pair: _weakest_first(pair[0]))
    sheet = label_sheet(place.data, measured[:MAX_SHOWN], view)
    _write_png(place.ledger / LABELS, sheet)
    return sheet.size


def overview(folder: Path, summaries: Mapping[str, "Summary"]) -> str:
    """The page of a folder of several types: a row each, and one contact sheet."""
    with Image.open(folder / CONTACT_SHEET) as sheet:
        size = sheet.size
    return template(_OVERVIEW).render(
        summaries=summaries,
        pages={name: one.report.relative_to(folder).as_posix() for name, one in summaries.items()},
        sheet=CONTACT_SHEET,
        sheet_width=size[0],
        sheet_height=size[1],
    )


def stack(sheets: Sequence[Path], path: Path) -> None:
    """Write one picture of several contact sheets, one under the other."""
    pictures = []
    for sheet in sheets:
        with Image.open(sheet) as file:
            pictures.append(file.convert("RGB"))
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), _PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    _write_png(path, whole)


def _write_png(path: Path, image: Image.Image) -> None:
    write_atomic(path, png(image))


def _sheet(folder: Path, title: str, shown: Sequence[tuple[PairRecord, Path]]) -> Image.Image:
    group = 3 * _CELL + 2 * _GAP
    columns = min(_GROUPS, max(len(shown), 1))
    rows = -(-len(shown) // columns)
    row = _CELL + _CAPTION + 2 * _GAP
    width = 2 * _MARGIN + columns * group + (columns - 1) * _MARGIN
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _TITLE + _CAPTION + rows * row), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, _INK, ImageFont.load_default(20))
    for column in range(columns):
        for n, heading in enumerate(("normal", "mask", "result")):
            x = _MARGIN + column * (group + _MARGIN) + n * (_CELL + _GAP)
            draw.text((x, _MARGIN + _TITLE), heading, _FAINT, ImageFont.load_default(13))
    for n, (record, normal) in enumerate(shown):
        corner = (
            _MARGIN + (n % columns) * (group + _MARGIN),
            _MARGIN + _TITLE + _CAPTION + (n // columns) * row,
        )
        _draw_pair(sheet, corner, folder, record, normal)
    return sheet


def _draw_pair(
    sheet: Image.Image, corner: tuple[int, int], folder: Path, record: PairRecord, normal: Path
) -> None:
    draw = ImageDraw.Draw(sheet)
    assert record.image is not None
    assert record.mask is not None
    photo = Image.fromarray(read_image(normal))
    mask, result = (Image.open(folder / path).convert("RGB") for path in (record.mask, record.image))
    tiles = ((photo, record.normal), (mask, record.label), (result, Path(record.image).name))
    for n, (image, caption) in enumerate(tiles):
        x, y = corner[0] + n * (_CELL + _GAP), corner[1]
        draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), _CARD)
        tile = _fitted(image)
        sheet.paste(tile, (x + (_CELL - tile.width) // 2, y + (_CELL - tile.height) // 2))
        draw.text((x, y + _CELL + 2), _shortened(caption), _FAINT, ImageFont.load_default(11))


def _fitted(image: Image.Image) -> Image.Image:
    scale = _CELL / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _shortened(caption: str, longest: int = 28) -> str:
    caption = printable(caption)
    return (
        caption if len(caption) <= longest else f"{caption[: longest // 2]}...{caption[3 - longest // 2 :]}"
    )


def _page(
    spec: RunSpec,
    records: Sequence[PairRecord],
    sheet_size: tuple[int, int],
    labels_size: tuple[int, int] | None,
    up: str,
) -> str:
    return template(_TEMPLATE).render(
        spec=spec,
        up="" if up == "." else f"{up}/",
        recipe=spec.recipe.model_dump(),
        written=sorted((record for record in records if record.status == "ok"), key=_weakest_first),
        fill=sorted(record.fill for record in records if record.fill is not None),
        failed=[record for record in records if record.status == "failed"],
        left_out=[record for record in records if record.status == "left out"],
        weak=sum(bool(record.weak) for record in records if record.status == "ok"),
        sheet=CONTACT_SHEET,
        sheet_width=sheet_size[0],
        sheet_height=sheet_size[1],
        labels=LABELS,
        labels_size=labels_size,
    )


def template(path: Path) -> "Template":
    """A page's template; what is put in is escaped and without control characters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def shown(value: object) -> object:
        return printable(value) if type(value) is str else value

    environment = Environment(
        loader=FileSystemLoader(path.parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=shown,
    )
    return environment.get_template(path.name)


def _weakest_first(record: PairRecord) -> tuple[float, int]:
    return (2.0 if record.fill is None else record.fill, record.index)
