"""Progress bars on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from stage_rt.cli.console import messages, orderly_stop
from stage_rt.progress import Progress


@contextmanager
def watched_bar(total: float, unit: str) -> Iterator[Progress]:
    """`counting_bar` around work that a signal ends in an orderly way."""
    with orderly_stop() as check, counting_bar(total, unit) as show:
        yield _checked(check, show)


@contextmanager
def watched_share(text: str) -> Iterator[Progress]:
    """A bar on stderr behind ``text``, around work that a signal ends in an orderly way."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with orderly_stop() as check, _bar(*columns) as bar:
        task = bar.add_task(text, total=1)
        yield _checked(check, lambda share: bar.update(task, completed=share))


@contextmanager
def counting_bar(total: float, unit: str) -> Iterator[Progress]:
    """A bar on stderr that shows a share as a part of ``total``, with ``unit``/s and the time left.

    Nothing without a terminal. What it is told first does not count for the speed.
    """
    columns = (BarColumn(), _Done(unit), _Rate(unit), TimeRemainingColumn(compact=True))
    with _bar(*columns) as bar:

        def show(share: float) -> None:
            if not bar.tasks:
                bar.add_task("", total=total, completed=total * share)  # type: ignore[arg-type]  # rich shows fractions
            bar.update(bar.task_ids[0], completed=total * share)

        yield show


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
        return Text(f"{int(task.completed)}/{task.total:.0f} {self._unit}")


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """``0.51 pairs/s``."""
        return Text(f"{task.speed:.2g} {self._unit}/s" if task.speed else "", style="cyan")
