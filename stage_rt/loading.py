"""Opening an engine folder: the one place that knows every backend and every executor."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pydantic import ValidationError
from stage_rt.backends import DeviceBackend, open_backend
from stage_rt.engine import Engine
from stage_rt.files import verify
from stage_rt.errors import EngineError
from stage_rt.executor import Executor, HostExecutor
from stage_rt.spec import ENGINE_FILE, PROMPTS_FILE, EngineSpec, ModelSpec, first_fault

Float32 = NDArray[np.float32]
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
    spec = read_spec(folder)
    backend = open_backend(folder, spec)
    contexts = read_contexts(folder / PROMPTS_FILE, spec.model)
    executor: Executor = HostExecutor(backend)
    if isinstance(backend, DeviceBackend) and spec.devices != ["cpu"]:
        from stage_rt.cuda.executor import DeviceExecutor

        executor = DeviceExecutor(spec, backend, notify)
    return Engine(spec, executor, contexts)


def read_contexts(path: Path, model: ModelSpec) -> dict[str, Float32]:
    """The context float32 ``[tokens, dim]`` of every prompt of ``model``.

    Raises:
        EngineError: the file cannot be read, or one is missing or of another shape.
    """
    remedy = "build the engine again with `stage-rt build`"
    try:
        contexts = load_file(path)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"`{path}` cannot be read ({error}): {remedy}") from error
    shape = (model.tokens, model.context_dim)
    for prompt in model.prompts:
        if prompt not in contexts or contexts[prompt].shape != shape:
            raise EngineError(f"`{path}` holds no context of shape {shape} for prompt {prompt!r}: {remedy}")
    return {prompt: contexts[prompt].astype(np.float32) for prompt in model.prompts}


def read_spec(folder: Path) -> EngineSpec:
    """``engine.json`` of an engine folder.

    Raises:
        EngineError: the file is missing or does not follow `EngineSpec`.
    """
    path = folder / ENGINE_FILE
    try:
        return EngineSpec.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise EngineError(
            f"`{folder}` is not an engine folder (no {ENGINE_FILE}): make one with `stage-rt build`"
        ) from None
    except ValidationError as error:
        where, why = first_fault(error)
        raise EngineError(
            f"`{path}` is not valid at {where} ({why}): build the engine again with `stage-rt build`"
        ) from None


def up_to_date(folder: Path, wanted: EngineSpec) -> bool:
    """Whether ``folder`` holds, whole, an engine of the fingerprint of ``wanted``."""
    try:
        found = read_spec(folder)
        verify(folder, found.files, ENGINE_FILE, EngineError, "it is built again")
    except EngineError:
        return False
    return found.fingerprint == wanted.fingerprint
