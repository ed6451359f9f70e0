"""Times that can be compared on a machine that others use too: medians with their spread, taken in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Clock = Callable[[], float]
"""Seconds: `time.perf_counter` by default; `time.process_time`, where everything runs on one thread of a core that
others use, does not count the time they had it."""


class Timing(NamedTuple):
    """Median and quartiles of a call, in seconds, and how often it was timed."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Of at least one measured call."""
        several = seconds * 2 if len(seconds) == 1 else seconds  # Of a single one there are no quartiles.
        low, median, high = statistics.quantiles(several, n=4, method="inclusive")
        return cls(median, low, high, len(seconds))


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    budget: float | None = None,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call of each of ``runs``; taken in turn, so that a machine that is busy is busy for all.

    Args:
        runs: what is timed, by name.
        rounds: how often each.
        budget: seconds after which no further round begins; at least one is taken.
        warm_up: how often each is called before any is timed, and once more before every timed call, since caches
            belong to whoever ran last; 0 for neither.
        clock: what tells the seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warm_up):
        for run in runs.values():
            run()
    begun = time.perf_counter()
    for done in range(rounds):
        if done and budget is not None and time.perf_counter() - begun > budget:
            break
        for name, run in runs.items():
            if warm_up:
                run()
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> Timing:
    """How many times as long the one takes as the other, of calls taken beside each other."""
    return Timing.of([a / b for a, b in zip(numerator, denominator, strict=True)])
