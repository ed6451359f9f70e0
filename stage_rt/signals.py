"""The signals that end a command: Ctrl-C, a request to end, and a terminal that is gone."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

# By name, since Windows has no hang-up and is still to be told that nothing runs there.
ENDING = tuple(one for one in signal.Signals if one.name in ("SIGHUP", "SIGINT", "SIGTERM"))


@contextmanager
def held() -> Iterator[None]:
    """Meanwhile these signals wait; a process that is started never gets them."""
    # It lets the signals through when it is started, which the first process would do.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
