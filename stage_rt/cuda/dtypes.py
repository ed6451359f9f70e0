"""The networks' dtypes as NumPy holds them: bf16, which NumPy lacks, as the upper halves of float32 in uint16."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.backends import Tensor, TensorDType

STORAGE: dict[TensorDType, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
}


def narrow(array: NDArray[Any], dtype: TensorDType) -> NDArray[Any]:
    """``array`` as C-contiguous storage of ``dtype``; floats are float32 and rounded to nearest, ties to even."""
    if dtype != "bf16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=STORAGE[dtype])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )
    # Rounding could carry a NaN's payload into its sign.
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)


def widen(array: NDArray[Any], dtype: TensorDType) -> NDArray[np.float32]:
    """Storage of a float dtype as float32, exactly."""
    if dtype != "bf16":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return int(np.prod(tensor.shape)) * STORAGE[tensor.dtype].itemsize
