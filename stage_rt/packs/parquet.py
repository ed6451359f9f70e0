"""Parquet: one row a picture with the bytes of image and mask, ``<side>-00000.parquet`` and on.

Images are structs of bytes and path, as Hugging Face's ``datasets`` takes them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stage_rt.extras import library
from stage_rt.packs.picture import Format, Picture, Side

ROW_GROUP_BYTES = 64 * 2**20
"""How much is held in memory of each side before it is written."""
FILE_BYTES = 2**30
"""About how large a file becomes before the next one is begun."""

_TEXTS = ("normal", "real", "label", "prompt", "sampler", "recipe", "engine")
_NUMBERS = ("run", "index", "steps", "attempts", "regions", "label_pixels")
_SHARES = ("fill", "leak", "contrast")


class Parquet(Format):
    """Columns ``image``, ``mask``, ``type``, ``class`` (0 of good parts), ``width``, ``height`` and the provenance.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._arrow = library("pyarrow", "a Parquet pack needs `pyarrow`", "pack")
        self._parquet = library("pyarrow.parquet", "a Parquet pack needs `pyarrow`", "pack")
        super().__init__(folder, classes)
        self._tables: dict[Side, _Table] = {}

    def add(self, picture: Picture) -> str:
        """Hand over one row."""
        if picture.side not in self._tables:
            self._tables[picture.side] = _Table(self._arrow, self._parquet, self.folder, picture.side)
        width, height = picture.size
        name = f"{picture.name}.png"
        row = {
            "image": {"bytes": picture.image.content, "path": name},
            "mask": {"bytes": picture.mask.content, "path": f"{picture.name}_mask.png"},
            "type": picture.kind or "good",
            "class": self.number(picture.kind),
            "width": width,
            "height": height,
        }
        size = len(picture.image.content) + len(picture.mask.content)
        return self._tables[picture.side].add(row | dict(picture.provenance), size)

    def finish(self) -> None:
        """Write the rows in hand."""
        for table in self._tables.values():
            table.end_file()

    def close(self) -> None:
        """Close what is not finished."""
        for table in self._tables.values():
            table.close()


class _Table:
    """The files of one side."""

    def __init__(self, arrow: Any, parquet: Any, folder: Path, side: Side) -> None:
        self._arrow, self._parquet, self._folder, self._side = arrow, parquet, folder, side
        self._schema = _schema(arrow)
        self._rows: list[Mapping[str, object]] = []
        self._files, self._bytes, self._written = 0, 0, 0
        self._writer: Any = None

    def add(self, row: Mapping[str, object], size: int) -> str:
        name = f"{self._side}-{self._files:05d}.parquet"
        if self._writer is None:
            # PNG does not compress again.
            self._writer = self._parquet.ParquetWriter(
                self._folder / name, self._schema, compression={"image.bytes": "NONE", "mask.bytes": "NONE"}
            )
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= ROW_GROUP_BYTES:
            self._end_group()
        if self._written >= FILE_BYTES:
            self.end_file()
        return name

    def end_file(self) -> None:
        if self._writer is None:
            return
        self._end_group()
        self.close()
        self._written = 0
        self._files += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _end_group(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._written += self._bytes
        self._rows, self._bytes = [], 0


def _schema(arrow: Any) -> Any:
    file = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    return arrow.schema(
        [
            ("image", file),
            ("mask", file),
            ("type", arrow.string()),
            ("class", arrow.int32()),
            ("width", arrow.int32()),
            ("height", arrow.int32()),
            # Up to 2^64 - 1.
            ("seed", arrow.uint64()),
            ("weak", arrow.bool_()),
            *((name, arrow.string()) for name in _TEXTS),
            *((name, arrow.int64()) for name in _NUMBERS),
            *((name, arrow.float64()) for name in _SHARES),
        ]
    )
