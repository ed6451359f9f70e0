"""Progress bars on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from stage_rt.cli.console import messages, orderly_stop
from stage_rt.progress import Progress

LINE_SECONDS = 60.0
"""How often what has no terminal is told of a long piece of work."""


@contextmanager
def watched_bar(total: Callable[[], float], unit: str) -> Iterator[tuple[Progress, Progress]]:
    """For what is checked first, and a `counting_bar` for the work that follows; a signal ends either orderly.

    ``total`` is asked for when that work begins.
    """
    with orderly_stop() as check, ExitStack() as shown:
        share = shown.enter_context(_share_bar("checking the files"))
        bar: list[Progress] = []

        def work(done: float) -> None:
            if not bar:
                # Two bars at once would draw over each other.
                shown.close()
                bar.append(shown.enter_context(counting_bar(total(), unit)))
            bar[0](done)

        yield _checked(check, share), _checked(check, work)


@contextmanager
def watched_share(text: str) -> Iterator[Progress]:
    """A bar on stderr behind ``text``, around work that a signal ends in an orderly way."""
    with orderly_stop() as check, _share_bar(text) as share:
        yield _checked(check, share)


@contextmanager
def _share_bar(text: str) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with _bar(*columns) as bar:
        task = bar.add_task(text, total=1)
        yield lambda share: bar.update(task, completed=share)


@contextmanager
def watched_stages(unit: str) -> Iterator[Callable[[str, int, int, float | None], None]]:
    """What is told ``stage, step, steps, value`` shows a bar a stage, with the time left and the value, a ``unit``.

    A value may be None. Without a terminal, a line a minute. A signal ends the work after the step.
    """
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        _Done(""),
        TimeRemainingColumn(compact=True),
    )
    with orderly_stop() as check, _bar(*columns, TextColumn("{task.fields[value]}")) as bar:
        stages: dict[str, TaskID] = {}
        due = _every_line()

        def show(stage: str, step: int, steps: int, value: float | None) -> None:
            text = "" if value is None else f"{unit} {value:.4f}"
            if stage not in stages:
                # What an earlier call did does not count for the speed.
                stages[stage] = bar.add_task(stage, total=steps, completed=step, value=text)
            bar.update(stages[stage], completed=step, value=text)
            if bar.disable and due(now=step == steps):
                line = " ".join(filter(None, (stage, f"{step}/{steps}", text)))
                messages().print(line + _left(bar.tasks[stages[stage]]))
            check()

        yield show


@contextmanager
def counting_bar(total: float, unit: str) -> Iterator[Progress]:
    """A bar on stderr that shows a share as a part of ``total``, with ``unit``/s and the time left.

    Without a terminal, a line a minute. What it is told first does not count for the speed.
    """
    columns = (BarColumn(), _Done(unit), _Rate(unit), TimeRemainingColumn(compact=True))
    with _bar(*columns) as bar:
        due = _every_line()

        def show(share: float) -> None:
            if not bar.tasks:
                bar.add_task("", total=total, completed=total * share)  # type: ignore[arg-type]  # rich shows fractions
            bar.update(bar.task_ids[0], completed=total * share)
            if bar.disable and due():
                messages().print(f"{int(total * share)}/{total:.0f} {unit}{_left(bar.tasks[0])}")

        yield show


def _every_line() -> Callable[..., bool]:
    """What says whether `LINE_SECONDS` have gone by since it last said so; it says so when told to ``now``."""
    told = time.monotonic()

    def due(*, now: bool = False) -> bool:
        nonlocal told
        if not now and time.monotonic() - told <= LINE_SECONDS:
            return False
        told = time.monotonic()
        return True

    return due


def _left(task: Task) -> str:
    """The time a task will still take, for a line; nothing while that is not known."""
    return f", {task.time_remaining / 60:.0f} min left" if task.time_remaining else ""


def _bar(*columns: ProgressColumn) -> Bar:
    return Bar(
        *columns,
        console=messages(),
        transient=True,
        disable=not messages().is_terminal,
        speed_estimate_period=120,
    )


def _checked(check: Callable[[], None], progress: Progress) -> Progress:
    def checked(share: float) -> None:
        check()
        progress(share)

    return checked


class _Done(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """``3/20 pairs``."""
        return Text(f"{int(task.completed)}/{task.total:.0f} {self._unit}".rstrip())


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """``0.51 pairs/s``."""
        return Text(f"{task.speed:.2g} {self._unit}/s" if task.speed else "", style="cyan")
