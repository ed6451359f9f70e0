"""``stage-rt export``: a trained model as ONNX graphs, each held against torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stage_rt.cli import console
from stage_rt.names import DType

if TYPE_CHECKING:
    from stage_rt.export.parity import Parity

FOOTNOTES = {
    "fp16": "fp16 graphs are judged on the CPU, where ONNX Runtime computes most operators in float32",
    "bf16": "ONNX Runtime has no bf16 convolution on a CPU: judged with the bf16 weights in float32 arithmetic",
}


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model folder made by `stage-rt train` or `import`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="GRAPHS", help="Folder to write.")],
    dtype: Annotated[DType, typer.Option(help="Of weights, inputs and outputs.")] = "fp32",
    opset: Annotated[int, typer.Option(min=21, max=24, help="Version of the ONNX operators.")] = 21,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the networks of MODEL as ONNX files, each checked against PyTorch.

    Prints the largest error of every graph; nothing is written if one is beyond its tolerance.
    """
    from stage_rt.files import check_apart

    check_apart(model, output)
    with console.messages().status("reading the model") as status:
        with console.extra("export"):
            from stage_rt.export.graphs import export as run
        parities: list[Parity] = []
        try:
            run(model, output, dtype=dtype, opset=opset, say=status.update, show=parities.extend)
        finally:
            status.stop()
            if parities:
                console.result(
                    _table(parities, FOOTNOTES.get(dtype)),
                    {"graphs": str(output), "dtype": dtype, "opset": opset, "parity": _rows(parities)},
                    as_json=as_json,
                )


def _rows(parities: Sequence["Parity"]) -> list[dict[str, object]]:
    return [
        {
            "graph": parity.graph,
            "max_abs": _finite(parity.max_abs),
            "max_rel": _finite(parity.max_rel),
            "tolerance": parity.tolerance,
            "passed": parity.passed,
        }
        for parity in parities
    ]


def _finite(error: float) -> float | None:
    # JSON knows no NaN.
    return error if math.isfinite(error) else None


def _table(parities: Sequence["Parity"], footnote: str | None) -> str:
    width = max(len(parity.graph) for parity in parities)
    lines = [f"{'graph':<{width}}   max abs   max rel  tolerance"]
    lines += [
        f"{parity.graph:<{width}}  {parity.max_abs:>8.1e}  {parity.max_rel:>8.1e}  {parity.tolerance:>9.0e}  "
        f"{'pass' if parity.passed else 'FAIL'}"
        for parity in parities
    ]
    return "\n".join([*lines, footnote] if footnote else lines)
