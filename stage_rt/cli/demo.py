"""``stage-rt demo``: the whole job on the small model that comes with the repository."""

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
) -> None:
    """Build the demo engine and paint one pair for every mask that comes with it."""
    from functools import partial

    from stage_rt import layouts, report
    from stage_rt.cli.build import build
    from stage_rt.cli.progress import progress_bar
    from stage_rt.errors import DatasetError
    from stage_rt.loading import load
    from stage_rt.outputs import defect_type
    from stage_rt.run import Job, fill

    inputs = model / "inputs"
    if not inputs.is_dir():
        raise DatasetError(
            f"`{inputs}` is missing: run the demo in a checkout of the repository or name its `models/demo` "
            "with `--model`"
        )
    photographs = layouts.normals(inputs / "normals")
    build(model, output / "engine")
    notify = partial(console.message, "notice")
    engine = load(output / "engine", notify=notify)
    jobs = [
        Job(photographs, masks, prompt, count=len(masks), seed=0, composite=True, batch=len(masks))
        for prompt in engine.prompts
        if (masks := layouts.masks(inputs / "masks" / defect_type(prompt)))
    ]
    total, sheets, pairs = sum(job.count for job in jobs), [], 0
    with console.orderly_stop() as check, progress_bar(total, "pairs") as show:

        def progress(before: int, done: float) -> None:
            check()
            show(before + done)

        for job in jobs:
            summary = fill(
                engine,
                job,
                output / defect_type(job.prompt),
                notify=notify,
                progress=partial(progress, pairs),
            )
            sheets.append(summary.contact_sheet)
            pairs += summary.pairs
    sheet = output / report.CONTACT_SHEET
    report.stack(sheets, sheet)
    typer.echo(f"{pairs} pairs in `{output}`\ncontact sheet `{sheet}`")
