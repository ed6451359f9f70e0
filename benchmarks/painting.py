"""Pairs painted as a run paints them, from arrays: squares around defects, pieces, paint put into the photograph."""

import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.engine import Engine
from stage_rt.method import Method
from stage_rt.progress import silent
from stage_rt.recipe import Recipe
from stage_rt.run.job import Job, resolve
from stage_rt.run.sample import Sample
from stage_rt.run.workers import Batch, Result, finish, paint
from stage_rt.strokes import divide

AT_ONCE = 16


class Painted(NamedTuple):
    """Images uint8 ``[N, H, W]`` and what was measured of each; ``calls`` is how many squares took their steps."""

    images: NDArray[np.uint8]
    results: list[Result]
    calls: int


def method_of(engine: Engine, prompt: str, steps: int, recipe: Recipe | None = None) -> Method:
    """How a user of the engine paints; with a ``recipe`` that one, and every pair kept as it comes."""
    least = None if recipe is None else 0.0
    job = Job([], [], prompt, 1, 0, composite=True, batch=1, steps=steps, min_fill=least)
    method = resolve(job, engine.spec.model)
    return method if recipe is None else replace(method, recipe=recipe)


def painted(
    engine: Engine, good: NDArray[np.uint8], labels: NDArray[np.bool_], method: Method, seed: int
) -> Painted:
    """A defect under each label bool ``[N, H, W]`` of good grey photographs uint8 ``[N, H, W]``."""
    model, size = engine.spec.model, max(engine.spec.batch)
    results: list[Result] = []
    calls = 0
    for start in range(0, len(good), AT_ONCE):
        part = range(start, min(start + AT_ONCE, len(good)))
        photos = [np.repeat(good[n][..., None], 3, axis=2) for n in part]
        samples = [
            Sample(n, Path(f"{n}.png"), Path(f"{n}.png"), good[n].shape[::-1], grey=True) for n in part
        ]
        shown = [labels[n] for n in part]
        batch = Batch(samples, photos, shown, divide(photos, shown, model, method))
        strokes = paint(engine, batch, method, seed=seed, size=size, progress=silent)()
        calls += sum(stroke.attempts for stroke in strokes)
        results += finish(batch, strokes, model, method, composited=True)
    return Painted(np.stack([_pixels(result) for result in results]), results, calls)


def _pixels(result: Result) -> NDArray[np.uint8]:
    assert result.image is not None
    return np.asarray(Image.open(io.BytesIO(result.image)))
