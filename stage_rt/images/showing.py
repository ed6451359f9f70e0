"""What the photographs of a data set show: the same defect, a part that has a label elsewhere, the same picture."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stage_rt import __version__
from stage_rt.files import cache_folder, identity, recall, remember, sha256
from stage_rt.images import twins
from stage_rt.images.at_once import at_once
from stage_rt.images.inputs import pixels_digest, read_image
from stage_rt.images.layouts import Dataset
from stage_rt.images.masks import labelled
from stage_rt.progress import Progress, counted, portion, silent


def defects_of(dataset: Dataset, progress: Progress = silent) -> dict[str, NDArray[np.intp]]:
    """Which defect each photograph of every type shows, numbered over all types; one photograph shows one defect, in
    whatever format it was saved."""
    shown, first = {}, 0
    known: dict[str, int] = {}
    same: list[tuple[int, int]] = []
    kinds = len(dataset.defects)
    for place, (kind, pairs) in enumerate(dataset.defects.items()):
        part = portion(progress, place / kinds, (place + 1) / kinds)
        digests: list[str] = []
        read = _noted(counted(pairs, portion(part, 0.0, 0.3)), digests)
        shown[kind] = first + twins.defects(read, portion(part, 0.3, 1.0))
        for digest, number in zip(digests, shown[kind].tolist(), strict=True):
            same.append((known.setdefault(digest, number), number))
        first = int(shown[kind].max()) + 1
    one, other = np.array(same).T
    joined = sparse.coo_array((np.ones(len(same)), (one, other)), shape=(first, first))
    numbers = sparse.csgraph.connected_components(joined, directed=False)[1].astype(np.intp)
    return {kind: numbers[each] for kind, each in shown.items()}


def _noted(
    pairs: Iterable[tuple[Path, Path]], digests: list[str]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    for photo, mask in pairs:
        pixels, label = labelled(photo, mask)
        digests.append(pixels_digest(pixels))
        yield pixels, label


def same_picture(
    tested: Collection[Path], learned: Collection[Path], progress: Progress = silent
) -> dict[Path, Path]:
    """Those of ``tested`` that are one of ``learned``, and which, whatever they are called and however saved.

    ``progress`` is told the share of the photographs that was read.
    """
    digests = at_once(picture_digest, [*learned, *tested], progress)
    known: dict[str, Path] = {}
    for path, digest in zip(learned, digests, strict=False):
        known.setdefault(digest, path)
    read = zip(tested, digests[len(learned) :], strict=True)
    return {path: known[digest] for path, digest in read if digest in known}


def picture_digest(path: Path) -> str:
    """Digest of a photograph's pixels, which is decoded once for as long as its file is as it was.

    Raises:
        ImageError: the file is unusable.
    """
    return _picture_digest(path, identity(path))


@lru_cache(maxsize=100_000)
def _picture_digest(path: Path, seen: tuple[int, int, int] | None) -> str:
    return pixels_digest(read_image(path))


def showing_a_defect(
    photographs: Collection[Path], dataset: Dataset, progress: Progress = silent
) -> list[Path]:
    """Those of the good ``photographs`` that show a part of which the data set has a photograph with a label.

    None of them where that is all: then these are photographs that show no single part. To compare thousands takes
    minutes, and a training, its evaluations and a pack ask it of the same files: the user's cache keeps the answer.
    """
    pairs = [pair for defects in dataset.defects.values() for pair in defects]
    kept = _kept_answer([photographs, chain.from_iterable(pairs)], portion(progress, 0.0, 0.1))
    content = recall(kept) if kept else None
    if content is not None:
        numbers = json.loads(content)
        progress(1.0)
    else:
        numbers = _showing(photographs, pairs, portion(progress, 0.1, 1.0))
        with suppress(OSError):
            if kept:
                remember(kept, json.dumps(numbers).encode())
    every = list(photographs)
    return [every[number] for number in numbers] if len(numbers) < len(every) else []


def _showing(
    photographs: Collection[Path], pairs: Sequence[tuple[Path, Path]], progress: Progress
) -> list[int]:
    """Which of the photographs show the part of one of the pairs."""
    known = (labelled(photo, mask) for photo, mask in counted(pairs, portion(progress, 0.0, 0.2)))
    read = (read_image(path) for path in counted(photographs, portion(progress, 0.2, 0.6)))
    shown = twins.showing(read, known, portion(progress, 0.6, 1.0))
    return [number for number, parts in enumerate(shown) if parts.any()]


def _kept_answer(asked: Iterable[Iterable[Path]], progress: Progress) -> Path | None:
    """Where the answer about files is kept: by their contents, and by the code that compares them. Nowhere where one
    cannot be read, which whoever opens it tells."""
    groups = [list(paths) for paths in asked]
    files = [path for paths in groups for path in paths]
    try:
        contents = [sha256(path) for path in counted(files, progress)]
    except OSError:
        return None
    told = [__version__, sha256(Path(twins.__file__)), [len(paths) for paths in groups], contents]
    return cache_folder() / "showing" / hashlib.sha256(json.dumps(told).encode()).hexdigest()
