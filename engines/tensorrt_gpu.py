"""What TensorRT has to itself: it compiles on the GPU that the engine will run on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stage_rt.backends import kept
from stage_rt.cuda import device
from stage_rt.errors import DeviceError, InputError
from stage_rt.names import DType

from .tensorrt import TensorRTBuilder
from .tensorrt_rtx import CURRENT

_THOROUGH = 5
"""The highest optimisation level; the library's own is 3."""


def builder(dtype: DType, targets: Sequence[str] | None) -> TensorRTBuilder:
    """See `builders.choose`; the only target is ``current``, which is the default."""
    if targets and list(targets) != [CURRENT]:
        raise InputError(
            "TensorRT builds for the GPU at hand alone: leave `--target` out or use `--backend tensorrt-rtx`"
        )
    try:
        gpu = device.current()
    except DeviceError as error:
        raise DeviceError(
            f"TensorRT builds on the GPU it builds for and {error}: run this on that machine or use "
            "`--backend tensorrt-rtx`, which needs none"
        ) from error
    return TensorRTBuilder("tensorrt", {gpu.sm: gpu.memory}, _configure, _keep, gpu.name)


def _configure(trt: Any, config: Any) -> None:
    """Try all kernels there are, as an engine is built once and runs for nights; but none that was timed before."""
    config.builder_optimization_level = _THOROUGH
    timed = config.create_timing_cache(kept.read(_timings(trt)))
    # It looks by itself whether they are of this GPU and library; those of others are as good as none.
    if not config.set_timing_cache(timed, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep(trt: Any, config: Any) -> None:
    kept.write(_timings(trt), bytes(config.get_timing_cache().serialize()))


def _timings(trt: Any) -> Path:
    return kept.place("tensorrt", trt.__version__, "timings")
