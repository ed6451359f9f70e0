"""``stage-rt demo``: the whole job on the small model that comes with the repository."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from stage_rt.cli import console


def demo(
    model: Annotated[
        Path, typer.Option(metavar="MODEL", help="Model folder with `inputs/normals` and `inputs/masks`.")
    ] = Path("models/demo"),
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")] = Path(
        "stage-rt-demo"
    ),
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Network calls a pair takes, 10 to 1000; fewer are faster.", show_default="1000"
        ),
    ] = None,
) -> None:
    """Build the demo engine and paint one pair for every mask that comes with it."""
    from functools import partial

    from stage_rt.cli.build import compile_graphs
    from stage_rt.cli.progress import watched_bar
    from stage_rt.errors import DatasetError, amount
    from stage_rt.images import layouts
    from stage_rt.loading import load
    from stage_rt.run.job import Job
    from stage_rt.run.night import follow_all, plans
    from stage_rt.run.painters import Alone
    from stage_rt.run.report import CONTACT_SHEET, PAGE
    from stage_rt.run.writer import defect_type

    inputs = model / "inputs"
    if not inputs.is_dir():
        raise DatasetError(
            f"`{inputs}` is missing: run the demo in a checkout of the repository or name its `models/demo` "
            "with `--model`"
        )
    photographs = layouts.normals(inputs / "normals")
    compile_graphs(model, output / "engine")
    notify = partial(console.message, "notice")
    with closing(load(output / "engine", notify=notify)) as engine:
        jobs = [
            Job(
                photographs,
                masks,
                prompt,
                count=len(masks),
                seed=0,
                composite=True,
                batch=len(masks),
                steps=steps,
            )
            for prompt in engine.prompts
            if (masks := layouts.masks(inputs / "masks" / defect_type(prompt)))
        ]
        total, run = sum(job.count for job in jobs), output / "run"
        with watched_bar(lambda: total, "pairs") as (checking, progress):
            made = plans(engine.spec, jobs, notify=notify, progress=checking)
            summaries = follow_all(Alone(engine), made, run, notify=notify, progress=progress)
    pairs = sum(summary.pairs for summary in summaries.values())
    typer.echo(
        f"{amount(pairs, 'pair')} in `{run}`\ncontact sheet `{run / CONTACT_SHEET}`\npage `{run / PAGE}`"
    )
