"""``stage-rt evaluate``: whether the pairs of an engine help a segmenter, beside other ways to make pairs."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from stage_rt.cli import console
from stage_rt.names import RecipeName, SegmenterName, SizeName


def evaluate(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="The object's folder that the model was trained on.")
    ],
    engine: Annotated[
        list[Path],
        typer.Option(
            metavar="ENGINE",
            help="Engine of a model from `stage-rt train --hold-out`. Given several times, of models with "
            "another `--seed` each: all their splits, and the mean.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="RESULTS", help="Folder of runs, results and the page.")
    ],
    size: Annotated[
        SizeName,
        typer.Option(help="`cpu`: up to 384 px and a small network, about an hour. `paper`: the paper's."),
    ] = "cpu",
    sources: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated: ours, ours-1000, ours-10, ours-whole, ours-once, ours-shifted, realnet, "
            "cutpaste, draem, nsa, glass, procedural, or NAME=DIR of a published run.",
        ),
    ] = "cutpaste,draem,nsa,ours",
    segmenter: Annotated[
        SegmenterName | None, typer.Option(help="Which network learns.", show_default="the size's")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Trained weights (safetensors) its encoder begins with.",
            show_default="random weights",
        ),
    ] = None,
    types: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Comma-separated defect types.", show_default="all")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Segmenters trained for every row.")] = 3,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Pairs of a type from each source.", show_default="the size's")
    ] = None,
    recipe: Annotated[
        RecipeName | None,
        typer.Option(help="Branch plan or ablation for our own pairs.", show_default="the model's"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train segmenters with and without painted pairs and test them on photographs that nothing has seen.

    The same command again goes on; what was computed is kept by its content.
    """
    from functools import partial

    from stage_rt.cli.progress import watched_share
    from stage_rt.loading import load

    with console.extra("quality"):
        from stage_rt.quality.evaluate import Request, run

    given = {
        "size": size,
        "sources": sources,
        "segmenter": segmenter,
        "encoder": encoder,
        "types": types,
        "seeds": seeds,
        "pairs": pairs,
        "recipe": recipe,
    }
    loaded = {
        name: load(path, notify=partial(console.message, "notice")) for name, path in _named(engine).items()
    }
    request = Request(
        root=data,
        size=size,
        sources=[name for name in sources.split(",") if name],
        segmenter=segmenter,
        encoder=encoder,
        types=types.split(",") if types else None,
        seeds=seeds,
        pairs=pairs,
        recipe=recipe,
        command=_command(data, engine, output, given),
    )
    with watched_share("evaluating") as progress:
        done = run(loaded, request, output, say=console.messages().print, progress=progress)
    console.result(done.text, done.result, as_json=as_json)


def _named(engines: Sequence[Path]) -> dict[str, Path]:
    """The engines by the names of their folders, which those of their results have."""
    from stage_rt.errors import InputError

    named: dict[str, Path] = {}
    for path in engines:
        name = path.resolve().name
        if name in named:
            raise InputError(
                f"`{named[name]}` and `{path}` are both called {name!r}: results of one would be the other's",
                "rename one of the folders",
            )
        named[name] = path
    return named


def _command(data: Path, engines: Sequence[Path], output: Path, given: Mapping[str, object]) -> str:
    """The command that gives the same result, with every option that is not the size's or the model's own."""
    options = [
        word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))
    ]
    chosen = [word for engine in engines for word in ("--engine", str(engine))]
    return shlex.join(["stage-rt", "evaluate", str(data), *chosen, "-o", str(output), *options])
