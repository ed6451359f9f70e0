"""Graphs to an engine folder: compiled graphs, contexts, ``engine.json``."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from stage_rt.batches import check_sizes
from stage_rt.errors import EngineError, GraphsError, InputError, printable
from stage_rt.files import digests, locked, staged_folder
from stage_rt.folders import as_calibrated, check_replaceable, read_engine, up_to_date
from stage_rt.names import BackendName, DType
from stage_rt.networks import tensors
from stage_rt.progress import Progress, portion, silent
from stage_rt.spec import ENGINE_FILE, PROMPTS_FILE, EngineSpec, GraphsSpec, ModelSpec

from .builders import Builder, Compiled, Notify, choose, sources
from .graphs import REMEDY, read_graphs

_COMPILE_BYTES = 2**26
"""A graph without weights takes about as long to compile as this many bytes of them take to pack."""


def build(
    source: Path,
    folder: Path,
    *,
    backend: BackendName,
    batch: Sequence[int],
    dtype: DType | None = None,
    targets: Sequence[str] | None = None,
    origin: str | None = None,
    force: bool = False,
    notify: Notify = lambda line: None,
    progress: Progress = silent,
) -> bool:
    """Compile a graphs folder for a backend; the engine appears whole or not at all.

    An engine that is already there, is whole and has the fingerprint this one would have is left alone; any
    other engine of that backend there is replaced. Of several processes that write one folder, one builds and the
    others wait.

    Args:
        source: graphs folder made by ``stage-rt export``.
        folder: engine folder to write.
        backend: inference library to build for.
        batch: batch sizes the engine shall serve.
        dtype: the graphs' own, or None.
        targets: GPUs to build for, as the backend names them, or None for its default.
        origin: digest of what the graphs were exported from, for `is_current`.
        force: replace an engine of another backend too.
        notify: told of memory needs and of waiting.
        progress: told the share that is done, 0 to 1; what it raises cancels the build.

    Returns:
        Whether an engine was written; False when it was up to date.

    Raises:
        GraphsError: the graphs folder is incomplete or changed, or a graph is not the one that its name says.
        InputError: a batch size is none (`check_sizes`), the dtype is not the graphs' own, the backend cannot
            do what is asked of it, or ``folder`` has content that is no engine or cannot be written.
        DeviceError: the backend needs a GPU that is not there.
        MissingExtraError: the backend's library is not installed.
        BackendError: the library could not compile a graph.
    """
    check_sizes(batch)
    graphs = read_graphs(source)
    _check_dtype(source, graphs, dtype)
    builder = choose(backend, graphs.dtype, targets)
    wanted = _described(builder, backend, graphs.dtype, batch, graphs.model, graphs.fingerprint)
    wanted = wanted.model_copy(update={"origin": origin})
    with locked(folder, _Waiting(folder, notify, progress)):
        if up_to_date(folder, wanted):
            return False
        check_replaceable(folder, backend, force=force)
        _write(source, folder, as_calibrated(wanted, folder), builder, notify, progress)
    return True


def is_current(
    folder: Path,
    origin: str,
    *,
    backend: BackendName,
    batch: Sequence[int],
    dtype: DType,
    targets: Sequence[str] | None = None,
) -> bool:
    """Whether ``folder`` holds, whole, what `build` would make of graphs from ``origin``, which need not be there.

    Raises:
        InputError, DeviceError, MissingExtraError: as `build`.
    """
    check_sizes(batch)
    builder = choose(backend, dtype, targets)
    try:
        found = read_engine(folder)
    except EngineError:
        return False
    wanted = _described(builder, backend, dtype, batch, found.model, found.graphs_fingerprint)
    return found.origin == origin and up_to_date(folder, wanted)


def _described(
    builder: Builder,
    backend: BackendName,
    dtype: DType,
    batch: Sequence[int],
    model: ModelSpec,
    fingerprint: str,
) -> EngineSpec:
    """An engine without its files."""
    return EngineSpec(
        model=model,
        backend=backend,
        library=builder.library,
        library_version=builder.version,
        devices=builder.devices,
        dtype=dtype,
        batch=sorted(set(batch)),
        graphs_fingerprint=fingerprint,
        gpu=builder.gpu,
        builder=sources(),
        files={},
    )


class _Waiting:
    """Tells once that another process builds, and goes on asking whether to cancel."""

    def __init__(self, folder: Path, notify: Notify, progress: Progress) -> None:
        self._text: str | None = f"waiting for another process that builds `{folder}`"
        self._notify = notify
        self._progress = progress

    def __call__(self) -> None:
        if self._text:
            self._notify(self._text)
        self._text = None
        self._progress(0.0)


def _write(
    source: Path, folder: Path, wanted: EngineSpec, builder: Builder, notify: Notify, progress: Progress
) -> None:
    graphs = {graph: source / f"{graph}.onnx" for graph in wanted.model.graphs}
    with staged_folder(folder, replace=(folder / ENGINE_FILE).is_file()) as staged:
        builder.prepare(graphs, wanted.batch, notify)
        workspace = 0
        for (graph, path), share in zip(graphs.items(), _parts(graphs.values(), progress), strict=True):
            share(0.0)
            (staged / graph).parent.mkdir(exist_ok=True)
            compiled = builder.compile(path, staged / graph, wanted.batch, share)
            _check_signature(path, graph, compiled, wanted)
            workspace = max(workspace, compiled.workspace)
            share(1.0)
        shutil.copyfile(source / PROMPTS_FILE, staged / PROMPTS_FILE)
        spec = wanted.model_copy(
            update={"workspace": workspace, "operations": _operations(graphs), "files": digests(staged)}
        )
        (staged / ENGINE_FILE).write_text(spec.sealed(), encoding="utf-8")


def _operations(graphs: Mapping[str, Path]) -> dict[str, int]:
    """What is known of the graphs' arithmetic, which only `stage-rt bench` asks for."""
    try:
        from .operations import operations
    except ModuleNotFoundError:  # Not every extra that builds brings `onnx`.
        return {}
    return {graph: count for graph, path in graphs.items() if (count := operations(path))}


