"""A model to an engine for PyTorch itself: every network compiled ahead of time, or traced."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from stage_rt.backends.packages import arranged, free, opened, package, weights
from stage_rt.backends.pytorch import CPU, LIBRARY, exact, release
from stage_rt.batches import autoencoder_bucket, check_sizes
from stage_rt.errors import DeviceError, DeviceMemoryError, ParityError
from stage_rt.files import digests, locked, staged_folder
from stage_rt.folders import as_calibrated, read_engine, up_to_date
from stage_rt.names import BackendName, DType
from stage_rt.networks import TOLERANCE
from stage_rt.spec import ENGINE_FILE, PROMPTS_FILE, VAE_DECODER, VAE_ENCODER, EngineSpec, ModelSpec

from ..training.adapter import MaskGuidanceAdapter
from ..training.folder import Model, load_model
from . import compiler
from .fold import FoldedAdapter
from .hoist import hoistable, hoisted_model
from .inductor import compile_network
from .networks import TORCH_DTYPES, networks, random_inputs
from .origin import deciding, origin
from .tracing import trace_network
from .verify import error_of

_MAKING: dict[BackendName, str] = {"inductor": "compiling", "torch": "tracing"}

_LIBRARIES = ("torch", "diffusers")
"""What turns a model into networks and these into an engine, beside our own code."""


def build(
    source: Path,
    folder: Path,
    backend: BackendName,
    *,
    dtype: DType,
    batch: Sequence[int],
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Build a model folder for the GPU of this machine; the engine appears whole or not at all.

    An engine that is already there and was made from the same model by the same code is left alone; any other
    engine there is replaced. Of several processes that write one folder, one builds and the others wait.

    Args:
        source: the model folder.
        folder: engine folder to write.
        backend: ``inductor``, whose networks are compiled, or ``torch``, whose networks are traced.
        dtype: dtype of weights and arithmetic.
        batch: batch sizes the engine shall serve.
        device: ``cpu`` to build for this CPU, which serves tests; None for the GPU.
        say: told what is being done.

    Returns:
        Whether an engine was written; False when it was up to date.

    Raises:
        ModelError: the model folder is incomplete or inconsistent.
        DeviceError: there is no GPU that PyTorch can use.
        InputError: a batch size is none (`check_sizes`), or ``folder`` has content that is no engine.
        BackendError: PyTorch cannot compile or trace a network, for one thing because a compiler is missing.
        DeviceMemoryError: the GPU's memory is too small for a network at a batch size.
        ParityError: what was made of a network disagrees with it.
    """
    check_sizes(batch)
    model = load_model(source)
    if device is None and hoistable(model.unet):
        model = hoisted_model(model)
    wanted = describe(model.spec, backend, dtype, batch, device, _fingerprint(source, dtype))
    wanted = wanted.model_copy(update={"origin": origin(source, dtype, _LIBRARIES)})
    waiting = f"waiting for another process that builds `{folder}`"
    with locked(folder, lambda: say(waiting)):
        if up_to_date(folder, wanted) and read_engine(folder).origin == wanted.origin:
            return False
        with staged_folder(folder, replace=(folder / ENGINE_FILE).is_file()) as staged:
            write(model, as_calibrated(wanted, folder), staged, say=say)
    return True


def describe(
    model: ModelSpec,
    backend: BackendName,
    dtype: DType,
    batch: Sequence[int],
    device: str | None,
    fingerprint: str,
) -> EngineSpec:
    """The engine that `build` writes for a model, without its files; arguments as there.

    Raises:
        DeviceError: there is no GPU that PyTorch can use.
    """
    return EngineSpec(
        model=model,
        backend=backend,
        library=LIBRARY,
        library_version=release(torch.__version__),
        devices=[_target(device)],
        dtype=dtype,
        batch=sorted(set(batch)),
        graphs_fingerprint=fingerprint,
        gpu=torch.cuda.get_device_name() if backend == "inductor" and device != CPU else None,
        files={},
    )


