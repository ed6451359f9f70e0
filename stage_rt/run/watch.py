"""A run seen from outside, without a terminal: ``run.log``, ``metrics.json``, ``metrics.prom`` and the page's times.

All of it is written about once a minute and at every turn of events. None of it decides anything: what cannot be
written is left, as a full disk is told of by the pairs.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

from stage_rt.errors import printable
from stage_rt.files import staged_for, write_atomic
from stage_rt.progress import Progress
from stage_rt.run.gpus import Gpu, gpus
from stage_rt.run.metrics import Counts, Metrics, Outcome, line
from stage_rt.run.prometheus import exposition
from stage_rt.run.sample import readable
from stage_rt.spec import PairRecord

LOG, METRICS, PROMETHEUS, TIMES = "run.log", "metrics.json", "metrics.prom", "report/times.js"
EVERY = 60.0
"""Seconds between two lines."""
WINDOW = 10
"""Lines over which the speed is taken."""
STEPS = 200
"""Calls of progress over which the time of a step is taken."""

Notify = Callable[[str], None]


class Watch:
    """Is told what happens in a run; this one listens to nothing."""

    def open(self, folder: Path, planned: Mapping[str, int]) -> None:
        """The run in ``folder`` is this process's, and will have so many samples of each type; told once."""

    def beside(self, types: Mapping[str, Counts]) -> None:
        """What the folder's other types came to, which this process does not paint; told after `open`."""

    def begin(self, kind: str, came: Mapping[Outcome, int]) -> None:
        """A type is begun, of which samples are done: how many came to what."""

    def add(self, kind: str, record: PairRecord) -> None:
        """A sample is done; told on the writer's thread."""

    def stepping(self, progress: Progress) -> Progress:
        """``progress``, of which every call is seen."""
        return progress

    def stepped(self, steps: float) -> None:
        """So many steps of a batch were taken between the last two calls of what `stepping` gave."""


UNWATCHED = Watch()


