"""What graphs are exported from, as one digest: a build that would export the same again need not."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from stage_rt.errors import MissingExtraError
from stage_rt.files import sha256
from stage_rt.names import DType

LIBRARIES = ("torch", "diffusers", "onnx", "onnx-ir", "onnxscript")
"""What turns networks into graphs, beside our own code."""

_DECIDING = (".json", ".safetensors")


def deciding(model: Path) -> dict[str, str]:
    """sha256 by path of the files that decide what a model folder's networks compute.

    Such a folder also holds pictures and may hold a page. Networks that several models share may be links, and so may
    their folders.
    """
    return {str(path): sha256(model / path) for path in sorted(_files(model)) if path.suffix in _DECIDING}


def _files(model: Path) -> Iterator[PurePosixPath]:
    """Files by their paths, through links; those of a folder that is met again only once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(model, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders.sort()
        yield from (
            PurePosixPath(path.relative_to(model).as_posix())
            for path in (Path(place, name) for name in names)
            if path.is_file()
        )


def origin(model: Path, dtype: DType, libraries: Sequence[str] = LIBRARIES) -> str:
    """sha256 of a model folder's weights and descriptions, of the exporter's sources and libraries, and of the dtype.

    Nothing heavy is imported for it.

    Raises:
        MissingExtraError: one of the libraries is not installed.
    """
    package = Path(__file__).parents[1]
    own = [*sorted((package / "export").glob("*.py")), *sorted((package / "training").glob("*.py"))]
    parts = [
        dtype,
        *(f"{path} {digest}" for path, digest in deciding(model).items()),
        *(f"{path.name} {sha256(path)}" for path in own),
        *(f"{library} {_version(library)}" for library in libraries),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError as missing:
        raise MissingExtraError(
            f"exporting a model needs `{library}`, which is not installed: `pip install 'stage-rt[export]'`"
        ) from missing
