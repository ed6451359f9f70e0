"""Good photographs in a run's folder, which makes it a data set in MVTec AD's layout: ``train/good``, ``test/good``.

Readers of the layout learn from ``train/good`` and take every PNG below the folder for a sample.
"""

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from stage_rt.errors import ImageError
from stage_rt.files import LONGEST_NAME, identity, staged_for, write_atomic
from stage_rt.images.inputs import read_header, read_image
from stage_rt.run.checks import CHECKS_FILE, Checks
from stage_rt.run.sample import UNCHECKED, readable
from stage_rt.run.writer import png

TRAIN, TEST = "train/good", "test/good"
HELD_OUT = 5
"""One in so many photographs is in ``test/good`` where all were painted into."""

_ORIENTATION = 0x0112
_BIT_DEPTH = 24
"""Where a PNG has it, behind its signature and the sizes."""
_SHORT = 200
"""Bytes that are kept of a name which is too long."""


def place_good(
    folder: Path,
    photographs: Iterable[Path],
    painted: Iterable[Path],
    digests: Mapping[Path, str] = UNCHECKED,
) -> dict[Path, str]:
    """Put ``photographs`` into the run's ``folder``; where each is, from there.

    Those that were ``painted`` into are in ``test/good`` and the others in ``train/good``, so that nothing learns the
    background of a pair; where all were painted into, one in `HELD_OUT` is in ``test/good``. PNG files are linked
    where the file system allows, others are written as the pairs are; what shows its photograph already stays.
    Photographs of the same name from several folders get a number in the order of their paths. Files of one content,
    by the sha256 that ``digests`` has of them, or of one place are the same photograph and stand on one side.

    Raises:
        ImageError: a photograph is not there any more, or damaged.
    """
    names, checks = _names(sorted(set(photographs))), Checks(folder / CHECKS_FILE)
    content = {path: digests.get(path) or str(path.resolve()) for path in names}
    used = {content[path] for path in painted}
    unused = not used.issuperset(content.values())
    numbers: dict[str, int] = {}
    places = {}
    for path, name in sorted(names.items(), key=lambda item: item[1]):
        number = numbers.setdefault(content[path], len(numbers))
        tested = content[path] in used if unused else number % HELD_OUT == 1
        places[path] = f"{TEST if tested else TRAIN}/{name}"
        # A run that grew paints into more of them.
        (folder / (TRAIN if tested else TEST) / name).unlink(missing_ok=True)
        _put(path, folder / places[path], checks)
    checks.save()
    _sweep(folder, set(names.values()))
    return places


def _sweep(folder: Path, own: Container[str]) -> None:
    """Remove what a crash left staged of photographs that have their place now."""
    for side in (TRAIN, TEST):
        for path in (folder / side).glob(".*.tmp"):
            if staged_for(path) in own:
                path.unlink()


def _names(photographs: Sequence[Path]) -> dict[Path, str]:
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in photographs:
        stem = Path(readable(path)).stem
        name = _free(stem, taken)
        if len(name.encode()) > LONGEST_NAME:
            name = _free(stem.encode()[:_SHORT].decode(errors="ignore"), taken)
        taken.add(name)
        names[path] = name
    return names


def _free(stem: str, taken: Container[str]) -> str:
    name, number = f"{stem}.png", 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}.png"
    return name


def _put(path: Path, place: Path, checks: Checks) -> None:
    # A name can have been another photograph's, before a type was added. What is no link is read for that, once.
    question = f"good of {path.absolute()} {identity(path)}"
    as_pairs_are = _as_pairs_are(path)
    if place.exists() and (
        (as_pairs_are and _linked(place, path))
        or checks.of(place, question, lambda place: _shows(place, path))
    ):
        return
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not as_pairs_are:
        grey = read_header(path).grey
        write_atomic(place, png(Image.fromarray(read_image(path)).convert("L" if grey else "RGB")))
        return
    try:
        os.link(path.resolve(), place)
    except OSError:
        # Another file system, or one that has no links.
        write_atomic(place, _content(path))


def _linked(place: Path, path: Path) -> bool:
    with _reading(path):
        return place.samefile(path)


def _content(path: Path) -> bytes:
    with _reading(path):
        return path.read_bytes()


def _shows(place: Path, path: Path) -> bool:
    """Whether the file at ``place`` is what `_put` makes of a photograph."""
    if _as_pairs_are(path):
        content = _content(path)
        return place.stat().st_size == len(content) and place.read_bytes() == content
    try:
        same = _as_pairs_are(place) and read_header(place) == read_header(path)
        return same and np.array_equal(read_image(place), read_image(path))
    except ImageError:
        return False


def _as_pairs_are(path: Path) -> bool:
    """Whether a photograph's file is what a PNG of its pixels would be to whoever reads it."""
    with _reading(path), path.open("rb") as file, Image.open(file) as image:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        if image.format != "PNG" or image.mode not in ("L", "RGB") or turned:
            return False
        # Pillow has no mode for colours of 16 bits, which it reads as 8 of them.
        file.seek(_BIT_DEPTH)
        return file.read(1) != b"\x10"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A block that only reads a photograph, which may have gone since it was checked: nothing of the run's failed.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        yield
    except OSError as failure:
        reason = failure.strerror or "damaged"
        raise ImageError(
            f"`{path}` cannot be read any more ({reason}): put it back and run the same command again"
        ) from failure
