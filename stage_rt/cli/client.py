"""``stage-rt client``: a pair painted by a server."""

import os
from pathlib import Path
from typing import Annotated

import typer

from stage_rt.cli import console

TOKEN = "STAGE_RT_TOKEN"


def client(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of a `stage-rt serve`.")],
    image: Annotated[Path, typer.Option(metavar="FILE", help="Photograph of a good part.")],
    mask: Annotated[Path, typer.Option(metavar="FILE", help="Mask, white where the defect shall be.")],
    prompt: Annotated[str, typer.Option(metavar="NAME", help="What to paint.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Data set of such pairs that it is put into."),
    ],
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which engine, where there are several.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Network calls the pair takes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Have a server paint one pair, and put it into the data set DIR.

    A token that the server asks for is taken from the environment's STAGE_RT_TOKEN.
    """
    with console.extra("serve"):
        from stage_rt.serve.client import AddressError, Client, paint_file

    try:
        client = Client(url, os.environ.get(TOKEN))
    except AddressError as error:
        raise typer.BadParameter(str(error), param_hint="URL") from None
    with client as server:
        state = paint_file(server, image, mask, output, prompt, engine=engine, seed=seed, steps=steps)
    weak = f", weak: a square of it less than {state['min_fill']:.0%}" if state["weak"] else ""
    console.result(
        f"`{state['image']}`, {state['fill']:.0%} of the label painted{weak}", state, as_json=as_json
    )
