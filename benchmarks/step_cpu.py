"""Time of the fused step on this CPU beside NumPy: ``python benchmarks/step_cpu.py [--json PATH]``.

Three ways of one iteration at [32, 4, 32, 32] float32, noise included: the definition
(`stage_rt.kernels.reference`), NumPy at its fastest (its own normal generator, not keyed by sample, and the
same step), and the compiled kernel on one thread and on all.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stage_rt import kernels
from stage_rt.kernels import reference
from stage_rt.machine import cpu_name
from stage_rt.recipe import StepCoefficients
from stage_rt.timing import in_turn

SHAPE = (32, 4, 32, 32)
ROUNDS = 30


def medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each."""
    return {name: 1e3 * statistics.median(times) for name, times in in_turn(runs, ROUNDS).items()}


def measure(shared_noise: bool) -> dict[str, float]:
    generator = np.random.default_rng(0)
    x, eps, clean = (generator.standard_normal(SHAPE, np.float32) for _ in range(3))
    mask = (generator.random((SHAPE[0], 1, *SHAPE[2:])) < 0.2).astype(np.float32)
    seeds, samples = np.arange(SHAPE[0], dtype=np.uint64), np.zeros(SHAPE[0], np.uint32)
    c = StepCoefficients(1.54, 1.17, 0.0031, 0.9957, 0.0837, 0.25, 0.25, 0.65, 0.76, shared_noise, 400)
    n_shape = mask.shape if shared_noise else SHAPE

    def plain_numpy() -> object:
        n, z = (generator.standard_normal(shape, np.float32) for shape in (n_shape, SHAPE))
        return np.isfinite(reference.step(x, eps, clean, mask, c, n, z)).all(axis=(1, 2, 3))

    arrays = (x, eps, clean, mask, c, seeds, samples)
    return medians(
        {
            "numpy_definition": lambda: reference.fused_step(*arrays),
            "numpy_own_generator": plain_numpy,
            "kernel_one_thread": lambda: kernels.fused_step(*arrays, threads=1),
            "kernel_all_threads": lambda: kernels.fused_step(*arrays),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    path = parser.parse_args().json
    branches = {"aware": measure(shared_noise=False), "only": measure(shared_noise=True)}
    print(f"{cpu_name()}; NumPy {np.__version__}; one step at {list(SHAPE)}, median of {ROUNDS}")
    for branch, times in branches.items():
        for name, milliseconds in times.items():
            ratio = times["numpy_definition"] / milliseconds
            print(f"{branch:6} {name:20} {milliseconds:8.3f} ms {ratio:7.1f} x")
    if path:
        result = {
            "device": cpu_name(),
            "system": platform.platform(),
            "numpy": np.__version__,
            "shape": SHAPE,
            "rounds": ROUNDS,
            "median_ms": branches,
        }
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
