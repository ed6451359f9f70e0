"""What makes a filled folder a data set that other tools open, and a page to look at."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from stage_rt.run import report
from stage_rt.run.good import place_good


def publish(
    folder: Path, parts: Sequence[report.Part], normals: Mapping[Path, str], painted: Iterable[Path] = ()
) -> None:
    """Put the good photographs ``normals``, with their sha256, beside the pairs of finished runs; write their report.

    ``painted`` are photographs that runs which are not in the report were painted into. Its parts are in the order of
    their prompts, whatever the order they were painted in.
    """
    parts = sorted(parts, key=lambda part: part.spec.prompt)
    good = place_good(folder, normals, chain(painted, *(part.photographs for part in parts)), normals)
    report.write(folder, parts, good)
