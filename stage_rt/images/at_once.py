"""Work on many photographs by the threads of all cores: decoding and transforms hold no lock of the interpreter."""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stage_rt.machine import cores
from stage_rt.progress import Progress, counted

Item = TypeVar("Item")
Made = TypeVar("Made")


def at_once(make: Callable[[Item], Made], items: Collection[Item], progress: Progress) -> list[Made]:
    """What ``make`` gives for each of ``items``, in their order; ``progress`` is told the share that is made.

    Raises:
        Exception: the first that ``make`` or ``progress`` raised; the rest is not waited for.
    """
    with ThreadPoolExecutor(cores(), "stage-rt-photographs") as pool:
        coming = [pool.submit(make, item) for item in items]
        try:
            return [each.result() for each in counted(coming, progress)]
        finally:
            pool.shutdown(cancel_futures=True)
