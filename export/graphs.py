"""The graphs folder: every network of a model as ONNX, the contexts, and ``model.json``."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch
from pydantic import JsonValue
from safetensors.torch import save
from torch import nn

from stage_rt import __version__
from stage_rt.files import digests, new_folder, sha256
from stage_rt.names import DType
from stage_rt.spec import (
    GRAPHS_FILE,
    MODEL_FILE,
    PROMPTS_FILE,
    UNET,
    VAE_DECODER,
    VAE_ENCODER,
    GraphsSpec,
    ModelSpec,
    is_foreground,
)

from ..training.adapter import MaskGuidanceAdapter
from ..training.folder import Description, load_description
from .convert import convert, release
from .fold import FoldedAdapter
from .hoist import hoistable, hoisted, hoisted_description, projected
from .memory import collect
from .networks import TORCH_DTYPES, Denoiser, check, load, output_name, random_inputs
from .parity import Parity, StoredReferences, compare, require

OPSET = 21
EXTERNAL_DATA_BYTES = 2**30
"""Weights of a graph beyond this lie in a file beside it; a protobuf holds 2 GiB at most."""


def export(
    model: Path,
    folder: Path,
    *,
    dtype: DType,
    opset: int = OPSET,
    hoist: bool = False,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[Sequence[Parity]], None] = lambda parities: None,
) -> GraphsSpec:
    """Write the graphs of a model folder and hold each against torch; ``folder`` appears whole or not at all.

    Args:
        model: the model folder.
        folder: destination, which must not hold anything yet.
        dtype: dtype of weights, inputs and outputs (timesteps are int64, contexts on disk float32).
        opset: version of the ONNX operators, 21 or later.
        hoist: take out of the UNet what depends on its timestep or context alone, where it can be; for GPUs.
        say: told what is being done.
        show: handed the parity of every graph, also when one of them fails.

    Raises:
        InputError: ``folder`` has content.
        ModelError: the model folder is incomplete or inconsistent.
        ParityError: a graph disagrees with its network.
    """
    with new_folder(folder) as staged:
        spec = _write_graphs(model, staged, dtype, opset, hoist, say)
        parities = compare(staged, StoredReferences(model, say, hoist=spec.hoisted), dtype)
        show(parities)
        require(parities)
        graphs = GraphsSpec(
            model=spec, dtype=dtype, opset=opset, source=_source(model), files=digests(staged)
        )
        (staged / GRAPHS_FILE).write_text(graphs.sealed(), encoding="utf-8")
    return graphs


def _write_graphs(
    source: Path, folder: Path, dtype: DType, opset: int, hoist: bool, say: Callable[[str], None]
) -> ModelSpec:
    model = load_description(source)
    for graph in model.spec.graphs:
        say(f"exporting {graph}")
        network = _network(graph, source, TORCH_DTYPES[dtype])
        check(network, graph, model)
        if hoist and isinstance(network, Denoiser) and hoistable(network.unet):
            contexts = {name: projected(network.unet, context) for name, context in model.contexts.items()}
            network = Denoiser(hoisted(network.unet, model.spec.recipe.steps)).eval()
            model = hoisted_description(model, contexts)
        _write(_graph(graph, network, model, dtype, opset), folder / f"{graph}.onnx")
        del network
        collect()
    contexts = {name: context.contiguous() for name, context in model.contexts.items()}
    (folder / PROMPTS_FILE).write_bytes(save(contexts))
    return model.spec


def _graph(graph: str, network: nn.Module, model: Description, dtype: DType, opset: int) -> ir.Model:
    inputs = random_inputs(
        graph, model, batch=2, timesteps=[1, 0], generator=torch.Generator().manual_seed(0)
    )
    cast = {
        name: tensor.to(TORCH_DTYPES[dtype]) if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
    return convert(network, cast, output_name(graph), opset=opset)


def _network(graph: str, source: Path, dtype: torch.dtype) -> nn.Module:
    if graph in (UNET, VAE_ENCODER, VAE_DECODER) or is_foreground(graph):
        return load(source, graph, dtype)
    adapter = load(source, graph, torch.float32)
    assert isinstance(adapter, MaskGuidanceAdapter)
    # Rounded once, after folding. nn.Module's own `to`: the one of diffusers warns about every plain cast.
    return nn.Module.to(FoldedAdapter(adapter).eval(), dtype)


def _write(model: ir.Model, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    initializers = model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in initializers if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > EXTERNAL_DATA_BYTES else None)
    release(initializers)


def _source(model: Path) -> dict[str, JsonValue]:
    libraries = {name: version(name) for name in ("torch", "diffusers", "onnx", "onnxscript")}
    return {
        "model": model.resolve().name,
        "stage_json_sha256": sha256(model / MODEL_FILE),
        "stage_rt": __version__,
        **libraries,
    }
