"""``stage-rt merge``: the shards of a run, joined."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(metavar="SHARD...", help="Folders of `stage-rt synth --shard`, all of a run."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.")],
    normals: Annotated[
        list[Path],
        typer.Option(metavar="DIR", help="Photographs that the parts were given; may be given again."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Join the shards of a run to the folder that one `stage-rt synth` would have filled."""
    from stage_rt.cli.filling import tell_all, tell_one
    from stage_rt.cli.progress import watched_share
    from stage_rt.packs.merge import merge as join
    from stage_rt.run.night import TYPES

    with watched_share("merging") as progress:
        summaries = join(shards, normals, output, progress)
    if (output / TYPES).is_dir():
        tell_all(summaries, output, as_json=as_json)
    else:
        [summary] = summaries.values()
        tell_one(summary, output, as_json=as_json)
