"""The errors of a verified engine as one picture."""

import io

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from stage_rt.networks import TOLERANCE
from stage_rt.recipe import Branch
from stage_rt.spec import FOREGROUND, UNET

from .verify import TRAJECTORY_TOLERANCE, Report

FLOOR = 1e-9
"""Errors below this are drawn here: a logarithmic axis has no 0. Those that are not finite leave a gap."""


def plot_errors(report: Report) -> bytes:
    """A PNG: the graphs' errors against timestep, and the trajectory's against iteration, beside what is allowed."""
    figure, (graphs, trajectory) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    adapters = {f"adapter, {part}": f".{part}" for part in (*Branch, FOREGROUND)}
    for label, ending in {"UNet": UNET, **adapters}.items():
        worst: dict[int, float] = {}
        for point in report.points:
            if point.timestep is not None and point.graph.endswith(ending):
                # Not by `max`, which passes NaN over.
                worst[point.timestep] = np.maximum(worst.get(point.timestep, FLOOR), point.error.max_rel)
        if worst:
            graphs.plot(*zip(*sorted(worst.items()), strict=True), ".-", label=label)
    errors = [np.maximum(FLOOR, error.max_rel) for error in report.trajectory.values()]
    trajectory.plot(list(report.trajectory), errors, label=report.prompt)
    _dress(graphs, "graphs, each on the same input", TOLERANCE[report.dtype])
    _dress(trajectory, "trajectory, each on its own states", TRAJECTORY_TOLERANCE[report.dtype])
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return picture.getvalue()


def _dress(axes: Axes, title: str, tolerance: float) -> None:
    axes.axhline(tolerance, color="black", linestyle="--", linewidth=0.8, label="tolerance")
    axes.set(title=title, xlabel="timestep", ylabel="error / largest value", yscale="log")
    # The loop runs from noise to image: so does the axis.
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