class Recorder(Watch):
    """Writes what it is told; made before the folder is the run's, it keeps what it is told until then.

    ``clock`` gives seconds since 1970, ``ticks`` seconds that no clock's setting moves.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        gpus: Callable[[], list[Gpu]] = gpus,
    ) -> None:
        self._clock, self._ticks, self._gpus = clock, ticks, gpus
        self._log = logging.Logger(__name__)
        self._early: list[str] = []
        self._folder: Path | None = None
        self._types: dict[str, Counts] = {}
        self._beside: dict[str, Counts] = {}
        self._earlier: list[dict[str, Any]] = []
        self._lock = Lock()
        self._own = 0
        self._started = self._began = self._told = self._before = self._seen = 0.0
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._pace: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def open(self, folder: Path, planned: Mapping[str, int]) -> None:
        """See `Watch`."""
        if self._folder is not None:
            return
        self._folder = folder
        _sweep(folder)
        self._log.addHandler(_Handler(folder / LOG))
        self._earlier = _sittings(folder / METRICS)
        self._types = {kind: Counts(count) for kind, count in planned.items()}
        self._started, self._began = self._clock(), self._ticks()
        self._told = self._began
        # What fails before a type is begun is told too.
        self._pace.append((self._began, 0))
        self._log.info(
            "begins: %s", ", ".join(f"{count} {printable(kind)}" for kind, count in planned.items())
        )
        for notice in self._early:
            self.notice(notice)

    def beside(self, types: Mapping[str, Counts]) -> None:
        """See `Watch`."""
        with self._lock:
            self._beside = dict(types)

    def begin(self, kind: str, came: Mapping[Outcome, int]) -> None:
        """See `Watch`."""
        with self._lock:
            self._types[kind].add_all(came)
            self._pace.clear()
            self._pace.append((self._ticks(), self._done))
        if done := sum(came.values()):
            self._log.info("%s: %d samples were done before", printable(kind), done)
        self._write("running")

    def add(self, kind: str, record: PairRecord) -> None:
        """See `Watch`."""
        with self._lock:
            self._types[kind].add(Outcome.of(record))
            self._own += 1
        if record.status != "ok":
            self._log.warning("%s %d %s: %s", printable(kind), record.index, record.status, record.reason)

    def stepping(self, progress: Progress) -> Progress:
        """See `Watch`."""

        def seen(share: float) -> None:
            progress(share)
            now = self._ticks()
            self._before, self._seen = self._seen, now
            if now - self._told >= EVERY:
                self._tell(now)

        return seen

    def stepped(self, steps: float) -> None:
        """See `Watch`."""
        if self._before and steps > 0:
            self._steps.append((self._seen - self._before) / steps)

    def notice(self, text: str) -> None:
        """A sentence the user should know."""
        if self._folder is None:
            self._early.append(text)
        else:
            self._log.warning("notice: %s", printable(text))

    def end(self, state: str, text: str) -> None:
        """The run is over, one way or the other; nothing is written if it was never begun."""
        if self._folder is None:
            return
        self._log.log(logging.ERROR if state == "failed" else logging.INFO, "%s: %s", state, printable(text))
        self._write(state)
        for handler in self._log.handlers:
            handler.close()

    @property
    def _done(self) -> int:
        return sum(counts.done for counts in self._types.values())

    def _tell(self, now: float) -> None:
        self._told = now
        with self._lock:
            self._pace.append((now, self._done))
        metrics = self._write("running")
        self._log.info(line(metrics))

    def _write(self, state: str) -> Metrics:
        assert self._folder is not None
        with self._lock:
            metrics = self._metrics(state)
        told = {
            METRICS: json.dumps(asdict(metrics), indent=1) + "\n",
            PROMETHEUS: exposition(metrics, readable(self._folder.resolve()), self._clock()),
            TIMES: f"window.stageTimes = {json.dumps(metrics.sittings)};\n",
        }
        for name, text in told.items():
            with suppress(OSError):
                write_atomic(self._folder / name, text.encode(), synced=False)
        return metrics

    def _metrics(self, state: str) -> Metrics:
        (first, before), (last, after) = self._pace[0], self._pace[-1]
        pace = (after - before) / (last - first) if last > first else None
        left = sum(counts.planned for counts in self._types.values()) - self._done
        now = self._clock()
        sitting = {
            "started": _iso(self._started),
            "seconds": round(self._ticks() - self._began, 1),
            "samples": self._own,
        }
        return Metrics(
            state,
            _iso(now),
            self._types | self._beside,
            pairs_per_second=pace,
            seconds_left=left / pace if pace else None,
            step_seconds=median(self._steps) if self._steps else None,
            gpus=self._gpus(),
            sittings=[*self._earlier, sitting],
        )


@contextmanager
def recorded(recorder: Recorder, stopped: type[BaseException]) -> Iterator[None]:
    """A block whose end ``recorder`` is told of; ``stopped`` is what ends it on purpose."""
    try:
        yield
    except stopped:
        recorder.end("stopped", "the same command again goes on")
        raise
    except BaseException as error:
        recorder.end("failed", str(error) or type(error).__name__)
        raise
    recorder.end("done", "every sample is")


class _Handler(logging.FileHandler):
    """A log whose own failures are nobody's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; a file that cannot be opened is no failure either."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """See the class."""


def _sweep(folder: Path) -> None:
    """Remove figures that a crash left staged."""
    for path in folder.glob(".*.tmp"):
        if staged_for(path) in (METRICS, PROMETHEUS):
            with suppress(OSError):
                path.unlink()


def _sittings(path: Path) -> list[dict[str, Any]]:
    """Those of earlier processes that came to something; what is damaged is forgotten."""
    try:
        found = json.loads(path.read_bytes())["sittings"]
        return [
            {name: one[name] for name in ("started", "seconds", "samples")} for one in found if one["samples"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
