"""One picture of some pairs of a run: photograph, mask and result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stage_rt.errors import RunError, printable
from stage_rt.images.inputs import read_image
from stage_rt.spec import PairRecord

MOST = 12
"""How many pairs of a type are enough."""

# In pixels.
_CELL = 176
_GAP = 6
_CAPTION = 20
_MARGIN = 28
_TITLE = 34
_GROUPS = 2
_PAPER, _CARD, _INK, _FAINT = (250, 250, 248), (232, 232, 229), (28, 28, 30), (120, 120, 124)


@dataclass(frozen=True)
class Group:
    """Pairs of one prompt, which lie in ``folder``; with each goes its photograph's file."""

    prompt: str
    folder: Path
    pairs: Sequence[tuple[PairRecord, Path]]


def contact_sheet(groups: Sequence[Group]) -> Image.Image:
    """All pairs of each group, the groups one under the other."""
    sheets = [_sheet(group) for group in groups]
    whole = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)), _PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def spread(count: int) -> list[int]:
    """Which of ``count`` pairs to show: `MOST`, at even distances."""
    return list(range(count)) if count <= MOST else [n * count // MOST for n in range(MOST)]


class Chosen:
    """Which pairs of ``count`` samples are shown: those of `spread`, and the next pair for a sample that is none."""

    def __init__(self, count: int) -> None:
        self._sheet, self._shown = spread(count), 0

    def takes(self, number: int) -> bool:
        """Whether sample ``number`` is shown; asked of all that are pairs, in order."""
        takes = self._shown < len(self._sheet) and number >= self._sheet[self._shown]
        self._shown += takes
        return takes


def read_picture(path: Path) -> Image.Image:
    """An image or mask of a pair, decoded.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (
        OSError,
        SyntaxError,
        ValueError,
    ) as damage:  # What Pillow says of a damaged file has no common base.
        raise RunError(
            f"`{path}`, which the report shows, is missing or damaged",
            "give the command that paints its type, which paints it again",
        ) from damage


def _sheet(group: Group) -> Image.Image:
    shown = group.pairs
    wide = 3 * _CELL + 2 * _GAP
    columns = min(_GROUPS, max(len(shown), 1))
    rows = -(-len(shown) // columns)
    row = _CELL + _CAPTION + 2 * _GAP
    width = 2 * _MARGIN + columns * wide + (columns - 1) * _MARGIN
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _TITLE + _CAPTION + rows * row), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), printable(group.prompt), _INK, ImageFont.load_default(20))
    for column in range(columns):
        for n, heading in enumerate(("normal", "mask", "result")):
            x = _MARGIN + column * (wide + _MARGIN) + n * (_CELL + _GAP)
            draw.text((x, _MARGIN + _TITLE), heading, _FAINT, ImageFont.load_default(13))
    for n, (record, normal) in enumerate(shown):
        corner = (
            _MARGIN + (n % columns) * (wide + _MARGIN),
            _MARGIN + _TITLE + _CAPTION + (n // columns) * row,
        )
        _draw_pair(sheet, corner, group.folder, record, normal)
    return sheet


def _draw_pair(
    sheet: Image.Image, corner: tuple[int, int], folder: Path, record: PairRecord, normal: Path
) -> None:
    draw = ImageDraw.Draw(sheet)
    assert record.image is not None
    assert record.mask is not None
    photo = Image.fromarray(read_image(normal))
    mask, result = (read_picture(folder / path).convert("RGB") for path in (record.mask, record.image))
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
