"""Workers that are actors of a Ray cluster, on machines that see the same folders: the only importer of Ray.

Ray Core alone: its actors run a task at most once and say when they are lost; Ray Data runs tasks again by itself.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from stage_rt import extras
from stage_rt.errors import DeviceError, StageError, first_line
from stage_rt.progress import silent
from stage_rt.run.crew import Done, Event, Failed, Load, Lost, Noticed, Ready, fault
from stage_rt.run.plan import RULES
from stage_rt.run.workers import Result, Task, begin
from stage_rt.signals import ENDING
from stage_rt.strokes import Painter

Answer = TypeVar("Answer")

LIBRARY = "ray"
LOCAL = "local"
"""The address of a cluster that is started on this machine for one run, and ends with it."""

LOOPBACK = "127.0.0.1"
"""Where such a cluster listens."""


class Cluster:
    """A `stage_rt.run.crew.Transport`. An actor waits for a place in the cluster, so a node may join at any time.

    Args:
        load: opens the engine on a node.
        address: of the cluster, ``auto`` for the one that runs here, or `LOCAL`.
        gpu: whether every actor needs a GPU of its own.

    Raises:
        MissingExtraError: Ray is not installed.
        DeviceError: no cluster answers at ``address``.
    """

    def __init__(self, load: Load, address: str, *, gpu: bool) -> None:
        self._ray: Any = extras.library(LIBRARY, "`--ray` needs Ray", "ray")
        self._join(address)
        kind = self._ray.remote(
            num_cpus=1, num_gpus=int(gpu), max_restarts=0, max_concurrency=2, scheduling_strategy="SPREAD"
        )
        self._actor, self._load = kind(_Hand), load
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, int | None]] = {}

    def start(self, worker: int) -> None:
        """See `stage_rt.run.crew.Transport`."""
        self._actors[worker] = self._actor.remote(self._load)
        self._calls[self._actors[worker].load.remote()] = worker, None

    def give(self, worker: int, number: int, task: Task) -> None:
        """See `stage_rt.run.crew.Transport`."""
        self._calls[self._actors[worker].paint.remote(task)] = worker, number

    def events(self, seconds: float) -> Iterator[Event]:
        """See `stage_rt.run.crew.Transport`."""
        if not self._calls:
            time.sleep(seconds)
            return
        [*answered], _ = self._ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        for call in answered:
            yield from self._answer(call, *self._calls.pop(call))

    def dismiss(self, seconds: float) -> Iterator[Event]:
        """See `stage_rt.run.crew.Transport`; what is being painted cannot be told to end, the rest is kept."""
        while self._calls:
            answered, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=0)
            if not answered:
                break
            yield from self._answer(answered[0], *self._calls.pop(answered[0]))
        self._end()

    def close(self) -> None:
        """See `stage_rt.run.crew.Transport`."""
        self._end()
        self._ray.shutdown()

    def _end(self) -> None:
        self._calls.clear()
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()

    def _answer(self, call: Any, worker: int, number: int | None) -> Iterator[Event]:
        try:
            answer, notices = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as failure:
            yield Failed(worker, fault(failure.cause))
            return
        except self._ray.exceptions.RayError as loss:
            self._calls = {call: of for call, of in self._calls.items() if of[0] != worker}
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(self._actors.pop(worker))
            yield Lost(worker, type(loss).__name__)
            return
        for notice in notices:
            yield Noticed(worker, notice)
        if isinstance(answer, StageError):
            yield Failed(worker, answer)
        elif number is not None:
            yield Done(worker, number, answer)
        else:
            # Of a release that does not say by which rules it paints, it is the fingerprint alone.
            yield Ready(worker, answer, None) if isinstance(answer, str) else Ready(worker, *answer)

    def _join(self, address: str) -> None:
        # Nothing is reported to anybody, and signals stay the command's.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        handlers = {signum: signal.getsignal(signum) for signum in ENDING}
        try:
            self._ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address=LOOPBACK if address == LOCAL else None,
            )
        except Exception as failure:
            # A node that does not start in time is an `Exception` and nothing more.
            raise DeviceError(
                f"no Ray cluster answers at `{address}` ({first_line(failure)})",
                f"start one with `ray start --head`, or give `--ray {LOCAL}`",
            ) from failure
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)


class _Hand:
    """An actor: an engine and what it paints; a second call begins to paint while the first one is finished."""

    def __init__(self, load: Load) -> None:
        self._load, self._painting = load, threading.Lock()
        self._engine: Painter | None = None
        self._notices: list[str] = []

    def load(self) -> tuple[tuple[str, int] | StageError, list[str]]:
        """Open the engine; its fingerprint and the rules of this release, or what it failed of, and what the user
        should know."""

        def loaded() -> tuple[str, int]:
            self._engine = self._load(self._notices.append)
            return self._engine.spec.graphs_fingerprint, RULES

        return self._told(loaded)

    def paint(self, task: Task) -> tuple[list[Result] | StageError, list[str]]:
        """What became of a task, or what it failed of."""

        def painted() -> list[Result]:
            assert self._engine is not None
            with self._painting:
                finish = begin(self._engine, task, silent)
            return list(finish())

        return self._told(painted)

    def _told(self, work: Callable[[], Answer]) -> tuple[Answer | StageError, list[str]]:
        # Not raised: Ray takes off an error's frames, which say where it was met, and prints what nobody asks for.
        try:
            answer: Answer | StageError = work()
        except Exception as error:
            answer = fault(error)
        notices, self._notices = self._notices, []
        return answer, notices
