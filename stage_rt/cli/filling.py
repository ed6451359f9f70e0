"""What ``stage-rt synth`` does once its options are a list of jobs, and what it says of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stage_rt.cli import console
from stage_rt.cli.console import Stopped
from stage_rt.cli.progress import watched_bar, watched_share
from stage_rt.errors import FailedSamplesError, amount
from stage_rt.progress import portion
from stage_rt.run.checks import CHECKS_FILE, Checks
from stage_rt.run.fill import Summary, fill_by
from stage_rt.run.job import Job
from stage_rt.run.night import check_runs, follow_all, left_of, outlook, plans
from stage_rt.run.painters import Painters
from stage_rt.run.plan import Notify, Plan
from stage_rt.run.reject import NOTHING, Rejected
from stage_rt.run.report import PAGE
from stage_rt.run.shards import take
from stage_rt.run.watch import Recorder, recorded
from stage_rt.strokes import Painter

Part = tuple[int, int] | None
"""Number and count of shards, if it is one that is painted."""
Listed = Mapping[str, Rejected]
FEWER = 100
"""Steps to take where nothing was measured (docs/performance.md)."""


def telling(watch: Recorder) -> Notify:
    """What tells the user and the log."""

    def tell(notice: str) -> None:
        console.message("notice", notice)
        watch.notice(notice)

    return tell


def fill_one(
    painters: Painters,
    job: Job,
    part: Part,
    output: Path,
    watch: Recorder,
    notify: Notify,
    *,
    rejected: Listed = NOTHING,
    as_json: bool,
) -> None:
    """Paint one job into ``output``, or a part of it, and say what it came to.

    Raises:
        FailedSamplesError: as `tell_one`.
    """
    made: list[Plan] = []
    with recorded(watch, Stopped), watched_bar(lambda: _count(made), "pairs") as (checking, progress):
        summary = fill_by(
            painters,
            job,
            output,
            shard=part,
            planned=made.append,
            rejected=rejected,
            watch=watch,
            notify=notify,
            checking=checking,
            progress=progress,
        )
    tell_one(summary, output, as_json=as_json)


def fill_all(
    painters: Painters,
    asked: Sequence[Job],
    part: Part,
    output: Path,
    watch: Recorder,
    notify: Notify,
    *,
    rejected: Listed = NOTHING,
    as_json: bool,
) -> None:
    """`fill_one` for several types in one folder."""
    made: list[Plan] = []
    with recorded(watch, Stopped), watched_bar(lambda: _count(made), "pairs") as (checking, progress):
        checks = Checks(output / CHECKS_FILE)
        made = _parts(plans(painters.spec, asked, notify=notify, progress=checking, checks=checks), part)
        summaries = follow_all(
            painters,
            made,
            output,
            checks=checks,
            rejected=rejected,
            watch=watch,
            notify=notify,
            progress=progress,
        )
    tell_all(summaries, output, as_json=as_json)


def tell_one(summary: Summary, output: Path, *, as_json: bool) -> None:
    """Say what a run came to.

    Raises:
        FailedSamplesError: some samples came out non-finite; the others are there.
    """
    console.result(
        f"{amount(summary.pairs, 'pair')} in `{output}` ({summary.written} new)\n{_labels(summary)}"
        f"contact sheet `{summary.contact_sheet}`\nreport `{summary.report}`",
        {"run": str(output), **_fields(summary)},
        as_json=as_json,
    )
    _require_finite([summary])


def tell_all(summaries: Mapping[str, Summary], output: Path, *, as_json: bool) -> None:
    """`tell_one` for several types in one folder."""
    pairs, written = (sum(getattr(one, name) for one in summaries.values()) for name in ("pairs", "written"))
    lines = [
        f"{name}: {amount(one.pairs, 'pair')} ({one.written} new), {_labels(one)}".rstrip(" ,\n")
        for name, one in summaries.items()
    ]
    console.result(
        "\n".join(
            [f"{amount(pairs, 'pair')} in `{output}` ({written} new)", *lines, f"report `{output / PAGE}`"]
        ),
        {"run": str(output), "types": {name: _fields(one) for name, one in summaries.items()}},
        as_json=as_json,
    )
    _require_finite(list(summaries.values()))


def _parts(made: Sequence[Plan], part: Part) -> list[Plan]:
    return [take(plan, *part) if part else plan for plan in made]


def _count(made: Sequence[Plan]) -> int:
    return sum(len(plan.samples) for plan in made)


def tell_outlook(
    engine: Painter,
    asked: Sequence[Job],
    part: Part,
    output: Path,
    notify: Notify,
    *,
    several: bool,
    rejected: Listed = NOTHING,
    as_json: bool,
) -> None:
    """Check every file of the jobs, time a few steps and say what is left of them and what that will take.

    ``rejected`` are pairs that are left too, as their image is to be replaced.

    Raises:
        RunError: ``output`` holds something else, of ``several`` types or of one.
        InputError, RunError: as `stage_rt.run.reject.check`.
    """
    with watched_share("checking the files") as progress:
        files, pairs = portion(progress, 0.0, 0.5), portion(progress, 0.5, 1.0)
        made = _parts(plans(engine.spec, asked, notify=notify, progress=files), part)
        check_runs(made, output, several=several)
        left = left_of(made, output, several=several, rejected=rejected, progress=pairs)
    found = outlook(engine, made, left)
    counts = "\n".join(
        f"{prompt}: {amount(count, 'pair')}" + (f", {still} left" if still < count else "")
        for (prompt, count), still in zip(found.pairs.items(), found.left.values(), strict=True)
    )
    # Pairs that are there were painted in the steps that the others will be, and a shard may have none.
    sooner = _sooner(made, found.seconds) if found.seconds and found.left == found.pairs else ""
    console.result(
        f"{counts}\nabout {_duration(found.seconds)} in one process and {found.bytes / 2**20:.0f} MiB, "
        f"without what is painted again\n{sooner}nothing was painted",
        {"pairs": found.pairs, "left": found.left, "seconds": round(found.seconds, 1), "bytes": found.bytes},
        as_json=as_json,
    )


def _sooner(made: Sequence[Plan], seconds: float) -> str:
    """How long fewer steps would take, where all plans are STAGE's loop in as many as the model was trained with."""
    methods = [plan.method for plan in made]
    steps = max(method.steps for method in methods)
    if steps <= FEWER or not all(method.own_steps and method.sampler == "stage" for method in methods):
        return ""
    told = _duration(seconds * FEWER / steps)
    return f"that is at {steps} steps; at `--steps {FEWER}` about {told} (docs/performance.md)\n"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _fields(summary: Summary) -> dict[str, object]:
    return {
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
    }


def _require_finite(summaries: Sequence[Summary]) -> None:
    failed = [index for summary in summaries for index in summary.failed]
    count = len(failed) + sum(summary.pairs + len(summary.left_out) for summary in summaries)
    if failed:
        raise FailedSamplesError(
            f"{len(failed)} of {amount(count, 'sample')} came out non-finite and were not written "
            f"({', '.join(map(str, failed[:10]))}): run the same command again, or build the engine "
            "with `--dtype fp32`"
        )


def _labels(summary: Summary) -> str:
    counts = {"painted again": summary.refilled, "weak": len(summary.weak), "left out": len(summary.left_out)}
    told = [f"{count} {what}" for what, count in counts.items() if count]
    if summary.fill:
        median, tenth = _median_and_tenth(summary.fill).values()
        told.insert(0, f"labels painted by {median:.0%} in the middle, {tenth:.0%} in the weakest tenth")
    return "; ".join(told) + "\n" if told else ""


def _median_and_tenth(fill: Sequence[float]) -> dict[str, float | None]:
    """Of shares in ascending order; None where there are none."""
    if not fill:
        return {"median": None, "weakest_tenth": None}
    return {"median": fill[len(fill) // 2], "weakest_tenth": fill[len(fill) // 10]}
