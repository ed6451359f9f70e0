"""Graphs compiled by TensorRT or TensorRT-RTX: all that the two have in common."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage_rt.backends.tensorrt import FLAVOURS, SUFFIX, journal, library, started
from stage_rt.errors import BackendError
from stage_rt.names import BackendName
from stage_rt.progress import Progress

from . import memory
from .builders import Compiled, Notify

if TYPE_CHECKING:
    import tensorrt as trt

Configure = Callable[[Any, "trt.IBuilderConfig"], None]
"""Sets, or after a build keeps, what only one flavour has; called with its module."""

_PLANNED = re.compile(r"Total Activation Memory: (\d+) bytes")


class TensorRTBuilder:
    """See `builders.Builder`.

    Args:
        backend: the flavour.
        gpus: memory in bytes of the largest GPU of each target.
        configure: sets what only that flavour has.
        keep: called after every build.
        gpu: name of the one that is tuned on, if one is.

    Raises:
        MissingExtraError: the flavour is not installed.
    """

    def __init__(
        self,
        backend: BackendName,
        gpus: Mapping[str, int],
        configure: Configure,
        keep: Configure = lambda trt, config: None,
        gpu: str | None = None,
    ) -> None:
        self._trt = library(backend)
        self._journal, self._logger = journal(backend)
        self._gpus = gpus
        self._configure, self._keep = configure, keep
        self.library = FLAVOURS[backend].name
        self.version: str = self._trt.__version__
        self.devices = list(gpus)
        self.gpu = gpu

    def prepare(self, graphs: Mapping[str, Path], batch: Sequence[int], notify: Notify) -> None:
        """Tell the GPU memory that the largest batch needs, and refuse one that no GPU can serve."""
        memory.check(graphs, batch, self._gpus, notify)

    def compile(self, graph: Path, destination: Path, batch: Sequence[int], progress: Progress) -> Compiled:
        """Write ``<destination>.engine``, with one static profile a batch size.

        The dtype is that of the graph: networks are strongly typed. The memory returned is what the library says it
        planned for its largest profile; an engine can be asked itself only on a GPU.
        """
        self._journal.lines.clear()
        with started(self.library, self._journal):
            builder: trt.Builder = self._trt.Builder(self._logger)
        network = self._parse(builder, graph)
        config = builder.create_builder_config()
        for size in batch:
            config.add_optimization_profile(_profile(builder, network, size))
        # On by default, and it rounds what goes into a product of fp32 to eleven bits: more than parity allows.
        config.clear_flag(self._trt.BuilderFlag.TF32)
        self._configure(self._trt, config)
        watch = _watch(self._trt, progress)
        config.progress_monitor = watch
        plan = builder.build_serialized_network(network, config)
        if watch.raised is not None:
            raise watch.raised
        if plan is None:
            raise BackendError(f"{self.library} cannot compile `{graph}`: {self._journal.error()}")
        self._keep(self._trt, config)
        destination.with_name(f"{destination.name}{SUFFIX}").write_bytes(memoryview(plan))
        planned = [int(found[1]) for _, line in self._journal.lines if (found := _PLANNED.search(line))]
        workspace = max(planned) if planned else memory.estimate({graph.stem: graph}, max(batch)).workspace
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        return Compiled(workspace, _shapes(inputs), _shapes(outputs))

    def _parse(self, builder: "trt.Builder", graph: Path) -> "trt.INetworkDefinition":
        flag = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(flag))
        parser: trt.OnnxParser = self._trt.OnnxParser(network, self._logger)
        # By path: weights beside the graph are found, and none of it passes through one protobuf.
        if not parser.parse_from_file(str(graph)):
            raise BackendError(f"{self.library} cannot read `{graph}`: {self._complaint(parser)}")
        return network

    def _complaint(self, parser: "trt.OnnxParser") -> str:
        if not parser.num_errors:
            return self._journal.error()
        error = parser.get_error(0)
        reason = error.desc().strip().partition("\n")[0]
        return f"{reason} at `{error.node_name()}` ({error.node_operator()})"


def _shapes(tensors: Sequence["trt.ITensor"]) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def _profile(
    builder: "trt.Builder", network: "trt.INetworkDefinition", batch: int
) -> "trt.IOptimizationProfile":
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        shape = tuple(value.shape)
        if -1 in shape:
            fixed = tuple(batch if size == -1 else size for size in shape)
            profile.set_shape(value.name, fixed, fixed, fixed)
    return profile


def _watch(library: Any, progress: Progress) -> Any:
    """A progress monitor that tells ``progress`` the share of the outermost phase that is done.

    What ``progress`` raises is kept in ``raised`` and cancels the build: it must not cross the library's own frames.
    """

    class Watch(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.raised: BaseException | None = None
            # Phases that run now, from the outermost to the innermost: name, steps, steps done.
            self._phases: list[tuple[str, int, int]] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.append((phase_name, max(num_steps, 1), 0))

        def phase_finish(self, phase_name: str) -> None:
            self._phases = [phase for phase in self._phases if phase[0] != phase_name]

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases = [
                (name, steps, step + 1 if name == phase_name else done) for name, steps, done in self._phases
            ]
            try:
                progress(self._share())
            except BaseException as raised:
                self.raised = raised
            return self.raised is None

        def _share(self) -> float:
            share = 0.0
            for _, steps, done in reversed(self._phases):
                share = min((done + share) / steps, 1.0)
            return share

    return Watch()
