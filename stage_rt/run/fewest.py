"""The fewest steps whose pairs cannot be told from those of all steps, measured on a user's own files.

Every pair is painted with all steps from two seeds, whose difference is what noise alone makes of a pair, and then
with ever more steps until few enough are found. Steps pass if, with 95 % confidence, the mean of each figure lies no
further from that of all steps than one deviation of that noise (two one-sided t-tests). So few pairs do not make few
steps: what was measured badly passes nothing, and is all steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stage_rt.errors import BackendError, EngineError, InputError
from stage_rt.files import write_atomic
from stage_rt.folders import read_engine
from stage_rt.noise import reseeded
from stage_rt.progress import Progress, portion, silent
from stage_rt.run.half_done import HalfDone
from stage_rt.run.job import Job
from stage_rt.run.plan import Notify, Plan, make_plan
from stage_rt.run.workers import Task, begin
from stage_rt.spec import ENGINE_FILE, EngineSpec, PromptDefaults
from stage_rt.strokes import Painter

COUNTS = (10, 15, 20, 30, 50, 100, 200, 500)
"""Numbers of steps that are tried, between the fewest that the recipe makes sense with and all of them."""
CONFIDENCE = 0.95

Floats = NDArray[np.float64]


class Row(NamedTuple):
    """What was measured of a number of steps.

    ``fill`` and ``contrast`` are means over the pairs (`stage_rt.images.labels.Figures`); ``fill_off`` and
    ``contrast_off`` how far from those of all steps they are at most, in deviations between two seeds.
    """

    steps: int
    fill: float
    contrast: float
    fill_off: float
    contrast_off: float

    @property
    def passed(self) -> bool:
        """Whether nothing tells these steps from all of them."""
        return max(self.fill_off, self.contrast_off) <= 1


class Fewest(NamedTuple):
    """The ``steps`` that were found, and every number that was tried, rising, all steps the last."""

    steps: int
    rows: list[Row]


def fewest_steps(engine: Painter, job: Job, *, notify: Notify, progress: Progress = silent) -> Fewest:
    """Measure them with an engine on the photographs and masks of ``job``, painted as they come.

    What was painted when ``progress`` ends it is not painted again by the next call for the same.

    Raises:
        InputError: the job cannot be done, or changes the recipe.
        BackendError: the inference library failed, or a pair came out non-finite.
    """
    plan = make_plan(engine.spec, replace(job, min_fill=0.0), notify, portion(progress, 0.0, 0.05))
    every = plan.method.steps
    counts = [count for count in COUNTS if plan.method.recipe.fewest_calls <= count < every]
    calls, done = 2 * every + sum(counts), 0
    kept = HalfDone("calibrate", _decided(engine, plan))

    def painted(steps: int, attempt: int) -> Floats:
        nonlocal done
        share = portion(progress, 0.05 + 0.95 * done / calls, 0.95 * (done + steps) / calls + 0.05)
        done += steps
        rows: list[tuple[float, float]] = []
        for task, part in _tasks(plan, steps, reseeded(job.seed, attempt), share):
            asked = f"{attempt} {task.samples[0].index}"
            rows += kept.of(asked, partial(_figures, engine, task, part))
        return np.array(rows)

    whole = painted(every, 0), painted(every, 1)
    rows: list[Row] = []
    for attempt, count in enumerate(counts, 2):
        rows.append(compared(count, painted(count, attempt), whole))
        if rows[-1].passed:
            break
    progress(1.0)
    kept.end()
    found = next((row.steps for row in rows if row.passed), every)
    fill, contrast = np.mean(whole, axis=(0, 1)).tolist()
    return Fewest(found, [*rows, Row(every, fill, contrast, 0.0, 0.0)])


def compared(steps: int, few: Floats, whole: Sequence[Floats]) -> Row:
    """The figures ``[N, 2]`` of pairs in few steps, beside theirs in all steps from two seeds."""
    first, second = whole
    noise = np.sqrt(((first - second) ** 2).mean(axis=0) / 2)
    difference = few - (first + second) / 2
    sure = stats.t.ppf(CONFIDENCE, len(few) - 1) * difference.std(axis=0, ddof=1) / np.sqrt(len(few))
    most = np.abs(difference.mean(axis=0)) + sure
    # Where seeds change nothing, nothing else may either.
    off = np.divide(most, noise, out=np.where(most > 0, np.inf, 0.0), where=noise > 0)
    return Row(steps, *few.mean(axis=0).tolist(), *off.tolist())


def keep(folder: Path, engine: EngineSpec, prompt: str, steps: int) -> None:
    """Write the ``steps`` of a prompt into the description of the ``engine`` they were measured with, where ``--steps
    auto`` looks for them.

    Raises:
        EngineError: there is no engine, or another one was built there since.
        InputError: the file cannot be written.
    """
    spec = read_engine(folder)
    if spec.fingerprint != engine.fingerprint:
        raise EngineError(
            f"`{folder}` holds another engine than the one that needs {steps} steps for prompt {prompt!r}",
            "run the same command again to measure this one",
        )
    own = spec.model.defaults.get(prompt, PromptDefaults()).model_copy(update={"steps": steps})
    model = spec.model.model_copy(update={"defaults": {**spec.model.defaults, prompt: own}})
    try:
        write_atomic(folder / ENGINE_FILE, spec.model_copy(update={"model": model}).sealed().encode())
    except OSError as fault:
        raise InputError(
            f"`{folder / ENGINE_FILE}` cannot be written ({fault.strerror})",
            f"make it writable, or give `--steps {steps}` yourself",
        ) from None


def _decided(engine: Painter, plan: Plan) -> list[object]:
    """All that decides the figures."""
    return [
        engine.spec.fingerprint,
        plan.spec.model_dump(mode="json"),
        [plan.planned(sample) for sample in plan.samples],
    ]


def _figures(engine: Painter, task: Task, progress: Progress) -> list[tuple[float, float]]:
    """Fill and contrast of every pair."""
    rows = []
    for result in begin(engine, task, progress)():
        if result.figures is None:
            raise BackendError(
                f"a pair came out non-finite with {task.method.steps} steps",
                "check the engine with `stage-rt verify`",
            )
        rows.append((result.figures.fill, result.figures.contrast))
    return rows


def _tasks(plan: Plan, steps: int, seed: int, progress: Progress) -> Iterator[tuple[Task, Progress]]:
    """The samples as a run takes them, each part with its share of the progress."""
    method, count = replace(plan.method, steps=steps, own_steps=False), len(plan.samples)
    for start in range(0, count, plan.together):
        part = plan.samples[start : start + plan.together]
        wanted = frozenset(sample.index for sample in part)
        share = portion(progress, start / count, (start + len(part)) / count)
        digests = plan.digests_of(part)
        yield Task(part, wanted, method, seed, plan.spec.batch, composited=True, digests=digests), share
