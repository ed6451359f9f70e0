"""One driver for many workers: it hands out tasks, keeps what comes back, and writes alone.

A worker holds nothing but an engine, and what it paints is a function of its task. So a worker may die at any moment:
what it had in hand goes to others, and nothing of a pair is ever in two places. Where workers are, a transport knows
(`stage_rt.run.processes`, `stage_rt.run.ray`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

from stage_rt.errors import BackendError, DeviceError, EngineError, InputError, StageError, unforeseen
from stage_rt.progress import Progress
from stage_rt.run.painters import Keep
from stage_rt.run.plan import RULES
from stage_rt.run.workers import Loaded, Result, Task
from stage_rt.spec import EngineSpec

Load = Callable[[Callable[[str], None]], Loaded]
"""Opens the engine in a worker, told whom to notify; it travels to the worker."""

TICK = 0.2
"""Seconds that the driver waits for its workers before it looks whether it is to stop."""
DRAIN = 10.0
"""Seconds that workers have to hand in what they have painted when the run is stopped."""
LOSSES = 5
"""Workers that may die with no task finished in between."""


@dataclass(frozen=True)
class Ready:
    """A worker has loaded the engine whose graphs have this fingerprint, and has no task yet.

    ``rules`` are those it paints by, None of a release that does not say.
    """

    worker: int
    fingerprint: str
    rules: int | None


@dataclass(frozen=True)
class Share:
    """A worker has painted a share of the task in hand."""

    worker: int
    share: float


@dataclass(frozen=True)
class Done:
    """A worker has finished a task."""

    worker: int
    task: int
    results: list[Result]


@dataclass(frozen=True)
class Failed:
    """A worker met an error; one with a ``device`` of its own, which is named, ends then."""

    worker: int
    error: StageError
    device: str | None = None

    @property
    def local(self) -> bool:
        """Whether the error may be the device's alone, so that any other worker need not meet it."""
        ours = not isinstance(self.error, InputError) or isinstance(self.error, DeviceError | EngineError)
        return self.device is not None and ours

    @property
    def told(self) -> StageError:
        """The error, and where it was met if that may matter."""
        if not self.local:
            return self.error
        return type(self.error)(f"{self.device}: {self.error.problem}", self.error.remedy)


@dataclass(frozen=True)
class Noticed:
    """A worker has something to tell the user."""

    worker: int
    notice: str


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and everything that it had in hand."""

    worker: int
    how: str


Event = Ready | Share | Done | Failed | Noticed | Lost


def fault(error: BaseException) -> StageError:
    """What a worker says that met ``error``, its own or a library's."""
    if isinstance(error, StageError):
        return error
    return StageError(f"a worker failed ({unforeseen(error)})")


class Transport(Protocol):
    """Where workers are and how they are reached. Every worker has a number, which is never given again."""

    def start(self, worker: int) -> None:
        """Begin to start a worker, which tells when it is `Ready`."""

    def give(self, worker: int, number: int, task: Task) -> None:
        """Hand a task to a worker that is ready; if it is gone, that is told as an event."""

    def events(self, seconds: float) -> Iterable[Event]:
        """What happened, in order for each worker; waits so long for something to happen."""

    def dismiss(self, seconds: float) -> Iterator[Event]:
        """Tell every worker to drop what it is painting and to end; what they finish within so many seconds."""

    def close(self) -> None:
        """End every worker at once; there will be no others."""


@dataclass
class _Worker:
    ready: bool = False
    failed: bool = False
    share: float = 0.0
    tasks: dict[int, Task] = field(default_factory=dict)


