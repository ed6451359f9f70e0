"""``stage-rt build``: a model or its graphs compiled for a backend."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stage_rt.cli import console
from stage_rt.cli.export import GraphDtype

if TYPE_CHECKING:
    from rich.status import Status


class BackendOption(StrEnum):
    """Inference libraries an engine can be built for."""

    ONNXRUNTIME = "onnxruntime"


def _batches(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise typer.BadParameter(f"{text!r} is not a batch size, nor several with commas between them")
    return sizes


def build(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL_OR_GRAPHS", help="Folder made by `stage-rt train` or `export`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ENGINE", help="Folder to write.")],
    backend: Annotated[
        BackendOption, typer.Option(help="Inference library to build for.")
    ] = BackendOption.ONNXRUNTIME,
    dtype: Annotated[
        GraphDtype | None,
        typer.Option(help="Of weights and arithmetic.", show_default="the graphs' own, or fp32"),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            metavar="SIZES", help="Samples a call, as `8` or `1,8,32`; the largest is used by `synth`."
        ),
    ] = "8",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile MODEL_OR_GRAPHS into an engine folder; one that is up to date already is left alone."""
    sizes = _batches(batch)
    from stage_rt.engines.build import build as run

    with (
        console.messages().status("reading") as status,
        _graphs(source, output, backend, dtype, status) as graphs,
    ):
        written = run(
            graphs,
            output,
            backend=backend.value,
            batch=sizes,
            dtype=dtype.value if dtype else None,
            say=status.update,
        )
    text = f"engine `{output}`" if written else f"engine `{output}` is up to date"
    console.result(text, {"engine": str(output), "written": written}, as_json=as_json)


@contextmanager
def _graphs(
    source: Path, output: Path, backend: BackendOption, dtype: GraphDtype | None, status: "Status"
) -> Iterator[Path]:
    """The graphs of ``source``: itself, or exported into a folder beside ``output`` for as long as it takes."""
    from stage_rt.errors import InputError
    from stage_rt.spec import GRAPHS_FILE, MODEL_FILE

    if (source / GRAPHS_FILE).is_file():
        yield source
        return
    if not (source / MODEL_FILE).is_file():
        raise InputError(
            f"`{source}` holds neither a model ({MODEL_FILE}) nor graphs ({GRAPHS_FILE}): make one with "
            "`stage-rt train` or `stage-rt export`"
        )
    from stage_rt.engines.build import require_dtype

    wanted = dtype or GraphDtype.FP32
    require_dtype(backend.value, wanted.value)
    with console.extra("export"):
        from stage_rt.export.graphs import export
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        export(source, Path(folder), dtype=wanted.value, say=status.update)
        yield Path(folder)
