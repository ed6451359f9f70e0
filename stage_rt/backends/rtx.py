"""What TensorRT-RTX alone needs at run time: it compiles an engine's kernels on the GPU it finds, and keeps them."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from stage_rt.cuda import device
from stage_rt.files import write_atomic

_DIGEST = hashlib.sha256().digest_size


def cache_file(plan: str, library_version: str) -> Path:
    """Where the compiled kernels of a plan are kept: one file for each plan, GPU, driver and version of the library.

    ``plan`` is the plan's digest. Under ``$XDG_CACHE_HOME`` or ``~/.cache``: an engine folder holds what
    `engine.json` lists and nothing else, and may be read-only.
    """
    gpu = device.current()
    what = "\n".join([plan, gpu.name, gpu.sm, str(device.driver_version()), library_version])
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "stage-rt" / "tensorrt-rtx" / hashlib.sha256(what.encode()).hexdigest()


class Kernels:
    """The kernels of one engine on this GPU, those of an earlier process among them.

    Shapes get kernels of their own before they run. By default the library starts with others and changes to them,
    and to other bits of the results, in the middle of a run, when a thread of its own has compiled them.
    """

    def __init__(self, trt: Any, engine: Any, file: Path) -> None:
        self._file, self._engine = file, engine
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._cache = self._config.create_runtime_cache()
        self._kept = _read(file)
        # It looks by itself whether they are for this GPU and driver, and takes none that are not.
        if self._kept:
            self._cache.deserialize(self._kept)
        self._config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        """A new execution context whose memory is the caller's, or None."""
        return self._engine.create_execution_context(self._config)

    def close(self) -> None:
        """Keep what was compiled; a disk that is full or read-only costs only the time to compile it again."""
        content = bytes(self._cache.serialize())
        if content != self._kept:
            with suppress(OSError):
                write_atomic(self._file, hashlib.sha256(content).digest() + content)


def _read(file: Path) -> bytes:
    """What was kept, nothing where there is none or it is damaged."""
    try:
        stored = file.read_bytes()
    except OSError:
        return b""
    digest, content = stored[:_DIGEST], stored[_DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else b""
