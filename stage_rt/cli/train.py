"""``stage-rt train``: a small model from a folder of photographs."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stage_rt.cli import console
from stage_rt.names import PresetName, SystemName, ViewName, WeightDType


def train(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Folder in the MVTec AD layout, or a folder of such folders."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="Model folder to write.")],
    preset: Annotated[
        PresetName,
        typer.Option(
            help="`tiny`: 64 px, a CPU, an hour or two. `night`: 128 px, a CPU, some hours. `small`: 256 px, one GPU."
        ),
    ] = "tiny",
    system: Annotated[
        SystemName,
        typer.Option(
            help="Whose networks guide the UNet: STAGE's two adapters a type, or FAST's one and a foreground network "
            "(docs/samplers.md), for `synth --sampler fast`."
        ),
    ] = "stage",
    view: Annotated[
        ViewName,
        typer.Option(
            help="`region`: crops around defects, so that small ones count. `whole`: whole photographs."
        ),
    ] = "region",
    turn: Annotated[
        bool, typer.Option(help="Turn crops by quarters; not where up and down matter on the part.")
    ] = True,
    rim: Annotated[
        bool,
        typer.Option(
            "--rim", help="Let painted defects fade out a few pixels beyond their labels, where real ones do."
        ),
    ] = False,
    hold_out: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=0.9,
            help="Share of each type's labelled defects that training must not see; the model lists them.",
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Seed of every random draw.")] = 0,
    dtype: Annotated[WeightDType, typer.Option(help="Dtype of the weights on disk.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a model on photographs of good parts and of labelled defects, one data set or several.

    First what surface and defects look like (the UNet), then how to keep to a mask (adapters of each type).
    The same command again goes on where it was interrupted.
    """
    from stage_rt.cli.progress import watched_stages

    with console.extra("export"):
        from stage_rt.training.train import train as run

    with watched_stages("loss") as report:
        run(
            data,
            output,
            preset=preset,
            system=system,
            view=view,
            turn=turn,
            rim=rim,
            hold_out=hold_out,
            seed=seed,
            dtype=dtype,
            report=report,
            say=console.messages().print,
            notify=partial(console.message, "notice"),
        )
    console.result(f"model `{output}`", {"model": str(output)}, as_json=as_json)
