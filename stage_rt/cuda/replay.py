"""Whether a recorded step does what running it does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.networks import TensorDType

TOLERANCE: dict[TensorDType, float] = {"fp32": 2**-10, "fp16": 2**-7, "bf16": 2**-5}
"""By which share of its largest value a tensor may differ, for networks of a dtype.

A few roundings, as kernels leave that add in no fixed order. What a graph would get wrong, a stale address or number,
is off by far more: the two are compared at another transition than the one that was recorded.
"""


def difference(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """The largest difference of two steps' tensors, as a share of the tensor's largest value.

    0 for the same bits; infinity where integers differ, or where one value is finite and the other is not.
    """
    return max(_difference(found[name], array) for name, array in expected.items())


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.tobytes() == expected.tobytes():
        return 0.0
    finite = np.isfinite(expected)
    if expected.dtype.kind != "f" or (np.isfinite(found) != finite).any() or not finite.any():
        return float("inf")
    apart = np.abs(found[finite].astype(np.float64) - expected[finite]).max()
    largest = np.abs(expected[finite].astype(np.float64)).max()
    return float(apart / largest) if largest else float("inf")
