"""Figures of a run in Prometheus' text format, for the textfile collector of its node exporter."""

from collections.abc import Iterator, Mapping

from stage_rt.run.metrics import Metrics

_OF_TYPES = {
    "planned": ("stage_rt_samples_planned", "gauge", "Samples the run will have."),
    "done": ("stage_rt_samples_done", "gauge", "Samples that are done, by earlier processes too."),
    "pairs": ("stage_rt_pairs_total", "counter", "Pairs that are there."),
    "refilled": ("stage_rt_pairs_refilled_total", "counter", "Samples that were painted more than once."),
    "weak": ("stage_rt_pairs_weak_total", "counter", "Pairs that were kept although their label is weak."),
    "left_out": ("stage_rt_samples_left_out_total", "counter", "Samples that were left out."),
    "failed": (
        "stage_rt_samples_failed_total",
        "counter",
        "Samples that came out non-finite.",
    ),
}
_OF_RUNS = {
    "pairs_per_second": ("stage_rt_pairs_per_second", "Samples done a second, over the last minutes."),
    "step_seconds": ("stage_rt_step_seconds", "Median time of a step of the loop."),
    "seconds_left": ("stage_rt_seconds_left", "Time the run will still take."),
}
_OF_GPUS = {
    "busy": ("stage_rt_gpu_busy_ratio", "Share of the time the GPU was busy."),
    "memory": ("stage_rt_gpu_memory_bytes", "Memory of the GPU in use."),
    "power": ("stage_rt_gpu_power_watts", "Power the GPU draws."),
    "temperature": ("stage_rt_gpu_temperature_celsius", "Temperature of the GPU."),
}


def exposition(metrics: Metrics, run: str, now: float) -> str:
    """``metrics`` of the run of a name at ``now``, seconds since 1970; figures that are None are left out."""
    return "".join(f"{line}\n" for line in _lines(metrics, run, now))


def _lines(metrics: Metrics, run: str, now: float) -> Iterator[str]:
    own = f'run="{_escaped(run)}"'
    running = {own: float(metrics.state == "running")}
    yield from _family("stage_rt_running", "gauge", "Whether a process works at the run.", running)
    yield from _family("stage_rt_updated_seconds", "gauge", "When this was written.", {own: now})
    for field, (name, kind, told) in _OF_TYPES.items():
        figures = {
            f'{own},type="{_escaped(type)}"': getattr(one, field) for type, one in metrics.types.items()
        }
        yield from _family(name, kind, told, figures)
    for field, (name, told) in _OF_RUNS.items():
        yield from _family(name, "gauge", told, {own: getattr(metrics, field)})
    for field, (name, told) in _OF_GPUS.items():
        yield from _family(
            name, "gauge", told, {f'{own},gpu="{gpu.number}"': getattr(gpu, field) for gpu in metrics.gpus}
        )


def _family(name: str, kind: str, told: str, figures: Mapping[str, float | None]) -> Iterator[str]:
    lines = [f"{name}{{{labels}}} {float(value)!r}" for labels, value in figures.items() if value is not None]
    if lines:
        yield f"# HELP {name} {told}"
        yield f"# TYPE {name} {kind}"
        yield from lines


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
