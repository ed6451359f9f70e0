"""``stage-rt synth``: fill a folder with image and mask pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stage_rt.names import RecipeName, SamplerName, SolverName, ViewName

INPUTS, AMOUNT, LOOK = "What, and where to", "How much, and how long", "How it looks"
LABELS, MACHINES = "Labels", "Machines"
"""Panels of the help."""

if TYPE_CHECKING:
    from stage_rt.run.jobs import Entry
    from stage_rt.spec import EngineSpec


def synth(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder made by `stage-rt build`.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            help="Folder of the pairs.",
            rich_help_panel=INPUTS,
        ),
    ],
    normals: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Photographs of good parts.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Masks, white where a defect shall be.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to paint, as the model names it.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="NAME=DIR[:COUNT]",
            help="A prompt, its masks and how many pairs, in place of --prompt and --masks; give it once for each "
            "type.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A list of jobs (docs/night.md), YAML or JSON lines; other options are for those that say nothing.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check every file, say how long one process will take and how large the run will be, paint nothing.",
            rich_help_panel=AMOUNT,
        ),
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=999_999,
            help="Number of pairs.",
            show_default="one per mask",
            rich_help_panel=AMOUNT,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=2**64 - 1,
            help="Decides the pairing and the noise.",
            rich_help_panel=AMOUNT,
        ),
    ] = 0,
    composite: Annotated[
        bool,
        typer.Option(
            help="Keep the photograph's pixels beyond the mask, and its size.",
            rich_help_panel=LOOK,
        ),
    ] = True,
    sampler: Annotated[
        SamplerName,
        typer.Option(
            help="How to paint. `stage` is the method; the others (docs/samplers.md) are there to compare with. "
            "FAST's need a model for it, the rest do without adapters: AnoGen's, RePaint, AnomalyDiffusion's, "
            "RealNet's, which changes good surface a little.",
            rich_help_panel=LOOK,
        ),
    ] = "stage",
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Network calls a pair takes, 10 to 1000 (999 for anogen and anomalydiffusion); 100 is ten times as "
            "fast and, on the demo, no worse; `auto` is the fewest that `stage-rt calibrate` found.",
            show_default="1000; repaint 250 levels, anomalydiffusion 200, fast and anogen 50, sdas 20",
            rich_help_panel=AMOUNT,
        ),
    ] = None,
    recipe: Annotated[
        RecipeName | None,
        typer.Option(
            help="In which steps the network paints the defect alone (the paper's only branch): `authors`, `paper`, "
            "or `masked`, the longest, which fills labels best. The others are to compare with: `baseline` is the "
            "model without the method, those with + add one part of it, `full` is `authors`. Guidance and outset "
            "that were measured for the prompt are not used with it.",
            show_default="the model's",
            rich_help_panel=LOOK,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            min=0,
            max=20,
            help="How hard the defect is pushed into the mask (weight of the adapters' estimate), 0 to 20: 1 as "
            "trained, 2 fills the mask more, 4 can overdo it.",
            show_default="measured for the prompt, or the recipe's",
            rich_help_panel=LOOK,
        ),
    ] = None,
    prompt_guidance: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            min=0,
            max=20,
            help="How hard a defect is pushed away from good surface (classifier-free guidance), 0 to 20: 1 not at "
            "all, 2 makes defects plainer, at twice the time.",
            show_default="1; anogen 10",
            rich_help_panel=LOOK,
        ),
    ] = None,
    solver: Annotated[
        SolverName | None,
        typer.Option(
            help="How a step is made: as in the paper, or by DPM-Solver++ of second order, without noise of its own "
            "(2m) or with it (2m-sde), or by UniPC of order 2.",
            show_default="the recipe's",
            rich_help_panel=LOOK,
        ),
    ] = None,
    view: Annotated[
        ViewName | None,
        typer.Option(
            help="Paint squares around the defects at their own scale, or whole photographs.",
            show_default="as the model was trained",
            rich_help_panel=LOOK,
        ),
    ] = None,
    min_fill: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="Least share of a label that must be painted, 0 to 1; below it the pair is painted again. 0 takes "
            "every pair as it comes.",
            show_default="the model's for the prompt",
            rich_help_panel=LABELS,
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=15,
            help="How often a weak label is painted again.",
            rich_help_panel=LABELS,
        ),
    ] = 5,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Leave out pairs whose label stays weak, instead of marking them.",
            rich_help_panel=LABELS,
        ),
    ] = False,
    rim: Annotated[
        bool,
        typer.Option(
            help="Let defects fade out a few pixels beyond their labels, where the model was trained with `--rim`; "
            "without, they end at them.",
            rich_help_panel=LOOK,
        ),
    ] = True,
    augment_masks: Annotated[
        bool,
        typer.Option(
            "--augment-masks",
            help="Move, turn, scale and join the masks, inside the object: hundreds of labels from a few masks.",
            rich_help_panel=LABELS,
        ),
    ] = False,
    object_masks: Annotated[
        Path | None,
        typer.Option(
            "--object",
            metavar="DIR",
            help="Masks of the object in the photographs, under their names, or one for all.",
            show_default="found before a plain background, or beside dark strips",
            rich_help_panel=LABELS,
        ),
    ] = None,
    mask_class: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65535,
            help="Label the pixels of a mask that have this value, or this number in its palette.",
            show_default="any defect",
            rich_help_panel=LABELS,
        ),
    ] = None,
    mask_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="Label the pixels of a mask that are at least this bright: 0 is black, 1 is white.",
            show_default="half of its brightest, if it is in shades",
            rich_help_panel=LABELS,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Pairs made together.",
            show_default="the engine's largest",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1024,
            help="Paint in N processes, among whom the cores are shared out; with --ray in N actors.",
            show_default="in this process",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="0,1,...",
            help="Paint on these GPUs, in a process each.",
            show_default="one GPU",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Paint in actors of this Ray cluster, all of whose nodes see the same folders (docs/night.md): "
            "`auto` is the one that runs here, `local` starts one.",
            show_default=False,
            rich_help_panel=MACHINES,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Paint the I-th of N parts only, from 1; `stage-rt merge` joins the parts.",
            show_default="all",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    reject: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A list downloaded from the run's page: those pairs get their next attempt.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None,
    on_finish: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            help="Run this when all is over, or when it failed or was stopped (docs/night.md).",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the result as JSON.",
        ),
    ] = False,
) -> None:
    """Fill RUN with image and mask pairs in the MVTec layout; the same command again resumes.

    One type of defect by --prompt, or several at once by --type or --jobs; a larger --count goes on.
    """
    from stage_rt.cli.filling import fill_all, fill_one, tell_outlook, telling
    from stage_rt.cli.finish import finished
    from stage_rt.cli.painting import Hands, painters
    from stage_rt.files import check_apart
    from stage_rt.run.painters import Alone
    from stage_rt.run.reject import read_list
    from stage_rt.run.shards import parse
    from stage_rt.run.watch import Recorder

    options = {
        "normals": normals,
        "count": count,
        "seed": seed,
        "composite": composite,
        "sampler": sampler,
        "recipe": recipe,
        "steps": steps,
        "guidance": guidance,
        "prompt_guidance": prompt_guidance,
        "solver": solver,
        "view": view,
        "min_fill": min_fill,
        "retries": retries,
        "strict": strict,
        "rim": rim,
        "augment_masks": augment_masks,
        "object": object_masks,
        "mask_class": mask_class,
        "mask_threshold": mask_threshold,
    }
    with finished(None if dry_run else on_finish, output):
        check_apart(engine, output)
        options["steps"] = _steps(steps)
        entries = _entries(prompt or [], masks, types or [], jobs, options)
        rejected = read_list(reject) if reject else {}
        watch = Recorder()
        notify = telling(watch)
        part, several = parse(shard) if shard else None, bool(types or jobs)
        who = Hands() if dry_run else Hands(workers, devices, ray)
        with painters(engine, who, notify) as hands:
            asked = [entry.job(_batch(batch, hands.spec, engine)) for entry in entries]
            for entry in entries:
                entry.tell_of_another_type(hands.spec.model.prompts, notify)
            if isinstance(hands, Alone) and dry_run:
                tell_outlook(
                    hands.engine,
                    asked,
                    part,
                    output,
                    notify,
                    several=several,
                    rejected=rejected,
                    as_json=as_json,
                )
            elif several:
                fill_all(hands, asked, part, output, watch, notify, rejected=rejected, as_json=as_json)
            else:
                fill_one(hands, asked[0], part, output, watch, notify, rejected=rejected, as_json=as_json)


def _entries(
    prompts: list[str],
    masks: Path | None,
    types: list[str],
    jobs: Path | None,
    options: dict[str, Any],
) -> "list[Entry]":
    """The jobs that the options ask for; those not given are left to `Entry`."""
    from stage_rt.errors import InputError
    from stage_rt.run.jobs import checked, entry, read_jobs

    given = {name: value for name, value in options.items() if value is not None}
    ways = [bool(prompts or masks), bool(types), bool(jobs)]
    if sum(ways) != 1:
        raise InputError("give `--prompt` and `--masks`, or `--type` for each of several, or `--jobs`")
    if jobs:
        return read_jobs(jobs, given)
    if types:
        if "count" in given and all("count" in _type(text) for text in types):
            raise InputError(
                "every `--type` has its own count, so that `--count` says nothing", "leave it out"
            )
        return checked([entry(given | _type(text)) for text in types])
    if len(prompts) > 1:
        raise InputError("two prompts are given: use `--type` for each of several types")
    there = {"--prompt NAME": bool(prompts), "--masks DIR": masks, "--normals DIR": "normals" in given}
    if lacking := [f"`{option}`" for option, value in there.items() if not value]:
        raise InputError("`--prompt`, `--masks` and `--normals` go together", f"add {' and '.join(lacking)}")
    return [entry(given | {"prompt": prompts[0], "masks": masks})]


def _type(text: str) -> dict[str, Any]:
    """Fields of a job from ``NAME=DIR[:COUNT]``."""
    name, equals, rest = text.partition("=")
    folder, colon, number = rest.rpartition(":")
    if not colon or not number.isdecimal():
        folder, number = rest, ""
    if not equals or not name or not folder:
        raise typer.BadParameter(f"{text!r} is no type and its masks, as `tile+crack=masks/crack:500`")
    return {"prompt": name, "masks": Path(folder)} | ({"count": int(number)} if number else {})


def _steps(text: str | None) -> int | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor `auto`", param_hint="--steps") from None


def _batch(wanted: int | None, spec: "EngineSpec", engine: Path) -> int:
    from stage_rt.errors import InputError

    largest = max(spec.batch)
    if wanted is not None and wanted > largest:
        raise InputError(
            f"batch {wanted} is more than the {largest} that `{engine}` was built for: "
            f"build it again with `--batch {wanted}`"
        )
    return wanted or largest
