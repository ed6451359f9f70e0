"""What a forked child must never destroy: graphs whose threads stayed with the parent, and would be waited for."""

import ctypes
import os
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet


class Holder(Protocol):
    """Whoever has objects of a library that a child must leave alone."""

    def held(self) -> Iterable[object]:
        """The objects that are there now."""


_HOLDERS: WeakSet[Holder] = WeakSet()


def protect(holder: Holder) -> None:
    """Let no child that is forked from now on destroy what ``holder`` holds."""
    _HOLDERS.add(holder)


def _abandon() -> None:
    for holder in _HOLDERS:
        for thing in holder.held():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)
