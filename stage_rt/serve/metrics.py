"""Figures of a server for Prometheus; the registry is the server's own."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stage_rt.serve.pairs import Pair
from stage_rt.serve.scheduling import Lane, Priority

_STEP = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_PAIR = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Figures:
    """Counts what it is told."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._steps = Histogram(
            "stage_rt_step_seconds", "Time of a step of a lane.", ["engine"], buckets=_STEP, registry=own
        )
        told = "Slots that had a sample, summed over steps."
        self._occupied = Counter("stage_rt_slots_occupied", told, ["engine"], registry=own)
        told = "Slots there were, summed over steps."
        self._slots = Counter("stage_rt_slots", told, ["engine"], registry=own)
        told = "Pairs that are over, by engine, prompt and how."
        self._pairs = Counter("stage_rt_pairs", told, ["engine", "prompt", "state"], registry=own)
        told = "Time from a pair's order to its end."
        self._seconds = Histogram("stage_rt_pair_seconds", told, ["engine"], buckets=_PAIR, registry=own)
        told = "Requests that were refused, by status."
        self._refused = Counter("stage_rt_refusals", told, ["status"], registry=own)
        told = "Pairs that wait or are painted."
        self._waiting = Gauge("stage_rt_pairs_waiting", told, registry=own)
        told = "Samples that wait or are painted, by class."
        self._samples = Gauge("stage_rt_samples", told, ["class"], registry=own)

    def step(self, lane: Lane, seconds: float, samples: int, size: int) -> None:
        """See `stage_rt.serve.driver.Observer`."""
        engine = lane[0] if isinstance(lane, tuple) else str(lane)
        self._steps.labels(engine).observe(seconds)
        self._occupied.labels(engine).inc(samples)
        self._slots.labels(engine).inc(size)

    def over(self, pair: Pair, seconds: float) -> None:
        """A pair is over."""
        self._pairs.labels(pair.request.engine, pair.request.prompt, pair.state).inc()
        self._seconds.labels(pair.request.engine).observe(seconds)

    def refused(self, status: int) -> None:
        """A request was refused."""
        self._refused.labels(str(status)).inc()

    def look(self, waiting: Callable[[], int], depth: Callable[[], dict[Priority, int]]) -> None:
        """Where the gauges are read when somebody asks."""
        self._waiting.set_function(waiting)
        for one in Priority:
            self._samples.labels(one.name.lower()).set_function(partial(_count, depth, one))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)


def _count(depth: Callable[[], dict[Priority, int]], one: Priority) -> int:
    return depth()[one]
