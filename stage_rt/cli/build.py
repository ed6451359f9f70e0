"""``stage-rt build``: a model or its graphs compiled for a backend."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from stage_rt.cli import console
from stage_rt.names import BackendChoice, BackendName, DType

DEFAULT_BATCH = 8


def batches_of(text: str) -> list[int]:
    """Batch sizes with commas between them."""
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a batch size, nor several with commas between them"
        ) from None


def build(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_OR_GRAPHS", help="Folder made by `stage-rt train`, `import` or `export`."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ENGINE", help="Folder to write.")],
    backend: Annotated[
        BackendChoice,
        typer.Option(
            help="Inference library to build for; `auto` tries what is installed for a CPU and keeps the fastest, "
            "where there is no GPU."
        ),
    ] = "onnxruntime",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SMS",
            help="GPUs that tensorrt-rtx builds for, as `sm86` or `sm86,sm89,sm120`, or `current`; it needs none of "
            "them here, while tensorrt builds for the GPU here alone.",
            show_default="sm86,sm89,sm120 for tensorrt-rtx",
        ),
    ] = None,
    dtype: Annotated[
        DType | None,
        typer.Option(
            help="Of weights and arithmetic.",
            show_default="the graphs' own, or fp32; fp16 for inductor and torch",
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            metavar="SIZES",
            help="Samples a call, as `8` or `1,8,32`; the largest is used by `synth`, and a GPU pads a smaller batch "
            "to the next.",
        ),
    ] = str(DEFAULT_BATCH),
    force: Annotated[
        bool, typer.Option("--force", help="Replace an engine of another backend in ENGINE.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile MODEL_OR_GRAPHS into an engine folder; one that is up to date already is left alone."""
    from stage_rt.files import check_apart

    check_apart(source, output)
    sizes = batches_of(batch)
    targets = target.lower().split(",") if target else None
    if backend == "auto":
        written = compile_fastest(source, output, dtype, sizes, targets, force=force)
    elif backend in ("inductor", "torch"):
        written = compile_model(source, output, backend, dtype or "fp16", sizes, targets, force=force)
    else:
        written = compile_graphs(source, output, backend, dtype, sizes, targets, force=force)
    text = f"engine `{output}`" if written else f"engine `{output}` is up to date"
    console.result(text, {"engine": str(output), "written": written}, as_json=as_json)


def compile_model(
    source: Path,
    output: Path,
    backend: BackendName,
    dtype: DType,
    batch: Sequence[int],
    targets: Sequence[str] | None,
    *,
    force: bool = False,
) -> bool:
    """Build a model folder with PyTorch, which starts from the model itself and builds for the GPU here."""
    from stage_rt.errors import InputError
    from stage_rt.folders import check_replaceable
    from stage_rt.spec import MODEL_FILE

    check_replaceable(output, backend, force=force)
    if targets is not None:
        raise InputError(f"`--backend {backend}` builds for the GPU of this machine: leave `--target` out")
    if not (source / MODEL_FILE).is_file():
        raise InputError(
            f"`{source}` holds no model ({MODEL_FILE}): `--backend {backend}` takes no ONNX graphs"
        )
    with console.messages().status("reading the model") as status:
        with console.extra("export"):
            from stage_rt.export.pytorch import build as run
        return run(source, output, backend, dtype=dtype, batch=batch, say=status.update)


