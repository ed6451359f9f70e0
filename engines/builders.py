"""What compiles graphs, one module a backend; the backend's name chooses here and nowhere else."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol

from stage_rt.errors import MissingExtraError
from stage_rt.files import sha256
from stage_rt.names import BackendName, DType
from stage_rt.progress import Progress

Notify = Callable[[str], None]
"""Told what the user should know."""


class Compiled(NamedTuple):
    """What a builder says of a graph that it compiled.

    ``workspace`` is the GPU memory for intermediate results in bytes, 0 without a GPU. ``inputs`` and ``outputs`` are
    the shapes of what the graph takes and gives, by name, -1 for a size that is not fixed.
    """

    workspace: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]


class Builder(Protocol):
    """Compiles graphs for one backend and a set of devices."""

    library: str
    """Name of the library that compiles."""
    version: str
    """Its version."""
    devices: list[str]
    """What the engine will run on, as in `EngineSpec`."""
    gpu: str | None
    """Name of the GPU that it is tuned on, None if on none."""

    def prepare(self, graphs: Mapping[str, Path], batch: Sequence[int], notify: Notify) -> None:
        """Look at all graphs of a set before the first is compiled.

        Args:
            graphs: path of each by its name.
            batch: batch sizes the engine shall serve.
            notify: told what the engine will need.

        Raises:
            InputError: a batch size cannot be served.
        """

    def compile(self, graph: Path, destination: Path, batch: Sequence[int], progress: Progress) -> Compiled:
        """Compile one graph.

        Args:
            graph: the ONNX file.
            destination: path of the result without suffix.
            batch: batch sizes the engine shall serve, ascending.
            progress: told how far it is.

        Returns:
            What was compiled; whether it is the graph that was meant is the caller's to see.

        Raises:
            BackendError: the library cannot compile it.
        """


def check_room(graph: Path, destination: Path) -> None:
    """Tell a full disk, once a library failed to write ``destination``: some call it an error of their own.

    Raises:
        OSError: there is less room than ``graph`` takes.
    """
    if shutil.disk_usage(destination.parent).free < graph.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(destination))


def sources() -> str:
    """sha256 of all that is written here: another release may build otherwise with the same library."""
    own = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256("\n".join(f"{path.name} {sha256(path)}" for path in own).encode()).hexdigest()


_EXTRAS: dict[BackendName, str] = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "rtx",
}
_MODULES: dict[BackendName, str] = {
    "onnxruntime": ".onnxruntime",
    "openvino": ".openvino",
    "tensorrt": ".tensorrt_gpu",
    "tensorrt-rtx": ".tensorrt_rtx",
}


def choose(backend: BackendName, dtype: DType, targets: Sequence[str] | None) -> Builder:
    """The builder of a backend.

    Args:
        backend: its name.
        dtype: that of the graphs.
        targets: devices as the user names them, or None for the backend's default.

    Raises:
        InputError: the backend does not know a target or cannot do the dtype on it.
        DeviceError: it needs a GPU that is not there.
        MissingExtraError: the library is not installed.
    """
    try:
        module = import_module(_MODULES[backend], __package__)
    except ModuleNotFoundError as missing:
        raise MissingExtraError(
            f"this needs `{missing.name}`, which is not installed: `pip install 'stage-rt[{_EXTRAS[backend]}]'`"
        ) from missing
    builder: Builder = module.builder(dtype, targets)
    return builder
