"""What a run of many pairs costs beside painting: ``python benchmarks/many_pairs.py COUNT FOLDER``.

Paints COUNT tiny pairs with an engine without networks into FOLDER, which has to be empty, and prints a line of JSON:
the memory of the process in MiB at every tenth of the pairs and the pairs a second of each tenth, then how long the
same run takes to be planned and checked when it is found again, as it is and without what was remembered.
"""

import json
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_rt.progress import Progress, silent
from stage_rt.recipe import Recipe
from stage_rt.run.checks import CHECKS_FILE, Checks
from stage_rt.run.fill import _fill, _missing
from stage_rt.run.index import INDEX_FILE
from stage_rt.run.job import Job
from stage_rt.run.ledger import Place, open_run
from stage_rt.run.painters import Alone
from stage_rt.run.plan import Plan, make_plan
from stage_rt.run.watch import UNWATCHED
from stage_rt.spec import EngineSpec, ModelSpec

NORMALS, MASKS, BATCH = 200, 100, 8
SIZE = (40, 30)
PROMPT = "tile+hole"


class Nothing:
    """An engine that gives every photograph back."""

    def __init__(self) -> None:
        model = ModelSpec(
            image_size=32,
            image_channels=3,
            latent_size=8,
            latent_scale=1.0,
            tokens=1,
            context_dim=1,
            recipe=Recipe(name="test", steps=10, ema_stop=2, only_intervals=()),
            prompts={PROMPT: "a"},
        )
        self.spec = EngineSpec(
            model=model,
            backend="onnxruntime",
            library="none",
            library_version="0",
            devices=["cpu"],
            dtype="fp32",
            batch=[BATCH],
            graphs_fingerprint="0" * 64,
            files={},
        )

    def paint(
        self, images: NDArray[np.float32], masks: NDArray[np.float32], *, progress: Progress, **_: object
    ) -> "Painted":
        progress(1.0)
        return Painted(images)


class Painted:
    def __init__(self, images: NDArray[np.float32]) -> None:
        self.images, self.finite = images, np.ones(len(images), dtype=np.bool_)


def inputs(folder: Path) -> tuple[Sequence[Path], Sequence[Path]]:
    rng = np.random.default_rng(0)
    for name in ("normals", "masks"):
        (folder / name).mkdir(parents=True)
    for n in range(NORMALS):
        pixels = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "normals" / f"{n:03d}.png")
    for n in range(MASKS):
        label = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
        label[4 + n % 9 : 16 + n % 11, 3 + n % 7 : 20 + n % 13] = 255
        Image.fromarray(label).save(folder / "masks" / f"{n:03d}.png")
    return tuple(sorted((folder / name).iterdir()) for name in ("normals", "masks"))  # type: ignore[return-value]


def resident(process: int | str = "self") -> float:
    """MiB of a process, by its number, that lie in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def planned(engine: Nothing, job: Job, run: Path) -> tuple[Plan, Checks]:
    checks = Checks(run / CHECKS_FILE)
    return make_plan(engine.spec, job, lambda notice: None, silent, checks), checks


def found_again(engine: Nothing, job: Job, run: Path) -> dict[str, float]:
    """Seconds that go by until it is known that nothing of a finished run is missing."""
    began = time.perf_counter()
    plan, checks = planned(engine, job, run)
    made = time.perf_counter()
    with open_run(Place.of(run), plan.spec) as manifest:
        opened = time.perf_counter()
        assert not _missing(plan, run, manifest, silent).any()
        known = time.perf_counter()
    checks.save()
    return {"plan": made - began, "manifest": opened - made, "pairs": known - opened, "all": known - began}


def main(count: int, folder: Path) -> None:
    normals, masks = inputs(folder / "data")
    # Files that were just written are not remembered.
    time.sleep(3)
    engine, run = Nothing(), folder / "run"
    job = Job(normals, masks, PROMPT, count, 0, True, BATCH, steps=10)
    plan, checks = planned(engine, job, run)
    memory, times = [], [time.perf_counter()]

    def watch(share: float) -> None:
        while share >= (len(memory) + 1) / 10 - 1e-9:
            memory.append(round(resident(), 2))
            times.append(time.perf_counter())

    with open_run(Place.of(run), plan.spec) as manifest:
        checks.save()
        missing = _missing(plan, run, manifest, silent)
        _fill(Alone(engine), plan, missing, run, manifest, UNWATCHED, lambda notice: None, watch)
        manifest.tidy(plan.samples.numbers)
    del plan, manifest
    warm = found_again(engine, job, run)
    (run / INDEX_FILE).unlink()
    (run / CHECKS_FILE).unlink()
    cold = found_again(engine, job, run)
    speed = [round(count / 10 / (stop - start), 1) for start, stop in pairwise(times)]
    print(
        json.dumps(
            {
                "pairs": count,
                "MiB": memory,
                "last to second tenth": round(memory[-1] / memory[1], 4),
                "pairs/s": speed,
                "found again, s": {name: round(seconds, 2) for name, seconds in warm.items()},
                "without what was remembered, s": {name: round(seconds, 2) for name, seconds in cold.items()},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
