"""What the commands share: messages and progress on stderr, data on stdout, an orderly end on a signal."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from stage_rt.errors import MissingExtraError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The user or the system asked the process to end; no `Exception`, so that no handler takes it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


@cache
def messages() -> Console:
    """The console on stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def message(kind: str, text: str) -> None:
    """One sentence on stderr behind its kind: ``error``, ``notice``, ``stopped``."""
    messages().print(Text.assemble((f"{kind}: ", "bold red" if kind == "error" else "bold yellow"), text))


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the imports of a command that needs the optional dependencies ``name``.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("stage_rt"):
            raise
        raise MissingExtraError(
            f"this command needs `{missing.name}`, which is not installed: `pip install 'stage-rt[{name}]'`"
        ) from missing


def result(text: str, fields: Mapping[str, object], *, as_json: bool) -> None:
    """A command's result on stdout: ``fields`` as one JSON object, or ``text``."""
    print(json.dumps(fields, ensure_ascii=False) if as_json else text, flush=True)


@contextmanager
def progress(total: float, unit: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr with ``unit``/s and the time left; nothing without a terminal.

    The function handed out is told how much is done; what it is told first does not count for the speed.
    """
    columns = (BarColumn(), _Done(unit), _Rate(unit), TimeRemainingColumn(compact=True))
    with Progress(
        *columns,
        console=messages(),
        transient=True,
        disable=not messages().is_terminal,
        speed_estimate_period=120,
    ) as bar:

        def update(done: float) -> None:
            if bar.tasks:
                bar.update(bar.task_ids[0], completed=done)
            else:
                bar.add_task("", total=total, completed=done)  # type: ignore[arg-type]  # rich shows fractions

        yield update


@contextmanager
def orderly_stop() -> Iterator[Callable[[], None]]:
    """Signals set a mark instead of interrupting; the function handed out raises `Stopped` once it is set.

    A second signal ends the process at once, even inside a long call of an inference library: Python runs its
    own handlers only between bytecodes, so a thread listens instead.
    """
    told: list[int] = []
    inbox, outbox = os.pipe()
    os.set_blocking(outbox, False)

    def listen() -> None:
        while signum := os.read(inbox, 1):
            if told:
                messages().show_cursor()
                os._exit(128 + signum[0])
            told.append(signum[0])

    def check() -> None:
        if told:
            raise Stopped(told[0])

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    wakeup = signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
    handlers = {signum: signal.signal(signum, _ignore) for signum in SIGNALS}
    try:
        yield check
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(outbox)
        listener.join()
        os.close(inbox)


def raise_stopped(signum: int, frame: FrameType | None) -> None:
    """A signal handler: `Stopped` at the next bytecode."""
    raise Stopped(signum)


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Python writes to the wakeup descriptor only for signals that have a handler of its own."""


class _Done(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """``3/20 pairs``."""
        return Text(f"{int(task.completed)}/{task.total:.0f} {self._unit}")


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """``0.51 pairs/s``."""
        return Text(f"{task.speed:.2g} {self._unit}/s" if task.speed else "", style="cyan")
