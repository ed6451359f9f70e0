"""Who paints the batches of a run: this process, or a crew of others (`stage_rt.run.crew`)."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stage_rt.executor import Painted
from stage_rt.names import SamplerName
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress, portion
from stage_rt.recipe import Recipe
from stage_rt.run.workers import Result, Task, begin
from stage_rt.run.writer import WriterThread
from stage_rt.samplers import find
from stage_rt.spec import EngineSpec
from stage_rt.strokes import Painter

Keep = Callable[[Task, Iterable[Result]], None]
"""Writes what became of a task; never called twice at once, nor twice for a task."""


class Painters(Protocol):
    """Paints tasks, in any order and anywhere."""

    @property
    def spec(self) -> EngineSpec:
        """What the engine was compiled for."""

    def work(
        self,
        tasks: Iterator[Task],
        total: int,
        keep: Keep,
        progress: Progress,
        stepped: Callable[[float], None],
    ) -> None:
        """Paint every task and hand its results to ``keep``.

        What was painted when ``progress`` or ``keep`` raises is still kept, if it can be.

        Args:
            tasks: each with something that is wanted.
            total: how many samples all of them want.
            keep: is called on any thread.
            progress: told the share that is painted.
            stepped: told how many steps of a batch were taken between the last two calls of ``progress``, where that
                is known.
        """


class Alone:
    """Paints on this thread, finishes and writes on another."""

    def __init__(self, engine: Painter) -> None:
        self.engine = engine

    @property
    def spec(self) -> EngineSpec:
        """See `Painters`."""
        return self.engine.spec

    def work(
        self,
        tasks: Iterator[Task],
        total: int,
        keep: Keep,
        progress: Progress,
        stepped: Callable[[float], None],
    ) -> None:
        """See `Painters`."""
        done, engine = 0, _Counted(self.engine, stepped)
        with WriterThread() as writer:
            for task in tasks:
                share = portion(progress, done / total, (done + len(task.wanted)) / total)
                finish = begin(engine, task, _watched(writer.check, share))
                writer.start(partial(_keep, keep, task, finish))
                done += len(task.wanted)


class _Counted:
    """A `Painter` that tells how many steps there were between two calls of ``progress``: a device takes many."""

    def __init__(self, engine: Painter, stepped: Callable[[float], None]) -> None:
        self._engine, self._stepped = engine, stepped

    @property
    def spec(self) -> EngineSpec:
        """See `Painter`."""
        return self._engine.spec

    def paint(
        self,
        images: NDArray[np.float32],
        masks: NDArray[np.float32],
        *,
        prompt: str,
        noise: PhiloxNoise,
        sampler: SamplerName,
        recipe: Recipe,
        steps: int,
        progress: Progress,
        labels: NDArray[np.float32] | None = None,
    ) -> Painted:
        """See `Painter`."""
        calls, before = find(sampler).calls(recipe, steps), 0.0

        def counted(share: float) -> None:
            nonlocal before
            progress(share)
            self._stepped(round((share - before) * calls, 6))
            before = share

        return self._engine.paint(
            images,
            masks,
            prompt=prompt,
            noise=noise,
            sampler=sampler,
            recipe=recipe,
            steps=steps,
            progress=counted,
            labels=labels,
        )


def _keep(keep: Keep, task: Task, finish: Callable[[], Iterable[Result]]) -> None:
    keep(task, finish())


def _watched(check: Callable[[], None], progress: Progress) -> Progress:
    """A `Progress` that also raises what the writer thread did."""

    def watched(share: float) -> None:
        check()
        progress(share)

    return watched
