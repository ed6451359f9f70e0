"""``stage-rt verify``: an engine held against its model in torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stage_rt.cli import console

if TYPE_CHECKING:
    from stage_rt.export.verify import Error, Report, Row


def verify(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Folder made by `stage-rt build`.")],
    model: Annotated[Path, typer.Option(metavar="MODEL", help="Model folder the engine was built from.")],
    prompt: Annotated[
        str | None, typer.Option(help="What the trajectory paints.", show_default="the first by name")
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1000,
            help="How many the graphs are compared at, evenly spread.",
            show_default="16; 4 with --quick",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A trajectory of 50 network calls instead of all, in minutes.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PNG", help="Draw the errors against the timestep."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
) -> None:
    """Check that ENGINE computes what MODEL does in PyTorch: every network at every batch, then a whole picture.

    Prints the worst of each; ends with exit code 3 if one is beyond its tolerance.
    """
    from stage_rt.cli.progress import counting_bar
    from stage_rt.errors import InputError
    from stage_rt.files import disk_failures, try_out, write_atomic
    from stage_rt.folders import read_engine

    # Asked now: it is written at the end of what may be an hour.
    if output is not None:
        if output.suffix.lower() != ".png" or output.is_dir():
            raise InputError(f"`{output}` is no name for a picture: choose one that ends in `.png`")
        try_out(output)
    spec = read_engine(engine)
    with console.extra("export"):
        from stage_rt.export.verify import QUICK_TIMESTEPS, TIMESTEPS, require, work
        from stage_rt.export.verify import verify as run

        if output is not None:
            from stage_rt.export.plots import plot_errors
    timesteps = timesteps or (QUICK_TIMESTEPS if quick else TIMESTEPS)
    with counting_bar(work(spec, timesteps, quick=quick), "steps") as progress:
        report = run(engine, model, prompt=prompt, timesteps=timesteps, quick=quick, progress=progress)
    console.result(_table(report.rows), _fields(report), as_json=as_json)
    if output is not None:
        with disk_failures(output):
            write_atomic(output, plot_errors(report))
    require(report)


def _table(rows: Sequence["Row"]) -> str:
    width = max(len(row.subject) for row in rows)
    lines = [f"{'worst of':<{width}}   max abs   max rel      cosine  tolerance"]
    lines += [
        f"{row.subject:<{width}}  {row.worst.max_abs:>8.1e}  {row.worst.max_rel:>8.1e}  "
        f"{row.worst.cosine:>10.8f}  {row.tolerance:>9.0e}  {'pass' if row.passed else 'FAIL'}"
        for row in rows
    ]
    return "\n".join(lines)


def _fields(report: "Report") -> dict[str, object]:
    return {
        "passed": all(row.passed for row in report.rows),
        "dtype": report.dtype,
        "prompt": report.prompt,
        "worst": [
            {"subject": row.subject, **_error(row.worst), "tolerance": row.tolerance, "passed": row.passed}
            for row in report.rows
        ],
        "graphs": [
            {"graph": point.graph, "batch": point.batch, "timestep": point.timestep, **_error(point.error)}
            for point in report.points
        ],
        "trajectory": [{"iteration": i, **_error(error)} for i, error in report.trajectory.items()],
    }


def _error(error: "Error") -> dict[str, float | None]:
    # JSON knows no NaN.
    return {name: value if math.isfinite(value) else None for name, value in error._asdict().items()}
