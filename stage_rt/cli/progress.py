"""Progress bars on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stage_rt.cli.console import messages


@contextmanager
def progress_bar(total: float, unit: str) -> Iterator[Callable[[float], None]]:
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
                # An engine that takes a batch in two parts counts its steps twice.
                bar.update(bar.task_ids[0], completed=max(done, bar.tasks[0].completed))
            else:
                bar.add_task("", total=total, completed=done)  # type: ignore[arg-type]  # rich shows fractions

        yield update


@contextmanager
def share_bar(text: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr behind ``text``, told the share that is done, 0 to 1; nothing without a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages(), transient=True, disable=not messages().is_terminal) as bar:
        task = bar.add_task(text, total=1)

        def update(share: float) -> None:
            bar.update(task, completed=max(share, bar.tasks[0].completed))

        yield update


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
