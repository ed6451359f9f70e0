"""A measured engine as one picture."""

import io

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from stage_rt.bench.result import Result


def plot(result: Result) -> bytes:
    """A PNG: milliseconds a pair and step against the batch, and where a pair's time goes at each."""
    figure, (speed, shares) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    batches = [row.batch for row in result.rows]
    per = [1e3 / (row.batch * result.steps) for row in result.rows]
    middle = [row.whole.median * each for row, each in zip(result.rows, per, strict=True)]
    low = [(row.whole.median - row.whole.low) * each for row, each in zip(result.rows, per, strict=True)]
    high = [(row.whole.high - row.whole.median) * each for row, each in zip(result.rows, per, strict=True)]
    speed.errorbar(batches, middle, [low, high], fmt="o-", capsize=3)
    speed.set(xlabel="batch", ylabel="ms a pair and step", ylim=(0, None))
    speed.set_xscale("log", base=2)
    speed.set_title(f"{result.backend} {result.dtype}", fontsize=9)
    names = [str(batch) for batch in batches]
    floor = [0.0] * len(names)
    for stage in dict.fromkeys(stage for row in result.rows for stage in row.stages):
        part = [
            row.stages[stage].median / row.whole.median if stage in row.stages else 0.0 for row in result.rows
        ]
        shares.bar(names, part, bottom=floor, label=stage)
        floor = [a + b for a, b in zip(floor, part, strict=True)]
    shares.set(xlabel="batch", ylabel="share of the time")
    shares.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{result.machine}; {result.steps} steps", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()
