"""Memory that is not used any more, given back to the system."""

import ctypes
import gc
import sys


def collect() -> None:
    """Free what only cycles hold, and the pages of the heap that nothing lies in; glibc keeps those (malloc_trim(3)).

    Traced programs and networks are parts of cycles: left to themselves, their weights are still there when the
    next network is read.
    """
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