class Crew:
    """`stage_rt.run.painters.Painters` that are elsewhere; a context, at whose end they are dismissed.

    ``size`` workers are kept: one that dies is replaced, one whose own device fails is not.
    """

    def __init__(
        self, spec: EngineSpec, transport: Transport, size: int, notify: Callable[[str], None]
    ) -> None:
        self._spec, self._transport, self._size, self._notify = spec, transport, size, notify
        self._workers: dict[int, _Worker] = {}
        self._started = self._losses = 0
        self._told: set[str] = set()

    @property
    def spec(self) -> EngineSpec:
        """What the engine was compiled for."""
        return self._spec

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def work(
        self,
        tasks: Iterator[Task],
        total: int,
        keep: Keep,
        progress: Progress,
        stepped: Callable[[float], None],
    ) -> None:
        """See `stage_rt.run.painters.Painters`; what is told is of all workers at once, so that no step is known.

        Raises:
            StageError: what a worker met, or workers die one after the other.
            EngineError: a worker has another engine than the driver.
            InputError: a worker is of another release, which paints by other rules.
        """
        job = _Work(tasks, total, keep)
        try:
            while not job.finished:
                while len(self._workers) < self._size:
                    self._start()
                self._hand_out(job)
                for event in self._transport.events(TICK):
                    self._take(event, job)
                progress(job.share(self._workers.values()))
        except BaseException:
            for event in self._transport.dismiss(DRAIN):
                if isinstance(event, Done):
                    job.keep(event)
            self._workers.clear()
            raise

    def _start(self) -> None:
        self._started += 1
        self._workers[self._started] = _Worker()
        self._transport.start(self._started)

    def _hand_out(self, job: "_Work") -> None:
        """A task to everyone who has none, and then one to have at hand as long as there is enough for all."""
        for depth in (1, 2):
            for number, worker in self._workers.items():
                if worker.ready and len(worker.tasks) < depth and job.more(self._size if depth == 2 else 0):
                    task_number, task = job.next()
                    worker.tasks[task_number] = task
                    self._transport.give(number, task_number, task)

    def _take(self, event: Event, job: "_Work") -> None:
        worker = self._workers[event.worker]
        match event:
            case Ready(fingerprint=found, rules=rules):
                if rules != RULES:
                    raise InputError(
                        "a worker is of another release of stage-rt than the command, which paints by other rules",
                        "install one release on all machines",
                    )
                if found != self._spec.graphs_fingerprint:
                    raise EngineError(
                        "a worker has another engine than the command",
                        "give all of them the same engine folder",
                    )
                worker.ready = True
            case Share(share=share):
                worker.share = share
            case Done(task=number):
                del worker.tasks[number]
                worker.share = 0.0
                self._losses = 0
                job.keep(event)
            case Failed():
                if not event.local or self._size == 1:
                    raise event.told
                self._size -= 1
                worker.ready, worker.failed = False, True
                job.again(worker.tasks)
                worker.tasks = {}
                self._notify(
                    f"{event.device} is left out ({event.error}), what it had in hand goes to the others"
                )
            case Noticed(notice=notice):
                if notice not in self._told:
                    self._told.add(notice)
                    self._notify(notice)
            case Lost(how=how):
                del self._workers[event.worker]
                if worker.failed:
                    return
                job.again(worker.tasks)
                self._losses += 1
                if self._losses >= LOSSES:
                    raise BackendError(
                        f"{LOSSES} workers ended one after the other, the last one {how}",
                        "look for what ends them, such as full memory, and run the same command again",
                    )
                self._notify(f"a worker ended ({how}), what it had in hand goes to another")


class _Work:
    """Tasks on their way, and how many samples are done."""

    def __init__(self, tasks: Iterator[Task], total: int, keep: Keep) -> None:
        self._fresh, self._total, self._keep = enumerate(tasks), total, keep
        self._waiting: deque[tuple[int, Task]] = deque()
        self._out: dict[int, Task] = {}
        self._done, self._told = 0, 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing is left."""
        return not self._out and not self.more(0)

    def more(self, than: int) -> bool:
        """Whether more tasks than so many are waiting."""
        while len(self._waiting) <= than:
            following = next(self._fresh, None)
            if following is None:
                break
            self._waiting.append(following)
        return len(self._waiting) > than

    def next(self) -> tuple[int, Task]:
        """A task that was waiting, by its number."""
        number, task = self._waiting.popleft()
        self._out[number] = task
        return number, task

    def again(self, tasks: dict[int, Task]) -> None:
        """Put back what a worker that is gone had in hand; a task that ends workers comes last."""
        for number, task in tasks.items():
            del self._out[number]
            self._waiting.append((number, task))

    def keep(self, done: Done) -> None:
        """Write the results of a task, once."""
        task = self._out.pop(done.task)
        self._done += len(task.wanted)
        self._keep(task, done.results)

    def share(self, workers: Iterable[_Worker]) -> float:
        """How much of everything is painted; never less than before."""
        # The first of a worker's tasks is the one it paints.
        painting = sum(
            worker.share * len(next(iter(worker.tasks.values())).wanted) for worker in workers if worker.tasks
        )
        self._told = max(self._told, min((self._done + painting) / self._total, 1.0))
        return self._told
