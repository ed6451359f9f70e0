"""The CUDA step kernel against NumPy: ``python check_step.py DRIVER [--json PATH] [--under TOOL ...]``.

DRIVER is ``step_driver.cu``, compiled. ``--under`` runs it below another program, as compute-sanitizer, on the cases
with tails, which are enough for that. The bounds are those of the CPU library's own tests.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
ITERATIONS, START, THREADS = 3, 3, 64
TABLE = [
    StepCoefficients(1.54, 1.17, 0.31, 0.69, 0.0837, 0.25, 0.3, 0.65, 0.76, False, 0),
    StepCoefficients(1.04, 0.37, 0.51, 0.49, 0.0, 0.0, 0.0, 0.0, 0.76, True, 120),
    StepCoefficients(1.24, 0.67, 0.41, 0.59, 0.03, 0.1, 0.0, 0.95, 0.36, False, 451),
    StepCoefficients(1.34, 0.87, 0.21, 0.79, 0.05, 0.0, 0.0, 0.0, 0.46, True, 999),
]
BOUND = 1e-5


def case(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    x, clean, eps = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    mask = (rng.random((shape[0], 1, *shape[2:])) < 0.4).astype(np.float32)
    seeds = rng.integers(0, 2**63, shape[0]).astype(np.uint64)
    return {"x": x, "clean": clean, "eps": eps, "mask": mask, "seeds": seeds}


def run(driver: str, under: list[str], arrays: dict[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    batch, channels, height, width = arrays["x"].shape
    samples, finite = np.arange(batch, dtype=np.uint32), np.ones(batch, np.uint32)
    plane = height * width
    header = struct.pack("8I", batch, channels, plane, len(TABLE), ITERATIONS, START, THREADS, WIDTH[dtype])
    table = rows(TABLE).tobytes()
    parts = [arrays["x"], arrays["clean"], arrays["mask"], narrow(arrays["eps"], dtype)]
    content = [part.tobytes() for part in parts] + [table]
    content += [part.tobytes() for part in (arrays["seeds"], samples, finite)]
    with tempfile.TemporaryDirectory() as folder:
        into, out = Path(folder, "case"), Path(folder, "result")
        into.write_bytes(header + b"".join(content))
        done = subprocess.run([*under, driver, str(into), str(out)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"{' '.join([*under, driver])} failed\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
            )
        data = out.read_bytes()
    shapes = {
        "state": ((batch, channels, height, width), np.dtype(np.float32)),
        "input": ((batch, channels, height, width), STORAGE[dtype]),
        "handed": ((batch, 1, height, width), STORAGE[dtype]),
        "finite": ((batch,), np.dtype(np.uint32)),
        "timestep": ((1,), np.dtype(np.int64)),
        "counter": ((1,), np.dtype(np.int32)),
    }
    found, at = {}, 0
    for name, (shape, kind) in shapes.items():
        count = int(np.prod(shape))
        found[name] = np.frombuffer(data, kind, count, at).reshape(shape)
        at += count * kind.itemsize
    return found


def expected(arrays: dict[str, np.ndarray], dtype: Any, step: Any) -> np.ndarray:
    """The state after the iterations, by ``step``."""
    samples = np.arange(len(arrays["x"]), dtype=np.uint32)
    x, eps = arrays["x"], widen(narrow(arrays["eps"], dtype), dtype)
    for row in range(START, START - ITERATIONS, -1):
        x = step(x, eps, arrays["clean"], arrays["mask"], TABLE[row], arrays["seeds"], samples)[0]
    return x


def compare(driver: str, under: list[str], shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    arrays = case(shape)
    found = run(driver, under, arrays, dtype)
    defined = expected(arrays, dtype, reference.fused_step)
    compiled = expected(arrays, dtype, kernels.fused_step)
    last = START - ITERATIONS + 1
    soft = arrays["mask"] + np.float32(TABLE[last].mix) * (1 - arrays["mask"])
    exact = (
        np.array_equal(found["input"], narrow(found["state"], dtype))
        and np.array_equal(found["handed"], narrow(soft, dtype))
        and found["finite"].all()
        and found["timestep"].tolist() == [TABLE[last].timestep]
        and found["counter"].tolist() == [last - 1]
    )
    error = float(np.abs(found["state"] - defined).max())
    return {
        "shape": list(shape),
        "dtype": dtype,
        "max_abs_numpy": error,
        "equals_cpu_library": bool(np.array_equal(found["state"], compiled)),
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
    results = [compare(options.driver, options.under, shape, dtype) for shape in shapes for dtype in DTYPES]
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
