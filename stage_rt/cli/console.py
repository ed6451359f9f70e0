"""What the commands share: messages on stderr, data on stdout, an orderly end on a signal."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from stage_rt.errors import MissingExtraError, first_line, printable
from stage_rt.signals import ENDING

if TYPE_CHECKING:
    from rich.console import Console


class Stopped(BaseException):
    """The user or the system asked the process to end; no `Exception`, so that no handler takes it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


def caught() -> list[signal.Signals]:
    """Those of `ENDING` that end this command: `nohup` starts it with hang-ups ignored, which they stay."""
    hung_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signum for signum in ENDING if hung_up or signum != signal.SIGHUP]


@cache
def messages() -> "Console":
    """The console on stderr; whether anybody can read it decides nothing."""
    from rich.console import Console

    class Messages(Console):
        def _check_buffer(self) -> None:
            try:
                super()._check_buffer()
            except OSError:
                self.on_broken_pipe()

        def on_broken_pipe(self) -> None:
            # Whoever read it is gone, or its disk is full: rich would end the process and take its stdout along.
            self.quiet = True
            _to_nowhere(sys.stderr)

    return Messages(stderr=True, highlight=False, soft_wrap=True)


def message(kind: str, text: str) -> None:
    """One sentence on stderr behind its kind: ``error``, ``notice``, ``stopped``."""
    from rich.text import Text

    style = "bold red" if kind == "error" else "bold yellow"
    messages().print(Text.assemble((f"{kind}: ", style), printable(text)))


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the imports of a command that needs the optional dependencies ``name``.

    Raises:
        MissingExtraError: one of them is not installed, or what is installed cannot be loaded.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] == "stage_rt":
            raise
        raise MissingExtraError(
            f"this command needs `{missing.name}`, which is not installed: `pip install 'stage-rt[{name}]'`"
        ) from missing
    except ImportError as failed:
        if failed.name is not None and failed.name.partition(".")[0] == "stage_rt":
            raise
        raise MissingExtraError(
            f"a library that this command needs is installed and cannot be loaded ({first_line(failed)}): install "
            "it again"
        ) from failed


def result(text: str, fields: Mapping[str, object], *, as_json: bool) -> None:
    """A command's result on stdout: ``fields`` as one JSON object, in ASCII as its encoding may be, or ``text``."""
    shown = [json.dumps(fields)] if as_json else map(printable, text.split("\n"))
    try:
        print("\n".join(shown), flush=True)
    except BrokenPipeError:
        # Whoever read it has enough.
        _to_nowhere(sys.stdout)


def _to_nowhere(stream: TextIO) -> None:
    """Let nobody have what is written: the interpreter would try once more to flush the rest when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def orderly_stop() -> Iterator[Callable[[], None]]:
    """Signals set a mark instead of interrupting; the function handed out raises `Stopped` once it is set.

    A second signal ends the process at once, even inside a long call of an inference library: Python runs its
    own handlers only between bytecodes, so a thread listens instead. A hang-up is never the second one, as both the
    system and the shell tell of a terminal that is gone.
    """
    received: list[int] = []
    inbox, outbox = os.pipe()
    os.set_blocking(outbox, False)

    def listen() -> None:
        while signum := os.read(inbox, 1):
            if received and signum[0] != signal.SIGHUP:
                messages().show_cursor()
                os._exit(128 + signum[0])
            received.append(signum[0])

    def check() -> None:
        if received:
            raise Stopped(received[0])

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    wakeup = signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
    handlers = {signum: signal.signal(signum, _ignore) for signum in caught()}
    try:
        yield check
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        if signal.SIGHUP in received:
            _hung_up()
        signal.set_wakeup_fd(wakeup)
        os.close(outbox)
        listener.join()
        os.close(inbox)


def raise_stopped(signum: int, frame: FrameType | None) -> None:
    """A signal handler: `Stopped` at the next bytecode."""
    if signum == signal.SIGHUP:
        _hung_up()
    raise Stopped(signum)


def _hung_up() -> None:
    """Let what is to be done at the end be done: the hang-up is told of once more."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Python writes to the wakeup descriptor only for signals that have a handler of its own."""
