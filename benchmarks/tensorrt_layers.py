"""What TensorRT made of a graph: ``python benchmarks/tensorrt_layers.py GRAPH.onnx --batch 8 [--json PATH]``.

Builds the graph as ``stage-rt build`` does and reads what the builder tells of the engine, which is what the engine
inspector tells of a loaded one: every layer it runs, the nodes of the graph that went into each, and the inputs and
outputs with their profiles. So no GPU is needed. A layer is a launch of a kernel, or a few where it is the library's
own. Needs ``stage-rt[rtx]``; at full size 6 GB of memory and a minute a batch size.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from stage_rt.engines.builders import choose

_SHAPE = re.compile(r"MinShape: \[([\d,]+)\], OptShape: \[\1\], MaxShape: \[\1\]")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


class Layer(NamedTuple):
    """One step of the engine: its name and kind, and the names of the ONNX nodes that it computes a part of.

    ``clears``: it has no input, and only clears memory that another adds to.
    """

    name: str
    kind: str
    nodes: frozenset[str]
    clears: bool


class Pattern(NamedTuple):
    """Nodes that a good compiler makes one kernel of, and what they are."""

    name: str
    nodes: tuple[str, ...]


def built(graph: Path, batch: Sequence[int], target: str, level: int | None = None) -> dict[str, Any]:
    """Build a graph in fp16 for one target; what the builder tells of it: ``layers``, ``tensors``, ``workspace``.

    Only one build of a process is heard, since TensorRT knows one logger a process.
    """
    builder: Any = choose("tensorrt-rtx", "fp16", [target])
    trt, lines, configured = builder._trt, [], builder._configure

    class Verbose(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, text: str) -> None:
            lines.append(text)
            builder._journal.lines.append((False, text))

    def configure(module: Any, config: Any) -> None:
        configured(module, config)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if level is not None:
            config.builder_optimization_level = level

    builder._logger, builder._configure = Verbose(), configure
    with tempfile.TemporaryDirectory() as folder:
        destination = Path(folder, "graph")
        compiled = builder.compile(graph, destination, batch, lambda share: None)
        size = destination.with_suffix(".engine").stat().st_size
    told = "\n".join(lines)
    return {
        "library": f"{builder.library} {builder.version}",
        "target": target,
        "batch": list(batch),
        "bytes": size,
        "workspace": compiled.workspace,
        "tensors": tensors(told),
        "layers": [layer._asdict() | {"nodes": sorted(layer.nodes)} for layer in layers(told)],
    }


def layers(told: str) -> list[Layer]:
    """The layers of the first profile, in the order they run."""
    found = re.findall(r"^Name: (.+?)_myl(\d+)_\d+, LayerType: (\w+), (.*)$", told, re.MULTILINE)
    first = found[0][1] if found else ""
    return [
        Layer(name, kind, frozenset(_NODE.findall(rest)), rest.startswith("Inputs: []"))
        for name, profile, kind, rest in found
        if profile == first
    ]


def tensors(told: str) -> dict[str, dict[str, Any]]:
    """Mode and dtype of each input and output, and the shapes of every profile of an input; ranges are no shapes."""
    found = re.findall(r"^ Name: (\w+), IOMode: (\w+), DataType: (\w+), (.*)$", told, re.MULTILINE)
    return {
        name: {
            "mode": mode,
            "dtype": dtype,
            "shapes": [[int(size) for size in shape.split(",")] for shape in _SHAPE.findall(rest)],
        }
        for name, mode, dtype, rest in found
    }


def patterns(model: onnx.ModelProto) -> Iterator[Pattern]:
    """Attention, normalisations and activations of a graph, each with its nodes."""
    made = {name: node for node in model.graph.node for name in node.output}
    used: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            used.setdefault(name, []).append(node)
    for node in model.graph.node:
        after = used.get(node.output[0], [])
        if node.op_type == "Softmax":
            yield Pattern("attention", (made[node.input[0]].name, node.name, after[0].name))
        elif node.op_type == "GroupNormalization":
            silu = [each.name for each in after if each.op_type in ("Sigmoid", "Mul")]
            yield Pattern("GroupNorm + SiLU" if silu else "GroupNorm", (node.name, *silu))
        elif node.op_type == "LayerNormalization":
            yield Pattern("LayerNorm", (node.name,))
        elif node.op_type == "Gelu":
            yield Pattern("GELU + gate of GEGLU", (node.name, after[0].name))


def table(found: Sequence[Layer], wanted: Sequence[Pattern]) -> dict[str, dict[str, int]]:
    """For every kind of pattern: how many there are, of which in one layer, and how many layers have a part of one.

    Layers that only clear memory are not counted.
    """
    rows: dict[str, Counter[str]] = {}
    for pattern in wanted:
        nodes = set(pattern.nodes)
        having = [layer for layer in found if layer.nodes & nodes and not layer.clears]
        fused = len(having) == 1 and having[0].nodes >= nodes
        rows.setdefault(pattern.name, Counter()).update(there=1, fused=int(fused), layers=len(having))
    return {name: dict(row) for name, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", type=Path, help="unet.onnx of a graphs folder, in fp16")
    parser.add_argument("--batch", default="8", help="batch sizes, a profile each")
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--level", type=int, help="optimisation level, 0 to 5; the library's own is 3")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    batch = [int(size) for size in options.batch.split(",")]
    result = built(options.graph, batch, options.target, options.level)
    found = [
        Layer(each["name"], each["kind"], frozenset(each["nodes"]), each["clears"])
        for each in result["layers"]
    ]
    result["patterns"] = table(found, list(patterns(onnx.load(options.graph, load_external_data=False))))
    result["kinds"] = dict(Counter(layer.kind for layer in found))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{result['library']}, {options.target}, batch {options.batch}: {len(found)} layers, {result['kinds']}"
    )
    print(f"engine {result['bytes'] / 1e6:.1f} MB, workspace {result['workspace'] / 1e6:.1f} MB")
    for name, row in result["patterns"].items():
        print(
            f"  {name:22} {row['there']:3} there, {row['fused']:3} in one layer, {row['layers']:3} layers in all"
        )


if __name__ == "__main__":
    main()
