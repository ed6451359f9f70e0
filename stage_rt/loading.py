"""Opening an engine folder: the one place that knows every backend and every executor."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from stage_rt.engine import Engine
from stage_rt.executor import Executor, HostExecutor
from stage_rt.folders import read_contexts, read_engine, verify_engine
from stage_rt.networks import Backend, DeviceBackend
from stage_rt.spec import PROMPTS_FILE, EngineSpec

Notify = Callable[[str], None]


def warn(notice: str) -> None:
    """Tell the user of the library something, as a `RuntimeWarning`."""
    warnings.warn(notice, RuntimeWarning, stacklevel=2)


def load(engine_dir: str | Path, *, notify: Notify = warn) -> Engine:
    """Open an engine folder made by ``stage-rt build``.

    ``notify`` is told in one sentence when the engine has to go on in a slower way, as with a smaller batch when
    the device's memory is full.

    Raises:
        EngineError: a file is missing or was changed, or the engine is not for what is installed here.
        DeviceError: the engine needs a GPU that is not here.
        DeviceMemoryError: the GPU's memory is full.
        MissingExtraError: the engine's inference library is not installed.
    """
    folder = Path(engine_dir)
    spec = read_engine(folder)
    backend = open_backend(folder, spec)
    with ExitStack() as failed:
        failed.callback(backend.close)
        contexts = read_contexts(folder / PROMPTS_FILE, spec.model)
        executor: Executor = HostExecutor(spec.model, backend)
        if isinstance(backend, DeviceBackend) and spec.devices != ["cpu"]:
            from stage_rt.cuda.executor import DeviceExecutor

            executor = DeviceExecutor(spec, backend, notify)
        failed.pop_all()
    return Engine(spec, executor, contexts)


def open_backend(folder: Path, spec: EngineSpec) -> Backend:
    """Open the engine in ``folder``; its files and the library are checked before the library reads anything.

    Raises:
        EngineError: a file was changed, or the engine is for another version of the library or another GPU.
        DeviceError: the engine needs a GPU and there is none.
        MissingExtraError: the library is not installed.
    """
    verify_engine(folder, spec)
    if spec.backend == "onnxruntime":
        from stage_rt.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(folder, spec)
    if spec.backend == "openvino":
        from stage_rt.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(folder, spec)
    if spec.backend in ("inductor", "torch"):
        from stage_rt.backends.pytorch import PyTorchBackend

        return PyTorchBackend(folder, spec)
    from stage_rt.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(folder, spec)
