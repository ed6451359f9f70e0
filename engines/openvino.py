"""Graphs in OpenVINO's own form, for the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stage_rt.backends.openvino import LIBRARY, PRECISION, computes, core, library, version
from stage_rt.errors import BackendError, InputError, first_line
from stage_rt.names import DType
from stage_rt.progress import Progress

from .builders import Compiled, Notify, check_room


def builder(dtype: DType, targets: Sequence[str] | None) -> "OpenVinoBuilder":
    """See `builders.choose`."""
    if targets:
        raise InputError("`--target` names GPUs, but this backend runs on the CPU: leave it out")
    if dtype not in PRECISION:
        raise InputError(
            f"OpenVINO computes {dtype} on hardly any CPU: use `--dtype fp32` or `--dtype bf16` for this backend"
        )
    if not computes(core(), dtype):
        raise InputError(f"this CPU has no instructions for {dtype}: use `--dtype fp32`")
    return OpenVinoBuilder()


class OpenVinoBuilder:
    """See `builders.Builder`."""

    def __init__(self) -> None:
        self._core = core()
        self.library = LIBRARY
        self.version = version()
        self.devices = ["cpu"]
        self.gpu: str | None = None

    def prepare(self, graphs: Mapping[str, Path], batch: Sequence[int], notify: Notify) -> None:
        """Nothing: its graphs serve any batch."""

    def compile(self, graph: Path, destination: Path, batch: Sequence[int], progress: Progress) -> Compiled:
        """Write ``graph`` as OpenVINO reads it: operators in one file, weights of the graph's dtype in another.

        Inputs and outputs become float32, which is what the host has; the arithmetic is that of the engine's dtype
        whatever they are. Code for the CPU at hand is made when the engine is loaded.
        """
        ov = library()
        try:
            model = self._core.read_model(graph)
            shapes = _shapes(model.inputs), _shapes(model.outputs)
            model = _of_float32(ov, model)
            # The library numbers nodes without a name through the process: the same graph would have other bytes.
            for number, node in enumerate(model.get_ordered_ops()):
                node.set_friendly_name(f"{node.get_type_name()}_{number}")
            ov.save_model(model, f"{destination}.xml", compress_to_fp16=False)
        except Exception as error:  # The library's exceptions have no common base.
            check_room(graph, destination)
            raise BackendError(f"OpenVINO cannot compile `{graph}`: {first_line(error)}") from error
        return Compiled(0, *shapes)


def _of_float32(ov: Any, model: Any) -> Any:
    """``model`` taking and giving float32 where it took and gave another float."""
    wrapped = ov.preprocess.PrePostProcessor(model)
    for ports, side in ((model.inputs, wrapped.input), (model.outputs, wrapped.output)):
        for index, port in enumerate(ports):
            if port.element_type.is_real():
                side(index).tensor().set_element_type(ov.Type.f32)
    return wrapped.build()


def _shapes(ports: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    return {
        port.any_name: tuple(size.get_length() if size.is_static else -1 for size in port.partial_shape)
        for port in ports
    }
