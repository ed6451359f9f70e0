"""What a run comes to while it is painted, in figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from stage_rt.run.gpus import Gpu
from stage_rt.spec import PairRecord


class Outcome(NamedTuple):
    """What is counted of a sample, which is all that a tally of many has to keep of each."""

    status: str
    weak: bool
    refilled: bool

    @classmethod
    def of(cls, record: PairRecord) -> Self:
        """That of a line of the manifest."""
        return cls(record.status, bool(record.weak), record.attempts is not None)


@dataclass
class Counts:
    """Of a type: samples ``planned`` and ``done``, and what those came to, by earlier processes too."""

    planned: int
    done: int = 0
    pairs: int = 0
    refilled: int = 0
    weak: int = 0
    left_out: int = 0
    failed: int = 0

    def add(self, outcome: Outcome, samples: int = 1) -> None:
        """Count so many samples that are done."""
        self.done += samples
        self.refilled += samples * outcome.refilled
        match outcome.status:
            case "ok":
                self.pairs += samples
                self.weak += samples * outcome.weak
            case "left out":
                self.left_out += samples
            case "failed":
                self.failed += samples

    def add_all(self, came: Mapping[Outcome, int]) -> None:
        """Count samples that are done, by what they came to."""
        for outcome, samples in came.items():
            self.add(outcome, samples)


@dataclass
class Metrics:
    """What ``metrics.json`` holds; times are ISO 8601, seconds None where they are not known yet.

    ``state`` is ``running``, ``done``, ``stopped`` or ``failed``. ``sittings`` are the times this run was worked at,
    the last one among them, with the samples done in each.
    """

    state: str
    updated: str
    types: dict[str, Counts]
    pairs_per_second: float | None = None
    seconds_left: float | None = None
    step_seconds: float | None = None
    gpus: list[Gpu] = field(default_factory=list)
    sittings: list[dict[str, Any]] = field(default_factory=list)


def line(metrics: Metrics) -> str:
    """The figures in one line, for a log."""
    types = metrics.types.values()
    parts = [f"{sum(one.done for one in types)}/{sum(one.planned for one in types)} samples"]
    if metrics.pairs_per_second:
        parts.append(f"{metrics.pairs_per_second:.3g} a second")
    if metrics.seconds_left is not None:
        parts.append(f"{metrics.seconds_left / 60:.0f} min left")
    if metrics.step_seconds is not None:
        parts.append(f"{1000 * metrics.step_seconds:.3g} ms a step")
    counts = {name: sum(getattr(one, name) for one in types) for name in _TOLD}
    parts += [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return ", ".join([*parts, *map(_of_gpu, metrics.gpus)])


_TOLD = ("refilled", "weak", "left_out", "failed")


def _of_gpu(gpu: Gpu) -> str:
    told = [f"GPU {gpu.number}"]
    if gpu.busy is not None:
        told.append(f"{gpu.busy:.0%}")
    if gpu.memory is not None:
        told.append(f"{gpu.memory / 2**30:.1f} GiB")
    if gpu.power is not None:
        told.append(f"{gpu.power:.0f} W")
    if gpu.temperature is not None:
        told.append(f"{gpu.temperature} °C")
    return " ".join(told)
