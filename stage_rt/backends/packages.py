"""A network of an engine for PyTorch in its files: at every batch size compiled or traced, and its weights once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stage_rt.names import BackendName

Run = Callable[..., Any]
"""Called with a network's inputs by name; gives its output."""


def package(graph: str, batch: int) -> str:
    """File of a graph at a batch size, in an engine folder."""
    return f"{graph}.b{batch}.pt2"


def weights(graph: str) -> str:
    """File of a graph's weights, which its packages of all sizes share."""
    return f"{graph}.safetensors"


def arranged(torch: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Give the weights of convolutions, in place, the layout the compiler would otherwise give them at every call.

    Files know no layouts, so this is done before compiling and again when the weights are read.
    """
    for tensor in tensors.values():
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return tensors


def free(tensors: Mapping[str, Any]) -> None:
    """Give back the memory of weights that no graph will use again, whoever still holds them.

    AOTInductor's packages never let go of weights they were handed (a reference each, PyTorch 2.13). Those that are
    a file's mapped pages cannot be given back, and need not be.
    """
    for tensor in tensors.values():
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(0)


def open_package(torch: Any, path: Path, constants: dict[str, Any]) -> Run:
    """A package as a function of its inputs by name; ``constants`` are its weights, as they were read."""
    # Without the locks that let several threads in, and which a CUDA graph cannot record.
    runner = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    needed = {name: constants[name] for name in runner.get_constant_fqns()}
    runner.load_constants(arranged(torch, needed), check_full_update=True, user_managed=True)
    return lambda **inputs: runner(**inputs)


def open_program(torch: Any, path: Path, constants: Mapping[str, Any]) -> Run:
    """A traced network as a function of its inputs by name, which calls PyTorch's kernels one by one.

    Weights are inputs of the program too, so that programs of all batch sizes share them; they go in sorted.
    """
    program = torch.export.load(path).module()
    needed = dict(sorted(arranged(torch, dict(constants)).items()))
    return lambda **inputs: program(needed, inputs)


_OPEN: dict[BackendName, Callable[[Any, Path, dict[str, Any]], Run]] = {
    "inductor": open_package,
    "torch": open_program,
}


def opened(torch: Any, path: Path, constants: dict[str, Any], backend: BackendName) -> Run:
    """A file of an engine of ``backend`` as a function of its inputs by name; ``constants`` are its weights."""
    return _OPEN[backend](torch, path, constants)
