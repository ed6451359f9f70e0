"""STAGE at run time: engines on disk in, image and mask pairs on disk out.

`load` opens an engine folder; the submodules listed in ``__all__`` can be reached as attributes. Nothing is
imported before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage_rt import (
        backends,
        cuda,
        engine,
        errors,
        executor,
        folders,
        images,
        kernels,
        loading,
        networks,
        noise,
        recipe,
        run,
        sampler,
        samplers,
        schedule,
        spec,
    )
    from stage_rt.loading import load

__all__ = [
    "__version__",
    "backends",
    "cuda",
    "engine",
    "errors",
    "executor",
    "folders",
    "images",
    "kernels",
    "load",
    "loading",
    "networks",
    "noise",
    "recipe",
    "run",
    "sampler",
    "samplers",
    "schedule",
    "spec",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("stage_rt.loading").load
    if name in __all__:
        return import_module(f"stage_rt.{name}")
    raise AttributeError(f"module `stage_rt` has no attribute `{name}`")


def __dir__() -> list[str]:
    return __all__
