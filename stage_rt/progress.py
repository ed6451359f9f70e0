"""How far a piece of work has come: one number from 0 to 1, and the piece's place in a larger one."""

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

Item = TypeVar("Item")

Progress = Callable[[float], None]
"""Told the share of the work that is done, rising from 0 to 1; it may raise to end the work."""


def silent(share: float) -> None:
    """A `Progress` that nobody listens to."""


def portion(progress: Progress, start: float, stop: float) -> Progress:
    """The `Progress` of a piece that takes ``progress`` from the share ``start`` to the share ``stop``."""
    return lambda share: progress(start + (stop - start) * share)


def counted(items: Collection[Item], progress: Progress) -> Iterator[Item]:
    """Each of ``items``; ``progress`` is told before every one and after the last."""
    for done, item in enumerate(items):
        progress(done / len(items))
        yield item
    progress(1.0)