def _parts(graphs: Iterable[Path], progress: Progress) -> list[Progress]:
    """A `Progress` for every graph, each a part of ``progress`` after the size of its files."""
    costs = [
        _COMPILE_BYTES + sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*")) for path in graphs
    ]
    ends = [sum(costs[:n]) / sum(costs) for n in range(len(costs) + 1)]
    return [portion(progress, *pair) for pair in pairwise(ends)]


def _check_signature(path: Path, graph: str, compiled: Compiled, wanted: EngineSpec) -> None:
    """Refuse a graph that takes or gives other tensors than the one whose name it has."""
    takes, (output, given) = tensors(wanted.model, wanted.dtype, graph, batch=-1)
    for kind, expected, found in (
        ("takes", takes, compiled.inputs),
        ("gives", {output: given}, compiled.outputs),
    ):
        shapes = {name: tensor.shape for name, tensor in expected.items()}
        if found != shapes:
            raise GraphsError(
                f"`{path}` {kind} {_listed(found)} where the model's {graph} {kind} {_listed(shapes)}: {REMEDY}"
            )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Tensors by name, as in ``sample [B, 4, 32, 32]``; a size that is not fixed is a batch."""
    return ", ".join(
        f"{printable(name)} [{', '.join('B' if size == -1 else str(size) for size in shape)}]"
        for name, shape in shapes.items()
    )


def _check_dtype(source: Path, graphs: GraphsSpec, dtype: DType | None) -> None:
    if dtype is not None and dtype != graphs.dtype:
        raise InputError(
            f"the graphs in `{source}` are {graphs.dtype}: leave `--dtype` out or export the model again with "
            f"`stage-rt export --dtype {dtype}`"
        )
