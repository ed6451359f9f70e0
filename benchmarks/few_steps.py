"""How much of a label each solver paints in few network calls: ``python benchmarks/few_steps.py ENGINE``.

ENGINE is that of ``models/demo``; photographs and labels are those of `labels.py`, the recipe is the model's own, and
every pair is kept as it comes. The fill is the share of a label's pixels that changed by more than 15 grey levels,
its interval twice the standard error over the pairs of all types.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from labels import DEFECTS, SEED, VISIBLE, scenes
from matplotlib import pyplot as plt
from options import engine_parser, keep
from painting import method_of, painted

import stage_rt
from stage_rt.machine import cpu_name
from stage_rt.names import SolverName

CALLS: dict[SolverName, tuple[int, ...]] = {
    "ancestral": (10, 15, 20, 30, 50, 100),
    "dpmpp-2m": (10, 15, 20, 30),
    "dpmpp-2m-sde": (10, 15, 20, 30),
}


def fills(engine: Any, kind: str, solver: SolverName, calls: int, count: int) -> list[float]:
    good, _, labels = scenes(kind, count)
    prompt = f"brick+{kind}"
    own = method_of(engine, prompt, calls).recipe
    method = method_of(engine, prompt, calls, own.solved(solver))
    images = painted(engine, good, labels, method, SEED).images
    change = np.abs(images.astype(np.float64) - good)
    return [float((each[label] > VISIBLE).mean()) for each, label in zip(change, labels, strict=True)]


def main(options: argparse.Namespace) -> None:
    engine = stage_rt.load(options.engine)
    rows: list[dict[str, Any]] = []
    result = {"machine": cpu_name(), "pairs_a_type": options.count, "rows": rows}
    for solver, several in CALLS.items():
        for calls in several:
            each = {kind: fills(engine, kind, solver, calls, options.count) for kind in DEFECTS}
            every = np.concatenate(list(each.values()))
            rows.append(
                {
                    "solver": solver,
                    "calls": calls,
                    "fill": round(float(every.mean()), 3),
                    "interval": round(2 * float(every.std(ddof=1)) / len(every) ** 0.5, 3),
                    "empty": int((every < 0.05).sum()),
                    **{kind: round(float(np.mean(own)), 3) for kind, own in each.items()},
                }
            )
            print(rows[-1], flush=True)
            keep(result, options.json)
    if options.plot:
        draw(rows, options.plot)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for solver in CALLS:
        mine = [row for row in rows if row["solver"] == solver]
        calls, fill, interval = ([row[name] for row in mine] for name in ("calls", "fill", "interval"))
        axes.errorbar(calls, fill, interval, fmt="o-", capsize=3, label=solver)
    axes.set(xlabel="network calls a pair", ylabel="share of the label painted", ylim=(0, 1), xscale="log")
    axes.set_xticks(CALLS["ancestral"], [str(calls) for calls in CALLS["ancestral"]])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = engine_parser(__doc__)
    parser.add_argument("--count", type=int, default=8, help="pairs a type, solver and number of calls")
    parser.add_argument("--plot", type=Path, help="draw the fill against the calls, as a PNG")
    main(parser.parse_args())
