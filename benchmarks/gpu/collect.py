"""The rows of a benchmark as one result, and its plot: ``python collect.py RESULT.json`` draws ``RESULT.png``."""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parts import CHECKS

LABELS = {
    "traced": "stage-rt, device-resident loop, PyTorch's kernels",
    "compiled": "stage-rt, device-resident loop, AOTInductor",
    "tuned": "stage-rt, device-resident loop, AOTInductor with max-autotune",
    "plain": "stage-rt, device-resident loop, AOTInductor, nothing taken out of the UNet",
    "peer compiled": "torch.compile max-autotune",
    "peer eager": "PyTorch eager, single state",
    "peer authors_eager": "PyTorch eager, authors' two states",
}


def collect(
    key: Mapping[str, str], finished: Mapping[str, Any], failed: Mapping[str, str], kernels: list[Any]
) -> dict[str, Any]:
    """One result of rows by the names of their parts.

    Args:
        key: what they were measured of and on, `bench.Bench`.
        finished: rows.
        failed: why a part has none.
        kernels: what check_step.py found.
    """
    rows = {kind: _rows(finished, kind) for kind in ("compile", "loop", "peer")}
    machine = finished.get("machine", {})
    for row in rows["loop"]:
        peak = machine.get(f"matmul_tflops_{row['dtype']}")
        row["of_matmul_peak"] = row["tflops"] / peak if peak and row["tflops"] else None
    checks = {name: "pass" if name in finished else failed.get(name, "not done") for name in CHECKS}
    others = {name: reason for name, reason in failed.items() if name not in CHECKS}
    return {
        **key,
        "machine": machine,
        "checks": checks,
        "kernels": kernels,
        **rows,
        "demo": finished.get("demo"),
        "not_done": others,
    }


def _rows(finished: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [dict(row) for name, row in finished.items() if name.startswith(f"{kind}_") and name not in CHECKS]


def slug(name: str) -> str:
    """A device's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def series(result: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Seconds a pair by batch, for every line of the plot."""
    rows = [(row["way"], row) for row in result["loop"]]
    rows += [(f"peer {row['peer']}", row) for row in result["peer"]]
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, row in rows:
        lines.setdefault(f"{LABELS[name]}, {row['dtype']}", []).append((row["batch"], row["seconds_a_pair"]))
    return {label: sorted(points) for label, points in lines.items()}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    lines = series(result)
    for label, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="seconds a pair, 1000 steps")
    batches = sorted({batch for points in lines.values() for batch, _ in points})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    shortened = ", shortened loop" if result["mode"] == "quick" else ""
    axes.set_title(f"{result['device']}, full-size random weights{shortened}")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="what run.sh wrote: gpu-<device>.json")
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    if "memory_bytes" not in result["machine"]:
        raise SystemExit("nothing was measured on a GPU: there is nothing to draw")
    draw(result, options.result.with_suffix(".png"))
    print(f"written to {options.result.with_suffix('.png')}")


if __name__ == "__main__":
    main()
