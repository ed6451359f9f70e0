"""What bounds a step, on which machine: ``python benchmarks/roofline.py NAME=GRAPHS ... [--json FILE] [--plot PNG]``.

GRAPHS are folders of `stage-rt export`. A step is a UNet and an adapter. Every convolution and matrix product is
counted from its shapes (`stage_rt.engines.operations`): it does its arithmetic, reads its operands and writes its
result; weights are read once a batch. What lies between two of them is taken to be done on the way, and an attention
in one go, so a step cannot be faster than the sum, over them, of the longer of arithmetic and traffic. Nothing is
run but the machine's own rates, as `stage-rt bench` measures them: a product of matrices and a copy, by NumPy, in
float32, by CPU time: give it one core, ``OMP_NUM_THREADS=1 taskset -c 0``. Caches are left out: where weights or
activations stay in one, traffic takes less than is said here.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from options import keep

from stage_rt.bench.rates import rates
from stage_rt.engines.operations import Product, products
from stage_rt.machine import cpu_name
from stage_rt.recipe import Branch
from stage_rt.spec import UNET, adapter_graph

BATCHES = (1, 8)


class Machine(NamedTuple):
    """FLOP/s of matrix products, bytes a second, bytes a number."""

    name: str
    flops: float
    bandwidth: float
    width: int

    @property
    def ridge(self) -> float:
        """FLOP a byte from which arithmetic is what bounds."""
        return self.flops / self.bandwidth


PUBLISHED = (
    # NVIDIA's data sheet, without sparsity.
    Machine("L4, fp16", 121e12, 300e9, 2),
    # NVIDIA's Ada white paper: sums in float32.
    Machine("RTX 4090, fp16", 165e12, 1008e9, 2),
    # Measured on one: large products and copies.
    Machine("H100, fp16", 790e12, 3.0e12, 2),
)


def step(graphs: Path) -> list[Product]:
    """The products of a step: the UNet's and those of one adapter, which are all alike."""
    adapters = sorted(
        path.name.removesuffix(f".{Branch.AWARE}.onnx") for path in graphs.glob("adapters/*.aware.onnx")
    )
    names = [UNET, *(adapter_graph(name, Branch.AWARE) for name in adapters[:1])]
    parts = [products(graphs / f"{name}.onnx") for name in names]
    if not all(parts):
        raise SystemExit(f"shapes of `{graphs}` are not all known: export it again")
    return [product for part in parts for product in part]


def bound(counted: list[Product], batch: int, machine: Machine) -> dict[str, float | int]:
    """The least time of a step, and what it is made of."""
    arithmetic = np.array([batch * each.operations for each in counted])
    moved = machine.width * np.array([each.weights + batch * each.activations for each in counted])
    times = np.stack([arithmetic / machine.flops, moved / machine.bandwidth])
    least = times.max(axis=0)
    return {
        "batch": batch,
        "GFLOP": round(float(arithmetic.sum() / 1e9), 3),
        "MB": round(float(moved.sum() / 1e6), 2),
        "weights, MB": round(machine.width * sum(each.weights for each in counted) / 1e6, 2),
        "FLOP a byte": round(float(arithmetic.sum() / moved.sum()), 1),
        "least ms": round(float(1e3 * least.sum()), 4),
        "bound by traffic": round(float(least[times[1] > times[0]].sum() / least.sum()), 3),
        "GFLOP/s": round(float(arithmetic.sum() / least.sum() / 1e9), 1),
    }


def draw(result: dict[str, Any], machines: list[Machine], path: Path) -> None:
    """The roofs, and what a step can come to under them."""
    figure, axis = plt.subplots(figsize=(9, 5.6), layout="constrained")
    across = np.logspace(0, 4, 200)
    markers = dict(zip(result["steps"], "osD^v", strict=False))
    for number, machine in enumerate(machines):
        axis.plot(across, np.minimum(machine.flops, across * machine.bandwidth) / 1e9, color=f"C{number}")
        axis.annotate(
            f"{machine.name}: {machine.flops / 1e9:,.0f} GFLOP/s, {machine.bandwidth / 1e9:,.0f} GB/s",
            (across[-1], machine.flops / 1e9),
            ha="right",
            va="bottom",
            color=f"C{number}",
            fontsize=8,
        )
        for name, by_machine in result["steps"].items():
            for row in by_machine[machine.name]:
                fill = f"C{number}" if row["batch"] == max(BATCHES) else "white"
                axis.plot(row["FLOP a byte"], row["GFLOP/s"], markers[name], color=f"C{number}", mfc=fill)
    for row in result["measured"]:
        axis.plot(row["FLOP a byte"], row["GFLOP/s"], "x", color="black", ms=8)
        axis.annotate(
            f"measured, batch {row['batch']}",
            (row["FLOP a byte"], row["GFLOP/s"]),
            (8, -12),
            textcoords="offset points",
            fontsize=8,
        )
    for name, marker in markers.items():
        for batch, fill in zip(BATCHES, ("white", "grey"), strict=True):
            axis.plot([], [], marker, color="grey", mfc=fill, label=f"{name}, batch {batch}")
    axis.set(
        xscale="log", yscale="log", xlabel="FLOP a byte moved", ylabel="GFLOP/s", xlim=(across[0], across[-1])
    )
    axis.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=110)


def measured(path: Path | None, counted: list[Product], machine: Machine) -> list[dict[str, Any]]:
    """What this engine's first row in a result of `compare.py` came to, beside what bounds it."""
    if path is None:
        return []
    found = json.loads(path.read_text())
    row = bound(counted, found["batch"], machine)
    taken = found["medians_and_quartiles"][0]["ms_a_step"][0]
    kept = {name: row[name] for name in ("batch", "FLOP a byte")}
    return [{**kept, "ms": taken, "GFLOP/s": round(row["GFLOP"] / taken * 1e3, 1)}]


def main(options: argparse.Namespace) -> None:
    product, copy = rates(time.process_time)
    here = Machine("this machine, fp32", product * 1e9, copy * 1e9, 4)
    machines = [here, *PUBLISHED]
    named = dict(each.split("=", 1) for each in options.graphs)
    counted = {name: step(Path(folder)) for name, folder in named.items()}
    result: dict[str, Any] = {
        "machine": cpu_name(),
        "machines": {
            each.name: {
                "GFLOP/s": each.flops / 1e9,
                "GB/s": each.bandwidth / 1e9,
                "ridge": round(each.ridge, 1),
            }
            for each in machines
        },
        "steps": {
            name: {each.name: [bound(parts, batch, each) for batch in BATCHES] for each in machines}
            for name, parts in counted.items()
        },
        "measured": measured(options.compared, next(iter(counted.values())), here),
    }
    for name, by_machine in result["steps"].items():
        for machine, rows in by_machine.items():
            for row in rows:
                print(
                    f"{name:<12} {machine:<20}", *(f"{key} {value}" for key, value in row.items()), sep="  "
                )
    keep(result, options.json)
    if options.plot:
        draw(result, machines, options.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", nargs="+", metavar="NAME=GRAPHS")
    parser.add_argument(
        "--compared", type=Path, metavar="JSON", help="of compare.py, of the first model here"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    main(parser.parse_args())
