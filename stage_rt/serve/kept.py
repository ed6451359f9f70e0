"""Pairs that somebody accepted, as a data set in the MVTec layout that other tools load as it is."""

import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from stage_rt.errors import InputError
from stage_rt.files import write_atomic
from stage_rt.run.writer import defect_type, pair_paths, write_pair
from stage_rt.serve.pairs import Pair

LIST = "accepted.jsonl"
_NUMBERED = re.compile(r"([0-9]{6,})(?:_mask)?\.png")


class Kept:
    """A folder with ``test/<type>``, ``ground_truth/<type>`` and a line a pair in ``accepted.jsonl`` an engine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()

    def put(self, pair: Pair) -> str:
        """Keep a pair that is done; returns its image's path in the folder.

        It has the number after the highest one of its type, whatever was taken out of the list or the folders since.

        Raises:
            InputError: the list was changed and cannot be read any more.
            OSError: the disk is full or failed; nothing of the pair stays.
        """
        assert pair.result is not None
        assert pair.result.image is not None
        request, result = pair.request, pair.result
        folder = self._folder / request.engine
        with self._lock:
            lines = (folder / LIST).read_bytes() if (folder / LIST).exists() else b""
            if lines and not lines.endswith(b"\n"):
                # As editors leave it.
                lines += b"\n"
            # Prompts of one type share its folders.
            number = _next(folder, defect_type(request.prompt), _images(lines, f"{request.engine}/{LIST}"))
            paths = pair_paths(request.prompt, number)
            write_pair(folder, paths, pair.result.image, result.label)
            line = {
                "image": paths[0],
                "mask": paths[1],
                "id": pair.id,
                "prompt": request.prompt,
                "photograph": request.source,
                "seed": request.seed,
                "steps": request.method.steps,
                "fill": round(result.figures.fill, 4) if result.figures else None,
                "leak": round(result.figures.leak, 4) if result.figures else None,
            }
            try:
                write_atomic(folder / LIST, lines + json.dumps(line, ensure_ascii=False).encode() + b"\n")
            except BaseException:
                for path in paths:
                    with suppress(OSError):
                        (folder / path).unlink()
                raise
        return f"{request.engine}/{paths[0]}"


def _images(lines: bytes, name: str) -> list[str]:
    """The images that the lines of the list called ``name`` tell of."""
    images = []
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            images += [str(json.loads(line)["image"])] if line.strip() else []
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"line {number} of the list of accepted pairs `{name}` cannot be read",
                "mend it or take it out",
            ) from error
    return images


def _next(folder: Path, kind: str, images: Sequence[str]) -> int:
    """The number after the highest one of a type, in the list or on disk."""
    names = [name for part, _, name in (image.rpartition("/") for image in images) if part == f"test/{kind}"]
    for part in (folder / "test" / kind, folder / "ground_truth" / kind):
        names += [path.name for path in part.iterdir()] if part.is_dir() else []
    numbers = (int(found[1]) for found in map(_NUMBERED.fullmatch, names) if found)
    return max(numbers, default=-1) + 1
