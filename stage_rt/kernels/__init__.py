"""The fused step and its noise, compiled: the names, results and arguments of `stage_rt.kernels.reference`.

`libstage_step` is loaded on first use and compared with the reference once, so that a stale or miscompiled
library is an error and not a subtly different image. There is no fallback: NumPy is the definition, not an
implementation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import BackendError, InputError
from stage_rt.kernels import reference
from stage_rt.kernels.reference import step
from stage_rt.kernels.table import LAYOUT, rows
from stage_rt.recipe import StepCoefficients

__all__ = ["fused_step", "normal", "philox_words", "step"]

LIBRARY = "libstage_step.so"

REINSTALL = (
    "install again with a C++ compiler: `pip install --force-reinstall --no-deps .` in a checkout of stage-rt"
)


def philox_words(
    seeds: NDArray[np.uint64], samples: NDArray[np.uint32], step: int, draw: int, blocks: int
) -> NDArray[np.uint32]:
    """`reference.philox_words`, bit for bit. Raises `InputError` for arrays of another dtype or shape."""
    _check_streams(seeds, samples, len(seeds))
    return library().philox_words(seeds, samples, step, draw, blocks)


def normal(
    seeds: NDArray[np.uint64], samples: NDArray[np.uint32], step: int, draw: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """`reference.normal` to a few units in the last place, the same bits on every machine.

    Raises `InputError` for arrays of another dtype or shape.
    """
    _check_streams(seeds, samples, len(seeds))
    return library().normal(seeds, samples, step, draw, shape)


def fused_step(
    x: NDArray[np.float32],
    eps: NDArray[np.float32],
    clean: NDArray[np.float32],
    mask: NDArray[np.float32],
    c: StepCoefficients | Sequence[StepCoefficients],
    seeds: NDArray[np.uint64],
    samples: NDArray[np.uint32],
    *,
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """`reference.fused_step` in one pass; ``threads`` 0 means all cores and never changes a bit.

    ``x``, ``eps``, ``clean`` float32 [B, C, h, w]; ``mask`` float32 [B, 1, h, w] in {0, 1}; ``seeds`` uint64
    [B]; ``samples`` uint32 [B]; all C-contiguous; ``c`` one transition for all samples or one a sample. Returns the
    next state [B, C, h, w] and bool [B], True where that sample is finite. Raises `InputError` for arrays of another
    dtype, shape or memory layout, and for another number of transitions.
    """
    if x.ndim != 4:
        raise InputError(f"`x` must have shape [B, C, h, w], got {x.shape}")
    for name, array in (("x", x), ("eps", eps), ("clean", clean)):
        _check(name, array, np.float32, x.shape)
    _check("mask", mask, np.float32, (len(x), 1, *x.shape[2:]))
    _check_streams(seeds, samples, len(x))
    if not isinstance(c, StepCoefficients) and len(c) != len(x):
        raise InputError(f"`c` must be one transition or one a sample, got {len(c)} for {len(x)} samples")
    return library().fused_step(x, eps, clean, mask, c, seeds, samples, threads=threads)


class StepLibrary:
    """`libstage_step`, loaded; its methods are those of `reference` and check no argument, `functions` are its own.

    Raises `BackendError` when it cannot be loaded, or is not what `reference` and `table` say.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise BackendError(f"`{path}` cannot be loaded ({error})", REINSTALL) from error
        try:
            self._declare()
            agrees = self.functions.stage_layout().decode() == LAYOUT and self._equals_reference()
        except AttributeError:
            agrees = False
        if not agrees:
            raise BackendError(f"`{path}` was built from other sources than this version", REINSTALL)

    def philox_words(
        self, seeds: NDArray[np.uint64], samples: NDArray[np.uint32], step: int, draw: int, blocks: int
    ) -> NDArray[np.uint32]:
        """See `reference.philox_words`."""
        words = np.empty((len(seeds), 4 * blocks), np.uint32)
        self.functions.stage_words(
            seeds.ctypes.data, samples.ctypes.data, len(seeds), step, draw, 0, blocks, words.ctypes.data
        )
        return words

    def normal(
        self,
        seeds: NDArray[np.uint64],
        samples: NDArray[np.uint32],
        step: int,
        draw: int,
        shape: tuple[int, ...],
    ) -> NDArray[np.float32]:
        """See `reference.normal`."""
        numbers = np.empty((len(seeds), *shape), np.float32)
        elements = int(np.prod(shape))
        self.functions.stage_normal(
            seeds.ctypes.data, samples.ctypes.data, len(seeds), step, draw, elements, numbers.ctypes.data, 0
        )
        return numbers

    def fused_step(
        self,
        x: NDArray[np.float32],
        eps: NDArray[np.float32],
        clean: NDArray[np.float32],
        mask: NDArray[np.float32],
        c: StepCoefficients | Sequence[StepCoefficients],
        seeds: NDArray[np.uint64],
        samples: NDArray[np.uint32],
        *,
        threads: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See `reference.fused_step`."""
        batch, channels, height, width = x.shape
        own, stride = (rows([c]), 0) if isinstance(c, StepCoefficients) else (rows(c), 1)
        following, finite = np.empty_like(x), np.empty(batch, np.bool_)
        self.functions.stage_step(
            *(array.ctypes.data for array in (x, eps, clean, mask, own)),
            stride,
            *(array.ctypes.data for array in (seeds, samples)),
            batch,
            channels,
            height * width,
            following.ctypes.data,
            finite.ctypes.data,
            threads,
        )
        return following, finite

    def _declare(self) -> None:
        pointer, word, size, count = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int64, ctypes.c_int
        arguments: dict[str, list[Any]] = {
            "stage_words": [pointer, pointer, size, word, word, word, word, pointer],
            "stage_normal": [pointer, pointer, size, word, word, size, pointer, count],
            "stage_step": [*[pointer] * 5, size, pointer, pointer, size, size, size, pointer, pointer, count],
        }
        for name, types in arguments.items():
            function = getattr(self.functions, name)
            function.argtypes, function.restype = types, None
        self.functions.stage_layout.argtypes, self.functions.stage_layout.restype = [], ctypes.c_char_p

    def _equals_reference(self) -> bool:
        seeds, samples = np.array([1, 2**63 + 5], np.uint64), np.array([0, 7], np.uint32)
        x, eps, clean = (np.linspace(low, 2, 54, dtype=np.float32).reshape(2, 3, 3, 3) for low in (-2, -1, 0))
        mask = (x[:, :1] > 0).astype(np.float32)
        equal, row = True, StepCoefficients(1.5, 0.7, 0.4, 0.6, 0.3, 0.2, 0.1, 0.8, 0.5, False, 3)
        shared = row._replace(shared_noise=True)
        for c in (row, shared, [shared, row]):
            made = self.fused_step(x, eps, clean, mask, c, seeds, samples, threads=1)[0]
            defined = reference.fused_step(x, eps, clean, mask, c, seeds, samples)[0]
            equal &= np.allclose(made, defined, rtol=0, atol=1e-5)
        return equal


@cache
def library() -> StepLibrary:
    """The loaded `libstage_step`. Raises `BackendError` when it is missing or not this version's."""
    # In an editable install the package spans the source folder and the one the library was built into.
    for folder in __path__:
        path = Path(folder) / LIBRARY
        if path.is_file():
            return StepLibrary(path)
    raise BackendError(f"the compiled kernels `{LIBRARY}` are missing", REINSTALL)


def _check(name: str, array: NDArray[Any], dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        layout = "" if array.flags.c_contiguous else " that is not C-contiguous"
        raise InputError(
            f"`{name}` must be a C-contiguous {np.dtype(dtype)} array of shape {shape}, "
            f"got {array.dtype} of shape {array.shape}{layout}"
        )


def _check_streams(seeds: NDArray[np.uint64], samples: NDArray[np.uint32], batch: int) -> None:
    _check("seeds", seeds, np.uint64, (batch,))
    _check("samples", samples, np.uint32, (batch,))