def write(
    model: Model,
    wanted: EngineSpec,
    folder: Path,
    *,
    graphs: Collection[str] | None = None,
    tuned: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Fill ``folder`` with the engine ``wanted`` describes but for its files.

    Args:
        model: its networks.
        wanted: the engine.
        folder: where its files go.
        graphs: which of the networks, None for all.
        tuned: choose a GPU's kernels by trying them, which takes minutes; a CPU's never are.
        say: told what is being done.

    Raises:
        BackendError: PyTorch cannot compile or trace a network, or not even compile one layer for a GPU.
        DeviceMemoryError: the GPU's memory is too small for a network at a batch size.
        ParityError: what was made of a network disagrees with it.
    """
    if wanted.backend == "inductor" and wanted.devices != [CPU]:
        say("trying PyTorch's compiler on one layer")
        compiler.require("cuda")
    for graph, network in networks(model).items():
        if graphs is None or graph in graphs:
            try:
                _make(graph, network, model, wanted, folder, tuned, say)
            except torch.OutOfMemoryError as full:
                raise DeviceMemoryError(
                    f"the GPU's memory is full while {_MAKING[wanted.backend]} `{graph}`",
                    "use a smaller `--batch` or a GPU with more memory",
                ) from full
    contexts = {name: context.cpu().contiguous() for name, context in model.contexts.items()}
    (folder / PROMPTS_FILE).write_bytes(save(contexts))
    spec = wanted.model_copy(update={"files": digests(folder)})
    (folder / ENGINE_FILE).write_text(spec.sealed(), encoding="utf-8")


def _make(
    graph: str,
    network: nn.Module,
    model: Model,
    wanted: EngineSpec,
    folder: Path,
    tuned: bool,
    say: Callable[[str], None],
) -> None:
    device = "cpu" if wanted.devices == [CPU] else "cuda"
    if isinstance(network, MaskGuidanceAdapter):
        network = FoldedAdapter(network).eval()
    # nn.Module's own `to`, in place: the one of diffusers warns about every plain cast.
    nn.Module.to(network, device, TORCH_DTYPES[wanted.dtype])
    arranged(torch, dict(network.named_parameters()))
    sizes = wanted.batch
    if graph in (VAE_ENCODER, VAE_DECODER):
        sizes = [autoencoder_bucket(sizes)]
    for size in sizes:
        say(f"{_MAKING[wanted.backend]} {graph} for a batch of {size}")
        generator = torch.Generator().manual_seed(0)
        inputs = {
            name: tensor.to(device, TORCH_DTYPES[wanted.dtype] if tensor.is_floating_point() else None)
            for name, tensor in random_inputs(
                graph, model, batch=size, timesteps=[1, 0], generator=generator
            ).items()
        }
        path = folder / package(graph, size)
        with exact(torch):
            if wanted.backend == "inductor":
                needed = compile_network(network, inputs, path, tuned=tuned and device == "cuda")
            else:
                needed = trace_network(network, inputs, path)
            _compare(network, inputs, path, needed, wanted)
    save_file({name: tensor.contiguous() for name, tensor in needed.items()}, folder / weights(graph))
    network.to("cpu")


@torch.no_grad()
def _compare(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    needed: Mapping[str, Tensor],
    wanted: EngineSpec,
) -> None:
    """Hold what was made of a network, opened as the runtime opens it, against its network."""
    # Clones, as files hold them: opening lays them out anew, and they are freed here.
    kept = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in needed.items()}
    try:
        found, expected = opened(torch, path, kept, wanted.backend)(**inputs), network(**inputs)
        error = error_of(*(output.float().cpu().numpy() for output in (found, expected))).max_rel
    finally:
        free(kept)
    if not error <= TOLERANCE[wanted.dtype]:
        raise ParityError(
            f"`{path.name}` is off by {error:.1e} of its network's largest value, more than "
            f"{TOLERANCE[wanted.dtype]:g}: build the model for another dtype or with another version of PyTorch"
        )


def _target(device: str | None) -> str:
    if device == CPU:
        return CPU
    if not torch.cuda.is_available():
        raise DeviceError(
            "PyTorch builds for the GPU of the machine it runs on, and finds none here: run this where the GPU "
            "is or use `--backend tensorrt-rtx`"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def _fingerprint(source: Path, dtype: DType) -> str:
    """sha256 of all that decides what the networks compute."""
    decides = {"files": deciding(source), "dtype": dtype}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
