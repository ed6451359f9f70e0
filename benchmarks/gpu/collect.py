"""The results of ``run.sh`` as one JSON file and a plot: ``python collect.py OUT RESULTS``."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

LABELS = {
    "loop": "stage-rt, device-resident loop",
    "compile_max_autotune": "torch.compile max-autotune",
    "eager_single_state": "PyTorch eager, single state",
    "eager_two_states": "PyTorch eager, authors' two states",
}


def collect(out: Path) -> dict[str, Any]:
    """What the scripts left in ``out``; a missing part is an empty one."""
    result: dict[str, Any] = {}
    for name, empty in (("bench", {}), ("kernels", [])):
        path = out / f"{name}.json"
        result[name] = json.loads(path.read_text()) if path.is_file() else empty
    checks = out / "checks.txt"
    lines = checks.read_text().splitlines() if checks.is_file() else []
    return {"checks": dict(line.split(": ", 1) for line in lines), "kernels": result["kernels"]} | result[
        "bench"
    ]


def series(result: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Seconds a pair by batch, for every line of the plot."""
    rows = [("loop", row) for row in result.get("loop", [])]
    rows += [(row["peer"], row) for row in result.get("peers", [])]
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, row in rows:
        lines.setdefault(f"{LABELS[name]}, {row['dtype']}", []).append((row["batch"], row["seconds_a_pair"]))
    return {label: sorted(points) for label, points in lines.items()}


def draw(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, points in series(result).items():
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="seconds a pair, 1000 steps")
    batches = sorted({batch for points in series(result).values() for batch, _ in points})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    name = result["device"]["name"]
    axes.set_title(f"{name}, full-size random weights{', shortened loop' if result['quick'] else ''}")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder bench.py wrote to")
    parser.add_argument("results", type=Path, help="folder to write to")
    options = parser.parse_args()
    result = collect(options.out)
    if "memory_bytes" not in result.get("device", {}):
        raise SystemExit("nothing was measured on a GPU: no results are written")
    name = re.sub(r"[^a-z0-9]+", "-", result["device"]["name"].lower()).strip("-")
    path = options.results / f"gpu-{name}{'-quick' if result['quick'] else ''}.json"
    options.results.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")
    if series(result):
        draw(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