def compile_fastest(
    source: Path,
    output: Path,
    dtype: DType | None,
    batch: Sequence[int],
    targets: Sequence[str] | None,
    *,
    force: bool = False,
) -> bool:
    """Compile a graphs or model folder for every backend of a CPU, and keep the one whose UNet is fastest here."""
    from stage_rt.engines.auto import candidates, fastest, judge, told
    from stage_rt.engines.build import build as run
    from stage_rt.engines.build import is_current
    from stage_rt.engines.graphs import read_graphs
    from stage_rt.errors import InputError
    from stage_rt.export.origin import origin
    from stage_rt.files import disk_failures
    from stage_rt.folders import check_replaceable

    if targets is not None:
        raise InputError(
            "`--target` names GPUs, but `--backend auto` compares engines for a CPU: leave it out"
        )
    exported = _is_model(source)
    found = candidates([dtype] if dtype else None if exported else [read_graphs(source).dtype])
    origins = {each.dtype: origin(source, each.dtype) if exported else None for each in found}
    for each in found:
        made_of = origins[each.dtype]
        if made_of and is_current(output, made_of, backend=each.backend, batch=batch, dtype=each.dtype):
            if len(found) > 1:
                # Another command may have made it, which compared nothing.
                console.message(
                    "notice",
                    f"nothing was measured, as `{output}` holds {each} of this model already: remove it to have all "
                    "tried again",
                )
            return False
    # What it chose the last time is its own to replace; another engine took its time to build.
    own = _backend_in(output) in {each.backend for each in found}
    check_replaceable(output, found[0].backend, force=force or own)
    with disk_failures(output), _beside(output) as scratch, ExitStack() as kept:
        graphs = {
            each: kept.enter_context(_exported(source, output, each, hoist=False)) if exported else source
            for each in origins
        }
        folders = {each: scratch / f"{each.backend}-{each.dtype}" for each in found}
        with console.messages().status("building and measuring"):
            for each, folder in folders.items():
                run(graphs[each.dtype], folder, backend=each.backend, batch=batch)
            judged = judge(folders)
        best = fastest(judged)
        console.message("notice", told(judged, best, max(batch)))
        return run(
            graphs[best.candidate.dtype],
            output,
            backend=best.candidate.backend,
            batch=batch,
            origin=origins[best.candidate.dtype],
            force=True,
        )


def compile_graphs(
    source: Path,
    output: Path,
    backend: BackendName = "onnxruntime",
    dtype: DType | None = None,
    batch: Sequence[int] = (DEFAULT_BATCH,),
    targets: Sequence[str] | None = None,
    *,
    force: bool = False,
) -> bool:
    """Compile a graphs folder, or a model folder, which is exported on the way; whether an engine was written."""
    from functools import partial

    from stage_rt.backends.tensorrt import FLAVOURS
    from stage_rt.cli.progress import watched_share
    from stage_rt.engines.build import build as run
    from stage_rt.engines.build import is_current
    from stage_rt.export.origin import origin
    from stage_rt.folders import check_replaceable

    exported = _is_model(source)
    made_of = None
    if exported:
        dtype = dtype or "fp32"
        made_of = origin(source, dtype)
        # An export takes minutes: what is there already, and what cannot be built, is found out before it.
        if is_current(output, made_of, backend=backend, batch=batch, dtype=dtype, targets=targets):
            return False
        check_replaceable(output, backend, force=force)
    with (
        _exported(source, output, dtype, hoist=backend in FLAVOURS)
        if dtype and exported
        else nullcontext(source) as graphs,
        watched_share("building") as progress,
    ):
        return run(
            graphs,
            output,
            backend=backend,
            batch=batch,
            dtype=dtype,
            targets=targets,
            origin=made_of,
            force=force,
            notify=partial(console.message, "notice"),
            progress=progress,
        )


def _is_model(source: Path) -> bool:
    """Whether ``source`` holds a model, which is exported on the way, and not graphs."""
    from stage_rt.errors import InputError
    from stage_rt.spec import GRAPHS_FILE, MODEL_FILE

    if (source / GRAPHS_FILE).is_file():
        return False
    if not (source / MODEL_FILE).is_file():
        raise InputError(
            f"`{source}` holds neither a model ({MODEL_FILE}) nor graphs ({GRAPHS_FILE}): make one with "
            "`stage-rt train` or `stage-rt export`"
        )
    return True


def _backend_in(folder: Path) -> BackendName | None:
    from stage_rt.errors import EngineError
    from stage_rt.folders import read_engine

    try:
        return read_engine(folder).backend
    except EngineError:
        return None


@contextmanager
def _exported(source: Path, output: Path, dtype: DType, *, hoist: bool) -> Iterator[Path]:
    """The graphs of a model, in a folder beside ``output`` for as long as it takes; hoisted for GPUs."""
    from stage_rt.files import disk_failures

    with disk_failures(output), _beside(output) as folder:
        with console.messages().status("reading the model") as status:
            with console.extra("export"):
                from stage_rt.export.graphs import export
            export(source, folder, dtype=dtype, hoist=hoist, say=status.update)
        yield folder


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` for as long as the block takes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        yield Path(folder)
