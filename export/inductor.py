"""A model to an engine for PyTorch itself: every network compiled ahead of time by AOTInductor."""

import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stage_rt.backends.inductor import CPU, LIBRARY, arranged, exact, open_package, package, release, weights
from stage_rt.batches import autoencoder_bucket
from stage_rt.errors import BackendError, DeviceError, ParityError, first_line
from stage_rt.files import digests, staged_folder
from stage_rt.folders import up_to_date
from stage_rt.names import DType
from stage_rt.networks import TOLERANCE
from stage_rt.spec import ENGINE_FILE, PROMPTS_FILE, VAE_DECODER, VAE_ENCODER, EngineSpec, ModelSpec

from ..training.adapter import MaskGuidanceAdapter
from ..training.folder import Model, load_model
from . import compiler
from .fold import FoldedAdapter
from .hoist import hoistable, hoisted_model
from .networks import TORCH_DTYPES, networks, random_inputs
from .origin import deciding
from .verify import error_of

# The weights lie in a file of their own: three batch sizes shall not hold them three times.
_OPTIONS: dict[str, bool | str] = {"aot_inductor.package_constants_in_so": False}

_TUNED: dict[str, bool | str] = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    # Otherwise every way that asks for more shared memory than there is fails twice, after seconds of compiling.
    "max_autotune_prune_choices_based_on_shared_mem": True,
    # So that they are tuned as the matrix products they are, and take what comes after them along.
    "conv_1x1_as_mm": True,
    # The 3x3 ones are left to cuDNN: there are ninety of them at full size, each with dozens of ways to try.
    "max_autotune_conv_backends": "ATEN",
}
"""On a GPU: kernels are chosen by trying them, when the engine is built and never again.

cuDNN's own search (``cudnn.benchmark``) is left off: it would be made anew by every process, which may choose others,
and a run that goes on would no longer have the bits of one that was not interrupted.
"""

_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""In this order whatever PyTorch prefers, so that an engine does not depend on what its release likes best."""


def build(
    source: Path,
    folder: Path,
    *,
    dtype: DType,
    batch: Sequence[int],
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Compile a model folder for the GPU of this machine; the engine appears whole or not at all.

    An engine that is already there and was made from the same model in the same way is left alone; any other
    engine there is replaced.

    Args:
        source: the model folder.
        folder: engine folder to write.
        dtype: dtype of weights and arithmetic.
        batch: batch sizes the engine shall serve.
        device: ``cpu`` to compile for this CPU, which serves tests; None for the GPU.
        say: told what is being done.

    Returns:
        Whether an engine was written; False when it was up to date.

    Raises:
        ModelError: the model folder is incomplete or inconsistent.
        DeviceError: there is no GPU that PyTorch can use.
        InputError: ``folder`` has content that is no engine.
        BackendError: PyTorch cannot compile a network, for one thing because a compiler is missing.
        ParityError: a compiled network disagrees with its source.
    """
    model = load_model(source)
    if device is None and hoistable(model.unet):
        model = hoisted_model(model)
    wanted = describe(model.spec, dtype, batch, device, _fingerprint(source, dtype))
    exists = (folder / ENGINE_FILE).is_file()
    if exists and up_to_date(folder, wanted):
        return False
    with staged_folder(folder, replace=exists) as staged:
        write(model, wanted, staged, say=say)
    return True


def describe(
    model: ModelSpec, dtype: DType, batch: Sequence[int], device: str | None, fingerprint: str
) -> EngineSpec:
    """The engine that `build` writes for a model, without its files; arguments as there.

    Raises:
        DeviceError: there is no GPU that PyTorch can use.
    """
    return EngineSpec(
        model=model,
        backend="inductor",
        library=LIBRARY,
        library_version=release(torch.__version__),
        devices=[_target(device)],
        dtype=dtype,
        batch=sorted(set(batch)),
        graphs_fingerprint=fingerprint,
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
        BackendError: PyTorch cannot compile a network, or for a GPU not even one layer.
        ParityError: a compiled network disagrees with its source.
    """
    if wanted.devices != [CPU]:
        say("trying PyTorch's compiler on one layer")
        compiler.require("cuda")
    for graph, network in networks(model).items():
        if graphs is None or graph in graphs:
            _compile(graph, network, model, wanted, folder, tuned, say)
    contexts = {name: context.cpu().contiguous() for name, context in model.contexts.items()}
    (folder / PROMPTS_FILE).write_bytes(save(contexts))
    spec = wanted.model_copy(update={"files": digests(folder)})
    (folder / ENGINE_FILE).write_text(spec.sealed())


def compile_network(
    network: nn.Module, inputs: Mapping[str, Tensor], path: Path, *, tuned: bool = False
) -> dict[str, Tensor]:
    """Write one network for the shapes, dtypes and device of ``inputs``; returns the weights that it needs.

    ``tuned`` chooses the kernels of a GPU by trying them.

    Raises:
        BackendError: PyTorch cannot compile it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = _OPTIONS | (_TUNED if tuned else {})
    with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(_ATTENTION, set_priority=True):
        # torch's own use of what it deprecates.
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(network, (), kwargs=dict(inputs))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=options
            )
        except Exception as error:  # The compiler's exceptions have no common base.
            raise BackendError(f"PyTorch cannot compile `{path.name}`: {first_line(error)}") from error
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    return {name: value.detach().clone() for name, value in {**program.state_dict, **constants}.items()}


def _compile(
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
        say(f"compiling {graph} for a batch of {size}")
        generator = torch.Generator().manual_seed(0)
        inputs = {
            name: tensor.to(device, TORCH_DTYPES[wanted.dtype] if tensor.is_floating_point() else None)
            for name, tensor in random_inputs(
                graph, model, batch=size, timesteps=[1, 0], generator=generator
            ).items()
        }
        path = folder / package(graph, size)
        with exact(torch):
            needed = compile_network(network, inputs, path, tuned=tuned and device == "cuda")
            _compare(network, inputs, path, needed, wanted.dtype)
    save_file({name: tensor.contiguous() for name, tensor in needed.items()}, folder / weights(graph))
    network.to("cpu")


@torch.no_grad()
def _compare(
    network: nn.Module, inputs: Mapping[str, Tensor], path: Path, needed: Mapping[str, Tensor], dtype: DType
) -> None:
    """Hold a package, opened as the runtime opens it, against its network."""
    kept = {name: tensor.contiguous() for name, tensor in needed.items()}
    found, expected = open_package(torch, path, kept)(**inputs), network(**inputs)
    error = error_of(*(output.float().cpu().numpy() for output in (found, expected))).max_rel
    if not error <= TOLERANCE[dtype]:
        raise ParityError(
            f"`{path.name}` is off by {error:.1e} of its network's largest value, more than {TOLERANCE[dtype]:g}: "
            "compile the model for another dtype or with another version of PyTorch"
        )


def _target(device: str | None) -> str:
    if device == CPU:
        return CPU
    if not torch.cuda.is_available():
        raise DeviceError(
            "PyTorch compiles for the GPU of the machine it runs on, and finds none here: run this where the GPU "
            "is or use `--backend tensorrt-rtx`"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def _fingerprint(source: Path, dtype: DType) -> str:
    """sha256 of all that decides what the networks compute."""
    decides = {"files": deciding(source), "dtype": dtype}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
