"""``stage-rt pack``: finished runs, and real photographs with them, as one data set for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stage_rt.cli import console
from stage_rt.errors import amount
from stage_rt.names import PackName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stage_rt.packs.pack import Summary
    from stage_rt.packs.picture import Side


def pack(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs of `stage-rt synth`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the data set.")],
    layout: Annotated[
        PackName,
        typer.Option(
            "--format",
            help="What shall read it (docs/packs.md): anomalib `mvtec`, detectron2 and others `coco`, ultralytics "
            "`yolo`, mmsegmentation `mmseg`.",
        ),
    ],
    split: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Share to train on; all pairs of one photograph stay on one side. With `--real` all photographs of "
            "one real defect do, and every pair is to train on.",
        ),
    ] = 0.8,
    seed: Annotated[int, typer.Option(help="Decides which photographs are held out.")] = 0,
    normals: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Photographs the runs were painted into, to go along as good parts; may be given again.",
            show_default="none",
        ),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="The data set the model was trained on: its labelled photographs go along, and only real ones "
            "validate.",
            show_default="none",
        ),
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(
            metavar="ENGINE",
            help="With `--real`: the engine of the runs, of a model from `stage-rt train --hold-out`; what that held "
            "out validates, whatever `--split` says.",
            show_default="none",
        ),
    ] = None,
    no_weak: Annotated[
        bool, typer.Option("--no-weak", help="Leave out pairs whose label was painted too little.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Merge the pairs of finished runs into DIR, which other tools open as it is."""
    from stage_rt.cli.progress import watched_share
    from stage_rt.packs import FORMATS
    from stage_rt.packs.pack import Request
    from stage_rt.packs.pack import pack as write
    from stage_rt.packs.pictures import IN_TRAIN

    request = Request(runs, layout, split, seed, normals or (), weak=not no_weak, real=real, engine=engine)
    with watched_share("packing") as progress:
        summary = write(request, output, progress)
    if skipped := summary.skipped.get(IN_TRAIN):
        photographs = "its photograph is" if skipped == 1 else "their photographs are"
        console.message(
            "notice",
            f"{amount(skipped, 'pair')} left out, as {photographs} in `train/good`: `--split 0` keeps every pair and "
            "leaves `train/good` empty, a `--split` below "
            f"{split:g} or more photographs that nothing was painted into keep more",
        )
    if layout == "mvtec" and not summary.pictures["train"]:
        fix = "take a larger `--split`" if normals else "add `--normals DIR`"
        console.message("notice", f"`train/good` is empty, which anomalib does not train on: {fix}")
    if real is not None and engine is None:
        console.message(
            "notice",
            "the model that painted may have learned from photographs that validate: with `--engine ENGINE` those "
            "that its training held out do (`stage-rt train --hold-out`)",
        )
    console.result(_text(summary, output, FORMATS[layout].called), _fields(summary, output), as_json=as_json)


def _text(summary: "Summary", output: Path, called: "Mapping[Side, str]") -> str:
    total = sum(map(summary.pairs, summary.pictures))
    along = sum(sum(each.values()) for each in summary.real.values())
    told = amount(total, "pair")
    if along:
        told = f"{amount(total, 'painted pair')} and {amount(along, 'labelled photograph')}"
    lines = [f"{told} in `{output}`"]
    lines += [f"{called[side]:<5} {_side(summary, side)}" for side in summary.pictures]
    if summary.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.items())
        lines.append(f"left out: {reasons}")
    return "\n".join(lines)


def _side(summary: "Summary", side: "Side") -> str:
    from stage_rt.run.writer import GOOD

    pair = "painted pair" if summary.real else "pair"
    counts = ((pair, summary.painted(side)), ("labelled photograph", summary.real.get(side, {})))
    told = [_kinds(noun, kinds) for noun, kinds in counts if kinds]
    if number := summary.pictures[side].get(GOOD):
        told.append(amount(number, "good photograph"))
    return ", ".join(told) or "nothing"


def _kinds(noun: str, kinds: "Mapping[str, int]") -> str:
    each = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return f"{amount(sum(kinds.values()), noun)} ({each})"


def _fields(summary: "Summary", output: Path) -> dict[str, object]:
    return {
        "pack": str(output),
        "classes": summary.classes,
        "pairs": {side: summary.pairs(side) for side in summary.pictures},
        "pictures": summary.pictures,
        **({"real": summary.real} if summary.real else {}),
        "skipped": summary.skipped,
    }
