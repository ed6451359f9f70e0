"""Workers that are processes of this machine, each with its share of the cores or with a GPU of its own."""

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from stage_rt import signals
from stage_rt.errors import BackendError
from stage_rt.run.crew import Done, Event, Failed, Load, Lost, Noticed, Ready, Share, fault
from stage_rt.run.plan import RULES
from stage_rt.run.workers import Result, Task, begin
from stage_rt.run.writer import WriterThread

SHARES_PER_SECOND = 2.0
LINGER = 5.0
"""Seconds that a worker has between closing its pipe and its end."""


@dataclass(frozen=True)
class Seat:
    """What a worker may use: cores by their numbers, all if there are none, and a GPU as CUDA is told of it."""

    cores: tuple[int, ...] = ()
    device: str | None = None

    @property
    def name(self) -> str | None:
        """The GPU, if it has one, as a sentence names it."""
        return f"GPU {self.device}" if self.device and self.device.isdecimal() else self.device


class Processes:
    """A `stage_rt.run.crew.Transport`: a process for every seat, and a pipe to each.

    They are started afresh, not forked, as neither threads nor devices outlive a fork. The seat of one whose own
    device failed stays empty. Signals of the terminal are the driver's: a worker ends when it is told to, or when the
    driver is no more.
    """

    def __init__(self, load: Load, seats: Sequence[Seat]) -> None:
        self._load, self._free = load, list(seats)
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[int, tuple[BaseProcess, Connection, Seat]] = {}
        self._sick: set[int] = set()

    def start(self, worker: int) -> None:
        """See `stage_rt.run.crew.Transport`."""
        seat = self._free.pop(0)
        mine, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(worker, theirs, self._load, seat),
            name=f"stage-rt-worker-{worker}",
            daemon=True,
        )
        try:
            with signals.held():
                process.start()
        except OSError as failure:
            raise BackendError(
                f"a worker cannot be started ({failure.strerror})", "give fewer `--workers` or `--devices`"
            ) from failure
        theirs.close()
        self._running[worker] = process, mine, seat

    def give(self, worker: int, number: int, task: Task) -> None:
        """See `stage_rt.run.crew.Transport`."""
        with suppress(OSError):
            self._running[worker][1].send((number, task))

    def events(self, seconds: float) -> Iterator[Event]:
        """See `stage_rt.run.crew.Transport`."""
        worker_of = {connection: worker for worker, (_, connection, _) in self._running.items()}
        for connection in wait(list(worker_of), seconds):
            worker = worker_of[connection]  # type: ignore[index]  # one of those that were given
            try:
                event = self._running[worker][1].recv()
            except (EOFError, OSError):
                event = Lost(worker, self._ended(worker))
            if isinstance(event, Failed) and event.local:
                self._sick.add(worker)
            yield event

    def dismiss(self, seconds: float) -> Iterator[Event]:
        """See `stage_rt.run.crew.Transport`."""
        for _, connection, _ in self._running.values():
            with suppress(OSError):
                connection.send(None)
        deadline = time.monotonic() + seconds
        while self._running and (left := deadline - time.monotonic()) > 0:
            yield from self.events(left)
        self.close()

    def close(self) -> None:
        """See `stage_rt.run.crew.Transport`."""
        for process, _, _ in self._running.values():
            process.kill()
        for worker in list(self._running):
            self._ended(worker)

    def _ended(self, worker: int) -> str:
        """Let go of a worker that is gone; how it ended, in words."""
        process, connection, seat = self._running.pop(worker)
        connection.close()
        process.join(LINGER)
        process.kill()
        process.join()
        code = process.exitcode or 0
        process.close()
        if worker not in self._sick:
            self._free.append(seat)
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"{how} on {seat.name}" if seat.name else how


def seats(workers: int) -> list[Seat]:
    """Seats for so many workers, among whom the cores of this process are shared out."""
    if not hasattr(os, "sched_getaffinity"):
        return [Seat()] * workers
    cores = sorted(os.sched_getaffinity(0))
    bounds = [len(cores) * n // workers for n in range(workers + 1)]
    return [
        Seat(tuple(cores[start:stop]) or (cores[start % len(cores)],)) for start, stop in pairwise(bounds)
    ]


class _Dismissed(BaseException):
    """The driver wants no more."""


def _serve(worker: int, connection: Connection, load: Load, seat: Seat) -> None:
    """What a worker does: load, then paint what it is given, until it is told to end."""
    post = _Post(worker, connection)
    try:
        if seat.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = seat.device
        engine = load(lambda notice: post.send(Noticed(worker, notice)))
        if seat.cores:
            # Only now: an engine cuts batches by the cores it finds, and shall cut them as it does alone.
            os.sched_setaffinity(0, seat.cores)
        post.send(Ready(worker, engine.spec.graphs_fingerprint, RULES))
        with suppress(_Dismissed), WriterThread() as writer:
            while (given := post.next()) is not None:
                number, task = given
                finish = begin(engine, task, partial(_told, post, writer.check))
                writer.start(partial(_hand_in, post, number, finish))
        # What it compiled is kept; nobody waits for more of it.
        with suppress(Exception):
            engine.close()
    except Exception as error:
        post.send(Failed(worker, fault(error), seat.name))
    # The exit handlers of inference libraries are not waited for.
    connection.close()
    os._exit(0)


class _Post:
    """A worker's end of the pipe: a thread takes tasks from it, and ends the process when the driver is gone."""

    def __init__(self, worker: int, connection: Connection) -> None:
        self.worker, self._connection = worker, connection
        self._sending = threading.Lock()
        self._tasks: queue.SimpleQueue[tuple[int, Task] | None] = queue.SimpleQueue()
        self.dismissed = False
        self.last_share = 0.0
        threading.Thread(target=self._receive, daemon=True).start()

    def next(self) -> tuple[int, Task] | None:
        """The next task; None when there will be no more."""
        return self._tasks.get()

    def send(self, event: Event) -> None:
        """Tell the driver something, from any thread."""
        with self._sending, suppress(OSError):
            self._connection.send(event)

    def _receive(self) -> None:
        try:
            while (given := self._connection.recv()) is not None:
                self._tasks.put(given)
        except (EOFError, OSError):
            os._exit(1)
        self.dismissed = True
        self._tasks.put(None)


def _hand_in(post: _Post, number: int, finish: Callable[[], Iterator[Result]]) -> None:
    post.send(Done(post.worker, number, list(finish())))


def _told(post: _Post, check: Callable[[], None], share: float) -> None:
    """A `Progress` that tells the driver now and then, and ends when the driver wants no more."""
    check()
    if post.dismissed:
        raise _Dismissed
    if time.monotonic() - post.last_share > 1 / SHARES_PER_SECOND:
        post.last_share = time.monotonic()
        post.send(Share(post.worker, share))
