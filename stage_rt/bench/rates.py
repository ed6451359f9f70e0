"""What the machine itself can do: a large matrix product and a large copy, by NumPy."""

import time

import numpy as np

from stage_rt.timing import Clock, Timing, in_turn

SIDE = 1536
"""Of the matrices: 7.2 GFLOP a product, and 28 MB that fit no cache near a core."""
COPIED = 2**27
"""Bytes of the copy, far more than the caches hold."""
ROUNDS, BUDGET = 5, 5.0


def rates(clock: Clock = time.perf_counter) -> tuple[float, float]:
    """GFLOP/s of float32 matrix products on all cores of the process, and GB/s read and written by a copy.

    By the wall's clock; on one core that others use too, by that of the process.
    """
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    product = np.empty_like(left)
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
    runs = {
        "product": lambda: np.matmul(left, right, out=product),
        "copy": lambda: np.copyto(target, source),
    }
    seconds = in_turn(runs, ROUNDS, budget=BUDGET, clock=clock)
    product_seconds, copy_seconds = (Timing.of(seconds[name]).median for name in runs)
    return 2 * SIDE**3 / product_seconds / 1e9, 2 * COPIED / copy_seconds / 1e9
