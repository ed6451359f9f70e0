"""``stage-rt export-triton``: graphs as a model repository for shops that have Triton."""

from pathlib import Path
from typing import Annotated

import typer

from stage_rt.cli import console


def export_triton(
    graphs: Annotated[
        Path, typer.Argument(metavar="GRAPHS", help="Graphs folder made by `stage-rt export`.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="REPOSITORY", help="Model repository to write.")
    ],
    name: Annotated[
        str, typer.Option(help="Of the model that paints pairs; the names of its networks begin with it.")
    ] = "stage",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write GRAPHS as models for NVIDIA's Triton Inference Server: each network, and one that paints pairs with them.

    It takes graphs because those of an engine are for one version of ONNX Runtime, and Triton has its own.
    """
    from stage_rt.engines.triton import write_repository

    models = write_repository(graphs, output, name=name)
    text = f"{len(models)} models in `{output}`: " + ", ".join(f"`{model}`" for model in models)
    console.result(text, {"repository": str(output), "models": models}, as_json=as_json)
