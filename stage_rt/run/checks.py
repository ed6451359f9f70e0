"""What was found out about files, remembered for as long as they stay the same: nothing is decoded at every start."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stage_rt import __version__
from stage_rt.files import identity, recall, remember

Answer = TypeVar("Answer")

CHECKS_FILE = ".checks"
SETTLED = 2.0
"""Seconds that a file has to be left alone for: one that changes within a tick of the clock looks unchanged."""

Identity = tuple[int, int, int]


class Checks:
    """Answers about files, kept in a file of their own; a file is the same if its size, time and inode are.

    Without a ``path`` they last as long as the object.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._answers: dict[str, tuple[Identity, object]] = {}
        self._changed = False
        content = recall(path) if path else None
        kept = json.loads(content) if content is not None else {}
        if kept.get("by") == __version__:
            self._answers = kept["answers"]

    def of(self, file: Path, question: str, find: Callable[[Path], Answer]) -> Answer:
        """What ``find`` says of a file, or said when it was as it is now.

        The answer is a value of JSON. What ``find`` raises is not remembered.
        """
        key = f"{question}\0{file.absolute()}"
        before = identity(file)
        known = self._answers.get(key)
        if before is not None and known is not None and tuple(known[0]) == before:
            return known[1]  # type: ignore[return-value]  # as it was found
        began = time.time()
        answer = find(file)
        if before is not None and before == identity(file) and before[1] < (began - SETTLED) * 1e9:
            self._answers[key] = (before, answer)
            self._changed = True
        return answer

    def save(self) -> None:
        """Keep the answers for the next process."""
        if self._path is not None and self._changed:
            kept = {"by": __version__, "answers": self._answers}
            remember(self._path, json.dumps(kept, separators=(",", ":")).encode())
            self._changed = False
