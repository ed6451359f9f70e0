"""What a run looks like: a page to judge its pairs by, from disk and without a network, and a contact sheet.

The same run gives the same bytes. Pairs go through memory one at a time, whatever their number.
"""

import io
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stage_rt.errors import printable
from stage_rt.files import staged_for, write_atomic
from stage_rt.images.inputs import read_image
from stage_rt.images.regions import regions
from stage_rt.run import thumbnails
from stage_rt.run.contact_sheet import Chosen, Group, contact_sheet, read_picture
from stage_rt.run.ledger import Place, records_of
from stage_rt.run.writer import defect_type
from stage_rt.spec import PairRecord, RunSpec

if TYPE_CHECKING:
    from jinja2 import Template

FOLDER = "report"
PAGE = f"{FOLDER}/index.html"
CONTACT_SHEET = f"{FOLDER}/contact_sheet.jpg"
TOLD = 200
"""How many samples that failed, and that were left out, the page lists of a type."""
LISTED = 16
"""Digits of an image's digest that a list of rejected pairs names it by."""

_HERE = Path(__file__).parent
_SCRIPTS = ("report.css", "report.js")
_PAIRS = re.compile(r"pairs-\d+\.js")
_OLDER = ("report.html", "contact_sheet.png", "labels.png")
_SHEET_QUALITY = 92


@dataclass(frozen=True)
class Part:
    """A run of one type whose samples are all done: ``photographs[k]`` is that of line ``k`` of its manifest.

    ``notices`` is what was told of its files before it began.
    """

    place: Place
    spec: RunSpec
    photographs: Sequence[Path]
    notices: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """The defect type of its pairs."""
        return defect_type(self.spec.prompt)


@dataclass
class Tally:
    """What the pairs of a part come to; ``fill`` is in ascending order, ``failed`` and ``left_out`` are the first.

    ``refilled`` are samples that became no pair too, as wherever else they are counted.
    ``shown`` are those of the contact sheet, each with its photograph.
    """

    pairs: int = 0
    weak: int = 0
    refilled: int = 0
    rejected: int = 0
    failures: int = 0
    leavings: int = 0
    failed: list[PairRecord] = field(default_factory=list)
    left_out: list[PairRecord] = field(default_factory=list)
    shown: list[tuple[PairRecord, Path]] = field(default_factory=list)
    fill: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, record: PairRecord) -> None:
        """Count one."""
        self.refilled += record.attempts is not None
        if record.status == "ok":
            self.pairs += 1
            self.weak += bool(record.weak)
            self.rejected += bool(record.rejected)
            if record.fill is not None:
                self.fill.append(record.fill)
            return
        failed = record.status == "failed"
        self.failures += failed
        self.leavings += not failed
        told = self.failed if failed else self.left_out
        if len(told) < TOLD:
            told.append(record)


def write(folder: Path, parts: Sequence[Part], good: Mapping[Path, str]) -> None:
    """Write the page and the contact sheet of the run in ``folder``.

    ``good`` says where in ``folder`` photographs are (`stage_rt.run.good`); the page shows those as they were.

    Raises:
        RunError: a picture of a pair that is shown is missing or damaged.
    """
    at = folder / FOLDER
    at.mkdir(exist_ok=True)
    _sweep(folder, parts)
    tallies = [_write_pairs(folder, number, part, good) for number, part in enumerate(parts)]
    groups = [
        Group(part.spec.prompt, part.place.data, tally.shown)
        for part, tally in zip(parts, tallies, strict=True)
    ]
    buffer = io.BytesIO()
    contact_sheet(groups).save(buffer, "JPEG", quality=_SHEET_QUALITY, subsampling=0)
    write_atomic(folder / CONTACT_SHEET, buffer.getvalue())
    if not (at / "times.js").exists():
        # Of a run that nobody watched.
        write_atomic(at / "times.js", b"")
    for name in _SCRIPTS:
        write_atomic(at / name, (_HERE / name).read_bytes())
    page = template(_HERE / "report.html.j2").render(parts=list(zip(parts, tallies, strict=True)), told=TOLD)
    write_atomic(folder / PAGE, page.encode())


def _sweep(folder: Path, parts: Sequence[Part]) -> None:
    """Remove what a crash left here, pages of older releases and pairs of types that are no more."""
    for path in (folder / FOLDER).iterdir():
        number = len(parts) if _PAIRS.fullmatch(path.name) else 0
        if staged_for(path) or (number and int(path.stem.partition("-")[2]) >= number):
            path.unlink()
    for place in {folder, *(part.place.ledger for part in parts)}:
        for name in _OLDER:
            (place / name).unlink(missing_ok=True)


def _write_pairs(folder: Path, place: int, part: Part, good: Mapping[Path, str]) -> Tally:
    """What the page shows of a part, a row for each pair, and its thumbnails where they are not whole."""
    tally, kind, wanted = Tally(), part.kind, set()
    photographs, labels = _Names(), _Names()
    sheet = Chosen(len(part.photographs))

    def rows() -> Iterator[bytes]:
        head = {"type": kind, "prompt": part.spec.prompt, "strict": part.spec.strict}
        yield f"(window.stageRT ??= []).push(Object.assign({json.dumps(head)}, {{rows: [\n".encode()
        records = records_of(part.place, part.spec.prompt)
        for number, (record, photograph) in enumerate(zip(records, part.photographs, strict=True)):
            tally.add(record)
            if record.status != "ok":
                continue
            if sheet.takes(number):
                tally.shown.append((record, photograph))
            wanted.add(thumbnails.path(kind, record))
            if not thumbnails.whole(folder, kind, record):
                _make_thumbnail(folder, part, record, photograph)
            row = _row(
                record,
                photographs(record.normal, good.get(photograph)),
                labels(record.label, None),
            )
            yield json.dumps(row, separators=(",", ":")).encode() + b",\n"
        tail = {"photographs": photographs.listed, "labels": [name for name, _ in labels.listed]}
        yield f"]}}, {json.dumps(tail)}));\n".encode()

    write_atomic(folder / FOLDER / f"pairs-{place}.js", rows())
    thumbnails.sweep(folder, kind, wanted)
    tally.fill = array("d", sorted(tally.fill))
    return tally


class _Names:
    """Names with where they are, each listed once."""

    def __init__(self) -> None:
        self.listed: list[tuple[str, str | None]] = []
        self._numbers: dict[tuple[str, str | None], int] = {}

    def __call__(self, name: str, place: str | None) -> int:
        entry = (printable(name), place)
        if entry not in self._numbers:
            self._numbers[entry] = len(self.listed)
            self.listed.append(entry)
        return self._numbers[entry]


def _row(record: PairRecord, photograph: int, label: int) -> list[object]:
    """A pair as ``report.js`` reads it: the order is that of its ``COLUMNS``."""
    assert record.image_sha256 is not None
    return [
        record.index,
        record.fill,
        record.leak,
        record.contrast,
        record.label_pixels,
        record.attempts or 1,
        int(bool(record.weak)),
        photograph,
        label,
        record.box,
        record.image_sha256[:LISTED],
        len(record.rejected or ()),
    ]


def _make_thumbnail(folder: Path, part: Part, record: PairRecord, photograph: Path) -> None:
    assert record.image is not None
    assert record.mask is not None
    label = np.asarray(read_picture(folder / record.mask)) > 0
    defect = thumbnails.largest(label, regions(label, part.spec.region))
    box = record.box or thumbnails.square_around(defect)
    result = read_picture(folder / record.image)
    picture = thumbnails.draw(read_image(photograph), result, label, box)
    thumbnails.put(folder, part.kind, record, picture)


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
