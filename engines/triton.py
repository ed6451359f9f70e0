"""Graphs to a model repository for NVIDIA's Triton Inference Server.

Layout and configuration are those of Triton's documentation (docs/user_guide/model_repository.md and
model_configuration.md of triton-inference-server/server) and of ``model_config.proto`` of its ``common``.

Graphs and not an engine: those of an engine hold operators of one minor version of ONNX Runtime, and Triton brings a
version of its own, which optimises plain ONNX when it loads it.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from stage_rt.backends.triton import model_names
from stage_rt.errors import GraphsError, InputError
from stage_rt.files import digests, new_folder
from stage_rt.networks import Tensor, TensorDType, tensors
from stage_rt.samplers import check_sampler
from stage_rt.spec import GRAPHS_FILE, PROMPTS_FILE, GraphsSpec

from .graphs import REMEDY, read_graphs

VERSION = "1"
"""Folder of a model's one version."""
MODEL = "model"
"""Beside ``model.py``: the description and the contexts it paints by."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_TYPES: dict[TensorDType, str] = {"fp32": "TYPE_FP32", "fp16": "TYPE_FP16", "int64": "TYPE_INT64"}

_PAIRS = """\
name: "{name}"
backend: "python"
max_batch_size: 0
input [
  {{ name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "mask" data_type: TYPE_UINT8 dims: [ -1, -1 ] }},
  {{ name: "prompt" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "seed" data_type: TYPE_UINT64 dims: [ 1 ] }},
  {{ name: "steps" data_type: TYPE_INT32 dims: [ 1 ] optional: true }}
]
output [
  {{ name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "fill" data_type: TYPE_FP32 dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


def write_repository(source: Path, folder: Path, *, name: str) -> list[str]:
    """Make a model repository of a graphs folder; it appears whole or not at all.

    Args:
        source: graphs folder made by ``stage-rt export``.
        folder: repository to write, which must not hold anything yet.
        name: of the model that paints pairs; those of the networks begin with it.

    Returns:
        The names of its models, that one first.

    Raises:
        GraphsError: the graphs folder is incomplete or changed, or holds a file of no graph's name.
        InputError: ``name`` cannot be one, the graphs are bf16, or ``folder`` has content.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be the name of a model", "use up to 32 letters, digits, `_` and `-`"
        )
    graphs = read_graphs(source)
    if graphs.dtype == "bf16":
        raise InputError(
            f"the graphs in `{source}` are bf16, which Triton's ONNX Runtime does not take: export the model again "
            "with `stage-rt export --dtype fp32` or `--dtype fp16`"
        )
    check_sampler("stage", graphs.model)
    names = model_names(graphs.model, name)
    files = _files(source, graphs)
    with new_folder(folder) as staged:
        _write_pairs(source, staged / name, graphs)
        for graph, model in names.items():
            (staged / model / VERSION).mkdir(parents=True)
            (staged / model / "config.pbtxt").write_text(network_config(model, graph, graphs))
            for path, place in files[graph].items():
                shutil.copyfile(source / path, staged / model / VERSION / place)
    return [name, *names.values()]


def _files(source: Path, graphs: GraphsSpec) -> dict[str, dict[str, str]]:
    """Of every graph its files, and their names beside one another.

    Weights of a large graph lie beside it, under the name that is written in it; whose they are is told by its first
    part.
    """
    found = {
        graph: {path: PurePosixPath(path).name for path in graphs.files if path.startswith(f"{graph}.")}
        for graph in graphs.model.graphs
    }
    if strays := set(graphs.files) - {PROMPTS_FILE, *(path for own in found.values() for path in own)}:
        raise GraphsError(
            f"`{source / min(strays)}` has the name of no graph, so that nobody knows which model needs it: "
            f"{REMEDY}"
        )
    for graph, own in found.items():
        own[f"{graph}.onnx"] = "model.onnx"
    return found


def _write_pairs(source: Path, folder: Path, graphs: GraphsSpec) -> None:
    described = folder / VERSION / MODEL
    described.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(_PAIRS.format(name=folder.name))
    shutil.copyfile(Path(__file__).with_name("triton_model.py"), folder / VERSION / "model.py")
    shutil.copyfile(source / PROMPTS_FILE, described / PROMPTS_FILE)
    own = graphs.model_copy(update={"files": digests(described)})
    (described / GRAPHS_FILE).write_text(own.sealed(), encoding="utf-8")


def network_config(name: str, graph: str, graphs: GraphsSpec) -> str:
    """``config.pbtxt`` of a graph, any number of samples a request.

    Triton batches nothing by itself (``max_batch_size: 0``, the batch is a dimension like any other): a sample's bits
    depend on how many go through a network together, so that is the painter's to say.
    """
    takes, (output, given) = tensors(graphs.model, graphs.dtype, graph, batch=-1)
    return (
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
        f"input [\n{_listed(takes.items())}\n]\noutput [\n{_listed([(output, given)])}\n]\n"
        "instance_group [ { count: 1 kind: KIND_AUTO } ]\n"
    )


def _listed(named: Iterable[tuple[str, Tensor]]) -> str:
    return ",\n".join(
        f'  {{ name: "{name}" data_type: {_TYPES[tensor.dtype]} dims: [ {", ".join(map(str, tensor.shape))} ] }}'
        for name, tensor in named
    )
