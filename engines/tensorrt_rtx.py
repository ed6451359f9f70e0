"""What TensorRT-RTX has to itself: it compiles for GPUs that are not there."""

from collections.abc import Sequence
from typing import Any

from stage_rt.backends.tensorrt import FLAVOURS
from stage_rt.cuda import device
from stage_rt.errors import DeviceError, InputError
from stage_rt.names import DType

from .memory import LARGEST_GPU
from .tensorrt import TensorRTBuilder

TARGETS = FLAVOURS["tensorrt-rtx"].targets
DEFAULT_TARGETS = ("sm86", "sm89", "sm120")
"""The RTX 30, 40 and 50 series and the workstation cards of the same three generations."""

CURRENT = "current"


def builder(dtype: DType, targets: Sequence[str] | None) -> TensorRTBuilder:
    """See `builders.choose`; a target is ``sm86`` and the like, or ``current`` alone."""
    chosen = _targets(targets or DEFAULT_TARGETS)
    if dtype != "fp16" and "sm75" in chosen:
        raise InputError(
            f"TensorRT-RTX multiplies no {dtype} matrices on sm75: use `--dtype fp16` or leave that target out"
        )

    def configure(trt: Any, config: Any) -> None:
        config.num_compute_capabilities = len(chosen)
        for index, target in enumerate(chosen):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
        # Contexts are given their memory, so that the engines of a set can share it and be captured in graphs.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)

    return TensorRTBuilder("tensorrt-rtx", {target: LARGEST_GPU[target] for target in chosen}, configure)


def _targets(wanted: Sequence[str]) -> list[str]:
    if CURRENT in wanted:
        wanted = [_current() if target == CURRENT else target for target in wanted]
    if unknown := [target for target in wanted if target not in TARGETS]:
        raise InputError(
            f"TensorRT-RTX knows no target `{unknown[0]}`: use some of {', '.join(TARGETS)}, or `{CURRENT}`"
        )
    return sorted(set(wanted), key=TARGETS.index)


def _current() -> str:
    try:
        gpu = device.current()
    except DeviceError as error:
        raise DeviceError(
            f"`--target {CURRENT}` needs the GPU it builds for and {error}: name the GPU's compute capability, "
            f"such as `--target {DEFAULT_TARGETS[0]}`"
        ) from error
    if gpu.sm not in TARGETS:
        raise DeviceError(
            f"TensorRT-RTX does not build for the GPU here, {gpu.name} ({gpu.sm}): use `--backend tensorrt` or "
            "`--backend inductor`"
        )
    return gpu.sm
