"""What TensorRT has to itself: it compiles on the GPU that the engine will run on."""

from collections.abc import Sequence
from typing import Any

from stage_rt.cuda import device
from stage_rt.errors import DeviceError, InputError
from stage_rt.names import DType

from .tensorrt import TensorRTBuilder
from .tensorrt_rtx import CURRENT


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
    return TensorRTBuilder("tensorrt", {gpu.sm: gpu.memory}, _configure)


def _configure(trt: Any, config: Any) -> None:
    """Nothing: the defaults tune for the GPU at hand."""
