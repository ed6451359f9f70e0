"""How the cost of a pair grows: ``python benchmarks/growth.py [--json PATH] [--plot PNG]``.

With networks that do nothing, so that what is measured is all the rest: reading, squares, the loop, composing,
writing, the page. CPU seconds a pair against the batch, the side of the photographs (cut into squares of 64 px, or
seen whole by a network of their size), the labels in one photograph and the types in one folder; and against the
pairs of a run, with the memory it takes. Give it one core: ``OMP_NUM_THREADS=1 taskset -c 0``. Each figure is the
median of rounds; ``exponent`` is the slope of all seconds against the number, both as logarithms, between the last
two: 1 is proportional.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from many_pairs import resident
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from options import keep
from PIL import Image

from stage_rt.engine import Engine
from stage_rt.executor import HostExecutor
from stage_rt.machine import cpu_name
from stage_rt.progress import silent
from stage_rt.recipe import Recipe
from stage_rt.run.job import Job
from stage_rt.run.night import follow_all, plans
from stage_rt.run.painters import Alone
from stage_rt.spec import VAE_DECODER, VAE_ENCODER, EngineSpec, ModelSpec, RegionView

ROUNDS, STEPS, NORMALS = 3, 10, 4
BATCHES, SIDES = (1, 2, 4, 8, 16, 32, 64), (128, 256, 512, 1024)
LABELS, TYPES, PAIRS = (1, 4, 16, 64), (1, 2, 4, 8, 16), (1000, 10_000, 100_000)
PROMPTS = [f"tile+type{n:02}" for n in range(max(TYPES))]


class Idle:
    """A backend whose networks do nothing."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        model, batch = self._model, len(next(iter(inputs.values())))
        latent = (model.latent_size, model.latent_size)
        if graph == VAE_DECODER:
            return np.zeros((batch, 3, model.image_size, model.image_size), np.float32)
        return np.zeros((batch, 8 if graph == VAE_ENCODER else 4, *latent), np.float32)

    def close(self) -> None:
        pass


def engine(batch: int = 8, *, side: int = 64, squares: bool = True) -> Engine:
    model = ModelSpec(
        image_size=side,
        latent_size=side // 8,
        latent_scale=1.0,
        tokens=1,
        context_dim=1,
        recipe=Recipe(name="test", steps=STEPS, ema_stop=2, only_intervals=()),
        prompts=dict.fromkeys(PROMPTS, "tile"),
        region=RegionView(least=64) if squares else None,
    )
    spec = EngineSpec(
        model=model,
        backend="onnxruntime",
        library="none",
        library_version="0",
        devices=["cpu"],
        dtype="fp32",
        batch=[batch],
        graphs_fingerprint="0" * 64,
        files={},
    )
    contexts = {prompt: np.zeros((1, 1), np.float32) for prompt in PROMPTS}
    return Engine(spec, HostExecutor(model, Idle(model)), contexts)


