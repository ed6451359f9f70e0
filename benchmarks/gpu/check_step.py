"""The CUDA step kernel against NumPy: ``python check_step.py DRIVER [--json PATH] [--under TOOL ...]``.

DRIVER is ``step_driver.cu``, compiled. ``--under`` runs it below another program, as compute-sanitizer, on the cases
with tails, which are enough for that. The bounds are those of the CPU library's own tests.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stage_rt import kernels
from stage_rt.kernels import reference
from stage_rt.kernels.table import rows
from stage_rt.networks import STORAGE, narrow, widen
from stage_rt.recipe import StepCoefficients

# Batch, channels, height, width: the real size; planes that are no fours; states that are none either; one element.
SHAPES = [(8, 4, 32, 32), (3, 4, 3, 3), (2, 4, 5, 7), (2, 3, 5, 5), (1, 1, 1, 1)]
SMALL = SHAPES[1:]
DTYPES = ("fp32", "fp16", "bf16")
WIDTH = {"fp32": 4, "fp16": 2, "bf16": 3}
ITERATIONS, THREADS = 3, 64
TABLE = [
    StepCoefficients(1.54, 1.17, 0.31, 0.69, 0.0837, 0.25, 0.3, 0.65, 0.76, False, 0),
    StepCoefficients(1.04, 0.37, 0.51, 0.49, 0.0, 0.0, 0.0, 0.0, 0.76, True, 120, 1.5, only=True),
    StepCoefficients(1.24, 0.67, 0.41, 0.59, 0.03, 0.1, 0.0, 0.95, 0.36, False, 451, prompt_guidance=1.25),
    StepCoefficients(1.34, 0.87, 0.21, 0.79, 0.05, 0.0, 0.0, 0.0, 0.46, True, 999, only=True),
]
STARTS = (3, 2, -1, 3, 0, 1, 2, 3)
"""Where the samples stand: one never moves, one ends on the way."""
BOUND = 1e-5


class Case(NamedTuple):
    """One launch's inputs; ``networks`` are the estimates for good surface and for the prompt, aware and only."""

    x: np.ndarray
    clean: np.ndarray
    mask: np.ndarray
    networks: list[np.ndarray]
    seeds: np.ndarray
    samples: np.ndarray
    tables: list[list[StepCoefficients]]
    counters: np.ndarray


def case(shape: tuple[int, ...], dtype: Any) -> Case:
    rng, batch = np.random.default_rng(7), shape[0]
    x, clean, *networks = (rng.standard_normal(shape).astype(np.float32) for _ in range(6))
    mask = (rng.random((batch, 1, *shape[2:])) < 0.4).astype(np.float32)
    seeds = rng.integers(0, 2**63, batch).astype(np.uint64)
    # Every sample has a table of its own.
    tables = [[row._replace(sigma=row.sigma + n / 100) for row in TABLE] for n in range(batch)]
    counters = np.array([STARTS[n % len(STARTS)] for n in range(batch)], np.int32)
    stored = [narrow(each, dtype) for each in networks]
    return Case(x, clean, mask, stored, seeds, np.arange(batch, dtype=np.uint32), tables, counters)


