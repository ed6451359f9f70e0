"""What a long measurement has found so far, kept until it comes to its end."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from stage_rt import __version__
from stage_rt.files import cache_folder, recall, remember

Found = TypeVar("Found")


class HalfDone:
    """Values of JSON by what was asked, in a file for each measurement that ``decided`` tells all about.

    A disk that is full or read-only costs only what a measurement that is stopped has to do again.
    """

    def __init__(self, name: str, decided: object) -> None:
        told = json.dumps([__version__, decided], sort_keys=True).encode()
        self._path = cache_folder() / name / hashlib.sha256(told).hexdigest()
        content = recall(self._path)
        self._found: dict[str, object] = {} if content is None else json.loads(content)

    def of(self, question: str, find: Callable[[], Found]) -> Found:
        """What ``find`` gives, or gave before this measurement was stopped."""
        if question not in self._found:
            self._found[question] = find()
            with suppress(OSError):
                remember(self._path, json.dumps(self._found).encode())
        return self._found[question]  # type: ignore[return-value]  # as it was found

    def end(self) -> None:
        """Forget it."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