def files(folder: Path, width: int, height: int, labels: int) -> tuple[list[Path], list[Path]]:
    """Photographs of noise, and a mask of so many labels of 12 px, evenly spread."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    normals = [folder / f"{n}.png" for n in range(NORMALS)]
    for path in normals:
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    mask, across = np.zeros((height, width), np.uint8), int(np.ceil(labels**0.5))
    for n in range(labels):
        y, x = (
            (2 * place + 1) * side // (2 * across)
            for place, side in ((n // across, height), (n % across, width))
        )
        mask[y - 6 : y + 6, x - 6 : x + 6] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return normals, [folder / "mask.png"]


def seconds(
    made: Engine,
    pairs: int,
    *,
    side: int | tuple[int, int] = 256,
    labels: int = 1,
    types: int = 1,
    rounds: int = ROUNDS,
) -> float:
    """CPU seconds of a run of so many ``pairs`` of every type, the median of rounds."""
    width, height = (side, side) if isinstance(side, int) else side
    batch, taken = max(made.spec.batch), []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            normals, masks = files(Path(place) / "data", width, height, labels)
            jobs = [
                Job(normals, masks, prompt, pairs, 0, True, batch, steps=STEPS, min_fill=0.0)
                for prompt in PROMPTS[:types]
            ]
            began = time.process_time()
            run = plans(made.spec, jobs, notify=ignore)
            follow_all(Alone(made), run, Path(place) / "run", notify=ignore, progress=silent)
            taken.append(time.process_time() - began)
    return statistics.median(taken)


def ignore(notice: str) -> None:
    """Nobody is told."""


def sweep(name: str, numbers: tuple[int, ...], cost: Callable[[int], dict[str, float]]) -> dict[str, Any]:
    """``cost`` of every number, and how all seconds grow with it."""
    rows = []
    for number in numbers:
        rows.append({name: number, **cost(number)})
        print(rows[-1], flush=True)
    (low, first), (high, last) = ((row[name], row["seconds"]) for row in rows[-2:])
    return {"rows": rows, "exponent": round(float(np.log(last / first) / np.log(high / low)), 2)}


def of_batch(batch: int) -> dict[str, float]:
    taken = seconds(engine(batch), 64)
    return {"seconds": round(taken, 4), "a pair": round(taken / 64, 5)}


def of_side(side: int) -> dict[str, float]:
    squares = seconds(engine(), 16, side=side)
    whole = seconds(engine(side=side, squares=False), 16, side=side)
    return {"seconds": round(whole, 4), "a pair": round(squares / 16, 5), "whole": round(whole / 16, 5)}


def of_labels(labels: int) -> dict[str, float]:
    taken = seconds(engine(), 16, side=1024, labels=labels)
    return {"seconds": round(taken, 4), "a pair": round(taken / 16, 5)}


def of_types(types: int) -> dict[str, float]:
    taken = seconds(engine(), 16, types=types)
    return {"seconds": round(taken, 4), "a pair": round(taken / 16 / types, 5)}


def of_pairs(pairs: int) -> dict[str, float]:
    made = engine(side=32, squares=False)
    taken = seconds(made, pairs, side=(40, 30), rounds=1)
    return {"seconds": round(taken, 1), "a pair": round(taken / pairs, 6), "MiB": round(resident(), 1)}


SWEEPS = {
    "batch": (BATCHES, of_batch),
    "side": (SIDES, of_side),
    "labels": (LABELS, of_labels),
    "types": (TYPES, of_types),
    "pairs": (PAIRS, of_pairs),
}


def draw(result: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for axis, name in zip(axes.flat, SWEEPS, strict=False):
        rows, exponent = result[name]["rows"], result[name]["exponent"]
        numbers = [row[name] for row in rows]
        axis.plot(
            numbers,
            [1e3 * row["a pair"] for row in rows],
            "o-",
            label="squares" if "whole" in rows[0] else None,
        )
        if "whole" in rows[0]:
            axis.plot(numbers, [1e3 * row["whole"] for row in rows], "s--", label="whole")
            axis.legend()
        axis.set(xlabel=name, ylabel="ms a pair", xscale="log", title=f"all seconds ~ {name}^{exponent}")
        axis.set_xticks(numbers, [str(number) for number in numbers])
        axis.set_ylim(0, 1.08 * axis.dataLim.ymax)
        axis.xaxis.minorticks_off()
    rows = result["pairs"]["rows"]
    axes[1, 2].plot([row["pairs"] for row in rows], [row["MiB"] for row in rows], "o-")
    axes[1, 2].set(xlabel="pairs", ylabel="MiB of the process", xscale="log", ylim=(0, None), title="memory")
    figure.savefig(path, dpi=110)


def main(options: argparse.Namespace) -> None:
    result: dict[str, Any] = {"machine": cpu_name()}
    for name, (numbers, cost) in SWEEPS.items():
        most = options.most if name == "pairs" else max(numbers)
        result[name] = sweep(name, tuple(number for number in numbers if number <= most), cost)
    keep(result, options.json)
    if options.plot:
        draw(result, options.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=max(PAIRS), help="leave longer runs out; at least 10000")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    main(parser.parse_args())