def run(driver: str, under: list[str], given: Case, dtype: Any) -> dict[str, np.ndarray]:
    batch, channels, height, width = given.x.shape
    header = struct.pack("7I", batch, channels, height * width, len(TABLE), ITERATIONS, THREADS, WIDTH[dtype])
    # What no kernel is to touch comes back as it is: the inputs of the sample at rest.
    inputs, handed = narrow(given.x, dtype), narrow(given.mask, dtype)
    parts = [given.x, given.clean, given.mask, *given.networks, inputs, handed]
    parts += [rows([row for table in given.tables for row in table]), given.seeds, given.samples]
    parts += [np.ones(batch, np.uint32), np.full(batch, 77, np.int64), given.counters]
    with tempfile.TemporaryDirectory() as folder:
        into, out = Path(folder, "case"), Path(folder, "result")
        into.write_bytes(header + b"".join(part.tobytes() for part in parts))
        done = subprocess.run([*under, driver, str(into), str(out)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"{' '.join([*under, driver])} failed\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
            )
        data = out.read_bytes()
    shape, stored = (batch, channels, height, width), STORAGE[dtype]
    shapes = {
        "state": (shape, np.dtype(np.float32)),
        "unet": (shape, stored),
        "input": (shape, stored),
        "handed": ((batch, 1, height, width), stored),
        "finite": ((batch,), np.dtype(np.uint32)),
        "timestep": ((batch,), np.dtype(np.int64)),
        "counter": ((batch,), np.dtype(np.int32)),
    }
    found, at = {}, 0
    for name, (size, kind) in shapes.items():
        count = int(np.prod(size))
        found[name] = np.frombuffer(data, kind, count, at).reshape(size)
        at += count * kind.itemsize
    return found


def expected(given: Case, dtype: Any, step: Any) -> dict[str, np.ndarray]:
    """What the iterations leave, by ``step``: of a sample alone, one after the other."""
    left: dict[str, list[Any]] = {
        name: [] for name in ("state", "unet", "input", "handed", "timestep", "counter")
    }
    for n, table in enumerate(given.tables):
        part = slice(n, n + 1)
        x, clean, mask, seeds, samples = (
            a[part] for a in (given.x, given.clean, given.mask, given.seeds, given.samples)
        )
        surface, unet, aware, only = (widen(each[part], dtype) for each in given.networks)
        counter, timestep, soft = int(given.counters[n]), 77, mask
        for _ in range(ITERATIONS):
            if counter < 0:
                break
            row = table[counter]
            unet = widen(narrow(reference.guide(surface, unet, row.prompt_guidance), dtype), dtype)
            eps = reference.guide(unet, only if row.only else aware, row.guidance)
            x = step(x, np.ascontiguousarray(eps), clean, mask, row, seeds, samples)[0]
            soft, timestep, counter = mask + np.float32(row.mix) * (1 - mask), row.timestep, counter - 1
        values = (x, narrow(unet, dtype), narrow(x, dtype), narrow(soft, dtype), [timestep], [counter])
        for name, value in zip(left, values, strict=True):
            left[name].append(value)
    return {name: np.concatenate(each) for name, each in left.items()}


def compare(driver: str, under: list[str], shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    given = case(shape, dtype)
    found = run(driver, under, given, dtype)
    defined = expected(given, dtype, reference.fused_step)
    compiled = expected(given, dtype, kernels.fused_step)
    exact = np.array_equal(found["input"], narrow(found["state"], dtype)) and found["finite"].all()
    exact &= all(np.array_equal(found[name], defined[name]) for name in ("handed", "timestep", "counter"))
    error = max(
        float(np.abs(found["state"] - defined["state"]).max()),
        float(np.abs(widen(found["unet"], dtype) - widen(defined["unet"], dtype)).max()),
    )
    same = all(np.array_equal(found[name], compiled[name]) for name in ("state", "unet"))
    return {
        "shape": list(shape),
        "dtype": dtype,
        "max_abs_numpy": error,
        "equals_cpu_library": bool(same),
        "passed": bool(exact and error <= BOUND),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("driver")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument(
        "--under", nargs=argparse.REMAINDER, default=[], help="run the driver below this command"
    )
    options = parser.parse_args()
    shapes = SMALL if options.under else SHAPES
    # Most of a case is waiting for its process to begin.
    with ThreadPoolExecutor(os.cpu_count()) as several:
        cases = product(shapes, DTYPES)
        results = list(several.map(lambda each: compare(options.driver, options.under, *each), cases))
    for result in results:
        print(
            f"{result['dtype']}  {result['shape']!s:16} max abs {result['max_abs_numpy']:.1e}  "
            f"{'the bits of the CPU library' if result['equals_cpu_library'] else 'other bits than the CPU'}  "
            f"{'pass' if result['passed'] else 'FAIL'}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(not all(result["passed"] for result in results))


if __name__ == "__main__":
    main()
