"""Engines that are for one minor version of their library."""

from pathlib import Path

from stage_rt.errors import EngineError
from stage_rt.spec import EngineSpec


def require_minor(folder: Path, spec: EngineSpec, found: str) -> None:
    """Refuse an engine of another minor version than ``found``, the one that is installed.

    Raises:
        EngineError: names both versions.
    """
    expected = spec.library_version
    if _minor(found) != _minor(expected):
        raise EngineError(
            f"`{folder}` was built with {spec.library} {expected} but {found} is installed: build the engine "
            f"again with `stage-rt build` or `pip install {spec.library}=={_minor(expected)}.*`"
        )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
