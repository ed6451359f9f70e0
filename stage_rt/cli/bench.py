"""``stage-rt bench``: how fast an engine is here, and where its time goes."""

from pathlib import Path
from typing import Annotated

import typer

from stage_rt.cli import console


def bench(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Folder made by `stage-rt build`.")],
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES", help="Pairs at a time, as `1,8`.", show_default="1, 2, 4 .. the engine's largest"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=10, max=1000, help="Network calls a pair that are measured.", show_default="50"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed batches of each size.")] = 5,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw time against batch, and where it goes.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Say how much faster or slower than this earlier result."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
) -> None:
    """Paint pairs of noise with ENGINE and tell the time: by batch, by stage, beside what the machine can do.

    Medians and quartiles by the wall's clock: let nothing else run. Compare only what ran on the same machine.
    """
    from stage_rt.bench.result import read_result
    from stage_rt.bench.stages import bench as run
    from stage_rt.cli.build import batches_of
    from stage_rt.cli.progress import watched_share
    from stage_rt.errors import InputError
    from stage_rt.files import disk_failures, try_out, write_atomic

    if plot is not None:
        if plot.suffix.lower() != ".png" or plot.is_dir():
            raise InputError(f"`{plot}` is no name for a picture: choose one that ends in `.png`")
        try_out(plot, "--plot")
        with console.extra("export"):
            from stage_rt.bench.plot import plot as draw
    earlier = read_result(compare) if compare else None
    with watched_share("measuring") as progress:
        result = run(
            engine,
            batches=batches_of(batch) if batch else None,
            steps=steps,
            rounds=rounds,
            notify=lambda notice: console.message("notice", notice),
            progress=progress,
        )
    text = result.table() if earlier is None else f"{result.table()}\n\n{result.compared(earlier)}"
    console.result(text, result.model_dump(mode="json"), as_json=as_json)
    if as_json and earlier is not None:
        console.message("notice", result.compared(earlier).replace("\n", "; "))
    if plot is not None:
        with disk_failures(plot, "--plot"):
            write_atomic(plot, draw(result))
