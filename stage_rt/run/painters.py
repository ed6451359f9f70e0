"""Who paints the batches of a run: this process, or a crew of others (`stage_rt.run.crew`)."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

from stage_rt.progress import Progress, portion
from stage_rt.run.workers import Painter, Result, Task, begin
from stage_rt.run.writer import WriterThread
from stage_rt.spec import EngineSpec

Keep = Callable[[Task, Iterable[Result]], None]
"""Writes what became of a task; never called twice at once, nor twice for a task."""


class Painters(Protocol):
    """Paints tasks, in any order and anywhere."""

    @property
    def spec(self) -> EngineSpec:
        """What the engine was compiled for."""

    @property
    def stepwise(self) -> bool:
        """Whether ``progress`` is told of every step of the loop, as it is taken."""

    def work(self, tasks: Iterator[Task], total: int, keep: Keep, progress: Progress) -> None:
        """Paint every task and hand its results to ``keep``.

        What was painted when ``progress`` or ``keep`` raises is still kept, if it can be.

        Args:
            tasks: each with something that is wanted.
            total: how many samples all of them want.
            keep: is called on any thread.
            progress: told the share that is painted.
        """


class Alone:
    """Paints on this thread, finishes and writes on another."""

    def __init__(self, engine: Painter) -> None:
        self.engine = engine

    @property
    def spec(self) -> EngineSpec:
        """See `Painters`."""
        return self.engine.spec

    @property
    def stepwise(self) -> bool:
        """See `Painters`."""
        return True

    def work(self, tasks: Iterator[Task], total: int, keep: Keep, progress: Progress) -> None:
        """See `Painters`."""
        done = 0
        with WriterThread() as writer:
            for task in tasks:
                share = portion(progress, done / total, (done + len(task.wanted)) / total)
                finish = begin(self.engine, task, _watched(writer.check, share))
                writer.start(partial(_keep, keep, task, finish))
                done += len(task.wanted)


def _keep(keep: Keep, task: Task, finish: Callable[[], Iterable[Result]]) -> None:
    keep(task, finish())


def _watched(check: Callable[[], None], progress: Progress) -> Progress:
    """A `Progress` that also raises what the writer thread did."""

    def watched(share: float) -> None:
        check()
        progress(share)

    return watched
