"""Work of one core each, in processes that end with their driver."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch

from stage_rt import signals
from stage_rt.errors import StageError

Job = TypeVar("Job")


def side_by_side(work: Callable[[Job], None], jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    """Do every job in one of so many processes; each job when it is done.

    Small networks on one core each are faster than one on all, and their weights are the same however many there are.
    When the caller wants no more, the jobs in hand are dropped at once.

    Raises:
        StageError: a process was killed.
    """
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare)
    try:
        with signals.held():
            pending = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(pending):
            future.result()
            yield pending[future]
    except BrokenProcessPool:
        raise StageError(
            "a process that trained a segmenter was killed, as happens when memory is short",
            "give the same command again; what was computed is kept",
        ) from None
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's sums on a CPU are other ones on another number of threads; so they are here what they are there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
