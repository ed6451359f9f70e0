"""Times taken in turn, and their spread."""

import pytest

from stage_rt import timing
from stage_rt.timing import Timing, in_turn, ratio


class Clock:
    """Seconds that pass only while somebody works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


def test_runs_are_timed_in_turn_each_warmed_by_itself():
    clock, calls = Clock(), []
    runs = {
        "slow": lambda: (calls.append("slow"), clock.work(3)),
        "quick": lambda: (calls.append("quick"), clock.work(1)),
    }
    assert in_turn(runs, 2, clock=clock) == {"slow": [3, 3], "quick": [1, 1]}
    assert calls == ["slow", "quick", *["slow", "slow", "quick", "quick"] * 2]
    calls.clear()
    in_turn(runs, 2, warm_up=0, clock=clock)
    assert calls == ["slow", "quick"] * 2


def test_a_budget_ends_it_after_a_whole_round(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    runs = {"a": lambda: clock.work(2), "b": lambda: clock.work(2)}
    assert in_turn(runs, 9, budget=5, warm_up=0, clock=clock) == {"a": [2, 2], "b": [2, 2]}
    assert in_turn(runs, 9, budget=0, warm_up=0, clock=clock) == {"a": [2], "b": [2]}


def test_a_timing_is_median_and_quartiles():
    assert Timing.of([5, 1, 2, 4, 3]) == Timing(3, 2, 4, 5)
    assert Timing.of([7]) == Timing(7, 7, 7, 1)


def test_ratios_are_those_of_calls_beside_each_other():
    assert ratio([2, 4, 6], [1, 2, 2]) == Timing(2, 2, 2.5, 3)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratio([1, 2], [1])
