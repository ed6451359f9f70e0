"""``stage-rt calibrate``: the fewest steps whose pairs cannot be told from those of all steps."""

import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stage_rt.cli import console

if TYPE_CHECKING:
    from stage_rt.run.fewest import Fewest


def calibrate(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder made by `stage-rt build`.")],
    normals: Annotated[Path, typer.Option(metavar="DIR", help="Photographs of good parts.")],
    masks: Annotated[Path, typer.Option(metavar="DIR", help="Masks, white where a defect shall be.")],
    prompt: Annotated[str, typer.Option(metavar="NAME", help="What to paint, as the model names it.")],
    pairs: Annotated[
        int, typer.Option(min=8, max=9999, help="How many are painted; fewer find larger numbers of steps.")
    ] = 24,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Decides the pairing and the noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
) -> None:
    """Find how few steps do on your own files, and keep it in ENGINE for `stage-rt synth --steps auto`.

    Paints the pairs twice with all steps and then with ever more until nothing that is measured of their labels tells
    them from those of all steps: as long as two to three times that many pairs take, once. Stopped, the same command
    goes on.
    """
    from stage_rt.cli.progress import watched_share
    from stage_rt.images import layouts
    from stage_rt.loading import load
    from stage_rt.run.fewest import fewest_steps, keep
    from stage_rt.run.job import Job
    from stage_rt.run.writer import defect_type

    def notify(notice: str) -> None:
        console.message("notice", notice)

    with closing(load(engine, notify=notify)) as opened:
        batch = max(opened.spec.batch)
        labels = layouts.masks(masks, defect_type(prompt))
        job = Job(layouts.normals(normals), labels, prompt, pairs, seed, True, batch)
        with watched_share("measuring") as progress:
            found = fewest_steps(opened, job, notify=notify, progress=progress)
    keep(engine, opened.spec, prompt, found.steps)
    fields = {
        "prompt": prompt,
        "pairs": pairs,
        "steps": found.steps,
        # JSON knows no infinity.
        "rows": [
            {name: value if math.isfinite(value) else None for name, value in row._asdict().items()}
            for row in found.rows
        ],
    }
    console.result(_table(found, prompt), fields, as_json=as_json)


def _table(found: "Fewest", prompt: str) -> str:
    lines = ["steps   fill  contrast  fill off  contrast off   (of what another seed changes)"]
    lines += [
        f"{row.steps:>5}  {row.fill:>5.3f}  {row.contrast:>8.1f}  {row.fill_off:>8.2f}  {row.contrast_off:>12.2f}"
        for row in found.rows
    ]
    return "\n".join([*lines, f"`--steps auto` is {found.steps} for prompt {prompt!r} from now on"])
