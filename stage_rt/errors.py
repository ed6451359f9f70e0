"""The errors a user can meet; each says in one sentence what is wrong and how to fix it.

::

    StageError                    exit 3, something broke
    ├── InputError                exit 1, what the user handed in is wrong
    │   ├── ImageError            a photograph cannot be used
    │   ├── MaskError             a mask cannot be used
    │   ├── DatasetError          a folder of images or masks cannot be used
    │   ├── PromptError           a prompt name the model does not know
    │   ├── ModelError            a model folder is incomplete or inconsistent
    │   ├── CheckpointError       a file to import is not what it has to be, or is not safe
    │   ├── GraphsError           a graphs folder is incomplete, changed or inconsistent
    │   ├── EngineError           an engine folder is incomplete, changed or not for this machine
    │   ├── DeviceError           no GPU can be used here, or not the one that is needed
    │   ├── RunError              an output folder holds another run or was damaged
    │   └── MissingExtraError     an optional dependency is not installed
    ├── BackendError              exit 3, the inference library failed
    │   ├── DeviceMemoryError     the GPU's memory is full
    │   └── DeviceLostError       the GPU answers no call of this process any more
    ├── ParityError               exit 3, a converted network disagrees with its source
    └── FailedSamplesError        exit 4, the run finished but some samples failed

A message has no full stop after its one sentence and quotes paths and commands in backticks. Whoever says more of an
error, or the same in another place, finds what is wrong in its ``problem`` and the way out in its ``remedy``.
"""

import traceback
from enum import IntEnum
from pathlib import Path
from typing import ClassVar

_PACKAGE = Path(__file__).parent
_PLACE = "in "


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    INPUT = 1
    USAGE = 2
    BROKEN = 3
    FAILED_SAMPLES = 4


class StageError(Exception):
    """Base of every error stage-rt raises on purpose.

    ``problem`` is what is wrong and ``remedy`` what to do about it; None where the problem's sentence says it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.BROKEN

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return self.problem if self.remedy is None else f"{self.problem}: {self.remedy}"


class InputError(StageError):
    """What the user handed in is wrong."""

    exit_code = ExitCode.INPUT


class ImageError(InputError):
    """A photograph is missing, unreadable, too large or of a refused format."""


class MaskError(InputError):
    """A mask is missing, unreadable, empty or does not fit its image."""


class DatasetError(InputError):
    """A folder of images or masks is missing, empty or not in a known layout."""


class PromptError(InputError):
    """A prompt name the model was not trained for."""


class ModelError(InputError):
    """A model folder is incomplete or inconsistent."""


class CheckpointError(InputError):
    """A file to import is damaged, not safe, or not what it has to be."""


class GraphsError(InputError):
    """A graphs folder is incomplete, changed or inconsistent."""


class EngineError(InputError):
    """An engine folder is incomplete, changed or made for another machine."""


class DeviceError(InputError):
    """No GPU can be used here, or not the one that is needed."""


class RunError(InputError):
    """An output folder holds another run or was damaged."""


class MissingExtraError(InputError):
    """An optional dependency is not installed."""


class BackendError(StageError):
    """The inference library failed while running a graph."""


class DeviceMemoryError(BackendError):
    """The GPU's memory is full; a smaller batch may fit."""


class DeviceLostError(BackendError):
    """The GPU answers no call of this process any more; another process may use it."""


class ParityError(StageError):
    """A converted network disagrees with its source beyond the tolerance of its dtype."""


class FailedSamplesError(StageError):
    """The run finished, but some samples came out non-finite and were not written."""

    exit_code = ExitCode.FAILED_SAMPLES


def printable(text: str) -> str:
    """``text`` on one line without control characters: names of files and in files may hold what moves a cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def amount(number: int, noun: str) -> str:
    """``1 pair``, ``2 pairs``: a number of what takes an s where it is not one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error: BaseException) -> str:
    """What a library's own error says in its first line, or its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def unforeseen(error: BaseException) -> str:
    """One line on an error that nobody foresaw: its type, what it says and the line of ours that it comes from.

    The line is noted with the error, which several may share that forget its frames.
    """
    place = next((note for note in getattr(error, "__notes__", ()) if note.startswith(_PLACE)), None)
    if place is None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
        if not ours:
            return f"{type(error).__name__}: {first_line(error)}"
        place = f"{_PLACE}`{Path(ours[-1].filename).relative_to(_PACKAGE)}`, line {ours[-1].lineno}"
        error.add_note(place)
    return f"{type(error).__name__}: {first_line(error)} ({place})"
