"""``stage-rt synth``: fill a folder with image and mask pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stage_rt.cli import console
from stage_rt.names import RecipeName, SamplerName, ViewName

if TYPE_CHECKING:
    from stage_rt.run.fill import Summary


def synth(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder made by `stage-rt build`.")],
    normals: Annotated[Path, typer.Option(metavar="DIR", help="Photographs of good parts.")],
    masks: Annotated[Path, typer.Option(metavar="DIR", help="Masks, white where a defect shall be.")],
    prompt: Annotated[str, typer.Option(metavar="NAME", help="What to paint, as the model names it.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the pairs.")],
    count: Annotated[
        int | None, typer.Option(min=1, max=999_999, help="Number of pairs.", show_default="one per mask")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Decides the pairing and the noise.")] = 0,
    composite: Annotated[
        bool,
        typer.Option(help="Keep the photograph's pixels beyond the mask, and its size."),
    ] = True,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Pairs made together.", show_default="the engine's largest")
    ] = None,
    sampler: Annotated[
        SamplerName,
        typer.Option(
            help="How to paint. `stage` is the method; the others (docs/samplers.md) are there to compare with and "
            "do without the adapters: RePaint, AnomalyDiffusion's, RealNet's, which changes good surface a little."
        ),
    ] = "stage",
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Network calls a pair takes, 10 to 1000; 100 is nearly ten times as fast and a little fainter.",
            show_default="1000; repaint 250 levels, anomalydiffusion 200, sdas 20",
        ),
    ] = None,
    recipe: Annotated[
        RecipeName | None,
        typer.Option(
            help="When the mask alone decides what is painted (the paper's only branch): as in the authors' code, "
            "the paper, or long enough to fill the mask; the other names leave a part of the method out.",
            show_default="the model's",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            help="How hard the defect is pushed into the mask (weight of the adapters' estimate), 0 to 20: 1 as "
            "trained, 2 fills the mask more, 4 can overdo it.",
            show_default="the recipe's",
        ),
    ] = None,
    prompt_guidance: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            help="How far a defect is kept from good surface (classifier-free guidance), 0 to 20: 2 makes defects "
            "plainer, at twice the time.",
            show_default="1",
        ),
    ] = None,
    view: Annotated[
        ViewName | None,
        typer.Option(
            help="Paint squares around the defects at their own scale, or whole photographs.",
            show_default="as the model was trained",
        ),
    ] = None,
    min_fill: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="Paint a label again of which less than this was painted; 0 takes every pair as it comes.",
            show_default="the model's for the prompt",
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(metavar="N", min=0, max=15, help="How often a weak label is painted again.")
    ] = 5,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Leave out pairs whose label stays weak, instead of marking them."),
    ] = False,
    augment_masks: Annotated[
        bool,
        typer.Option(
            "--augment-masks",
            help="Move, turn, scale and join the masks, inside the object: hundreds of labels from a few masks.",
        ),
    ] = False,
    object_masks: Annotated[
        Path | None,
        typer.Option(
            "--object",
            metavar="DIR",
            help="Masks of the object in the photographs, under their names, or one for all.",
            show_default="found where it stands before a plain background",
        ),
    ] = None,
    mask_class: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65535,
            help="Label the pixels of a mask that have this value.",
            show_default="any defect",
        ),
    ] = None,
    mask_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="Label the pixels of a mask from this share of white on.",
            show_default="half of its brightest, if it is in shades",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fill RUN with image and mask pairs in the MVTec layout; the same command again resumes."""
    from functools import partial

    from stage_rt.cli.progress import watched_bar
    from stage_rt.errors import FailedSamplesError, InputError
    from stage_rt.images import layouts
    from stage_rt.images.masks import Reading
    from stage_rt.loading import load
    from stage_rt.run.fill import fill
    from stage_rt.run.job import Job

    if mask_class is not None and mask_threshold is not None:
        raise InputError(
            "`--mask-class` and `--mask-threshold` both say what is labelled", "give one of them"
        )
    photographs, labels = layouts.normals(normals), layouts.masks(masks)
    notify = partial(console.message, "notice")
    loaded = load(engine, notify=notify)
    largest = max(loaded.spec.batch)
    if batch is not None and batch > largest:
        raise InputError(
            f"batch {batch} is more than the {largest} that `{engine}` was built for: "
            f"build it again with `--batch {batch}`"
        )
    job = Job(
        normals=photographs,
        masks=labels,
        prompt=prompt,
        count=count or len(labels),
        seed=seed,
        composite=composite,
        batch=batch or largest,
        sampler=sampler,
        recipe=recipe,
        steps=steps,
        guidance=guidance,
        prompt_guidance=prompt_guidance,
        view=view,
        min_fill=min_fill,
        retries=retries,
        strict=strict,
        augment=augment_masks,
        objects=layouts.masks(object_masks) if object_masks else (),
        reading=Reading(mask_class, mask_threshold),
    )
    with watched_bar(job.count, "pairs") as (checking, progress):
        summary = fill(loaded, job, output, notify=notify, checking=checking, progress=progress)
    console.result(
        f"{summary.pairs} pairs in `{output}` ({summary.written} new)\n{_labels(summary)}"
        f"contact sheet `{summary.contact_sheet}`\nreport `{summary.report}`",
        {
            "run": str(output),
            "pairs": summary.pairs,
            "written": summary.written,
            "steps": summary.steps,
            "fill": _median_and_tenth(summary.fill),
            "failed": summary.failed,
            "left_out": summary.left_out,
            "weak": summary.weak,
            "refilled": summary.refilled,
            "contact_sheet": str(summary.contact_sheet),
            "report": str(summary.report),
        },
        as_json=as_json,
    )
    if summary.failed:
        raise FailedSamplesError(
            f"{len(summary.failed)} of {job.count} samples came out non-finite and were not written "
            f"({', '.join(map(str, summary.failed[:10]))}): run the same command again, or build the engine "
            "with `--dtype fp32`"
        )


def _labels(summary: "Summary") -> str:
    if not summary.fill:
        return ""
    median, tenth = _median_and_tenth(summary.fill).values()
    counts = {"painted again": summary.refilled, "weak": len(summary.weak), "left out": len(summary.left_out)}
    told = "".join(f"; {count} {what}" for what, count in counts.items() if count)
    return f"labels painted by {median:.0%} in the middle, {tenth:.0%} in the weakest tenth{told}\n"


def _median_and_tenth(fill: Sequence[float]) -> dict[str, float | None]:
    """Of shares in ascending order; None where there are none."""
    if not fill:
        return {"median": None, "weakest_tenth": None}
    return {"median": fill[len(fill) // 2], "weakest_tenth": fill[len(fill) // 10]}
