"""One torch module to one ONNX graph: traced, constants folded, nothing of this machine left in it."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import opset21 as op
from onnxscript.optimizer import fold_constants_ir
from torch import Tensor, nn

BATCH = "batch"

_KNOWN_WARNINGS = (
    # One symbol serves the batch axis of every input, which is what is wanted.
    ("# The axis name: batch will not be used", UserWarning),
    # torch's own use of its own deprecated class.
    ("`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning),
)


def convert(module: nn.Module, inputs: Mapping[str, Tensor], output: str, *, opset: int) -> ir.Model:
    """Trace a module in eval mode.

    Args:
        module: its ``forward`` takes ``inputs`` by name and returns one tensor.
        inputs: an example, batches of two or more; their dtypes and all sizes but the first are those of the graph.
        output: name of the output.
        opset: version of the ONNX operators.

    Returns:
        A graph without metadata. GroupNormalization stays whole from opset 21 on.
    """
    shapes = {name: {0: BATCH} for name in inputs}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (),
            kwargs=dict(inputs),
            output_names=[output],
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=shapes,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
            optimize=False,
            verbose=False,
        )
        assert program is not None
        initializers = list(program.model.graph.initializers.values())
        # The optimiser's pattern matching is quadratic in the number of nodes, so they are thinned out before.
        common.InlinePass()(program.model)
        fold_constants_ir(program.model)
        common.RemoveUnusedNodesPass()(program.model)
        program.optimize()
    model: ir.Model = program.model
    release(set(initializers) - set(model.graph.initializers.values()))
    common.ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
    return model


def release(values: Iterable[ir.Value]) -> None:
    """Drop the weights of initializers: the optimiser's rules keep the last graph they matched."""
    for value in values:
        value.const_value = None


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Plain attention on ``[B, heads, tokens, dim]``.

    The exporter's own translation serves any rank, at the price of shape arithmetic around every transpose.
    """
    unused = (attn_mask is None, not is_causal, not enable_gqa)
    assert all(unused), "diffusers' UNet and VAE attend to everything"
    factor = float(query.shape[-1]) ** -0.5 if scale is None else scale
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))  # type: ignore[type-var]
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


@contextmanager
def _quiet() -> Iterator[None]:
    # The registration module logs that torchvision's operators are missing; no network here has any.
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message, category in _KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        logger.setLevel(level)
