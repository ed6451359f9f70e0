"""The loss curves of a training as one picture."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def plot_losses(curves: dict[str, Path], path: Path) -> None:
    """Draw one panel a stage from its ``step,loss`` CSV file."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3), layout="constrained")
    for axis, (stage, source) in zip(axes, curves.items(), strict=True):
        with source.open(newline="") as file:
            rows = [(int(step), float(loss)) for step, loss in csv.reader(file)]
        steps, losses = zip(*rows, strict=True) if rows else ((), ())
        axis.plot(steps, losses, linewidth=0.8)
        axis.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
