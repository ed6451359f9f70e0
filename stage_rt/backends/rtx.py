"""What TensorRT-RTX alone needs at run time: it compiles an engine's kernels on the GPU it finds, and keeps them."""

from pathlib import Path
from typing import Any

from stage_rt.backends import kept


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
        self._kept = kept.read(file)
        # It looks by itself whether they are for this GPU and driver, and takes none that are not.
        if self._kept:
            self._cache.deserialize(self._kept)
        self._config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        """A new execution context whose memory is the caller's, or None."""
        return self._engine.create_execution_context(self._config)

    def keep(self) -> None:
        """Keep what was compiled so far, where that is more than before."""
        content = bytes(self._cache.serialize())
        if content != self._kept:
            kept.write(self._file, content)
            self._kept = content
