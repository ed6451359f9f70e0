"""Folders that describe themselves in a JSON file: read and checked before anything else in them is."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from stage_rt.errors import EngineError, InputError, first_line
from stage_rt.files import holds, inside, sha256, staged_for, unreadable
from stage_rt.names import BackendName
from stage_rt.spec import ENGINE_FILE, EngineSpec, ModelSpec, PromptDefaults, first_fault, is_newer

Spec = TypeVar("Spec", bound=BaseModel)

_ADAPTERS = "adapters"
_SUFFIXES = {".onnx", ".data", ".xml", ".bin", ".engine", ".pt2", ".safetensors"}
"""Of all that the backends make."""

REBUILD = "build the engine again with `stage-rt build`"


def read_description(
    path: Path, kind: type[Spec], error: type[InputError], *, absent: str, remedy: str
) -> Spec:
    """The description of a folder.

    Args:
        path: the JSON file.
        kind: what it has to follow.
        error: raised for what is wrong with it.
        absent: said of the folder when the file is not there.
        remedy: said when the file is not valid.

    Raises:
        InputError (as ``error``): the file is missing, cannot be read or does not follow ``kind``.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"`{path.parent}` {absent}") from None
    except PermissionError:
        raise unreadable(path, error) from None
    except OSError as fault:
        raise error(f"`{path}` cannot be read ({fault.strerror}): {remedy}") from None
    except ValidationError as fault:
        if is_newer(fault):
            raise error(f"`{path}` was made by a newer stage-rt", "update this one") from None
        where, why = first_fault(fault)
        raise error(f"`{path}` is not valid at {where} ({why}): {remedy}") from None


def verify(
    folder: Path, files: Mapping[str, str], description: str, error: type[InputError], remedy: str
) -> None:
    """Check that ``folder`` holds exactly ``files`` (path to sha256) beside its ``description``.

    Links are refused, and so is every file that is not listed: a network's graph can name either as a home
    of its weights.

    Raises:
        InputError (as ``error``): names the first file that is not as listed and ends in ``remedy``.
    """
    found = inside(folder)
    for path in found:
        if (folder / path).is_symlink():
            raise error(f"`{folder / path}` is a link, which is not allowed here: {remedy}")
        if str(path) not in files and str(path) != description:
            raise error(f"`{folder / path}` is not listed in {description}: remove it or {remedy}")
    if missing := sorted(set(files) - {str(path) for path in found}):
        raise error(f"`{folder / missing[0]}` is missing: {remedy}")
    for name, digest in files.items():
        try:
            same = sha256(folder / name) == digest
        except PermissionError:
            raise unreadable(folder / name, error) from None
        if not same:
            raise error(f"`{folder / name}` is not the file that {description} lists: {remedy}")


def read_engine(folder: Path) -> EngineSpec:
    """``engine.json`` of an engine folder.

    Raises:
        EngineError: the file is missing or does not follow `EngineSpec`.
    """
    absent = f"is not an engine folder (no {ENGINE_FILE}): make one with `stage-rt build`"
    return read_description(folder / ENGINE_FILE, EngineSpec, EngineError, absent=absent, remedy=REBUILD)


def verify_engine(folder: Path, spec: EngineSpec) -> None:
    """Check that an engine folder holds exactly the files that its description lists.

    Raises:
        EngineError: names the first file that is not as listed.
    """
    verify(folder, spec.files, ENGINE_FILE, EngineError, REBUILD)


def verify_again(folder: Path, spec: EngineSpec, names: Iterable[str]) -> None:
    """Check those of ``names`` that an open engine lists once more, just before they are read.

    A graph is read when it is first run, hours later in a long run: by then another engine may have been built into
    its folder, and networks of two models would paint together.

    Raises:
        EngineError: names the first file that is not the one that the engine was opened with.
    """
    for name in names:
        path = folder / name
        if name in spec.files and not holds(path, spec.files[name]):
            what = "replaced or changed" if path.exists() else "removed"
            raise EngineError(
                f"`{path}` was {what} while the engine was in use",
                "run the same command again, and build into another folder while one is in use",
            )


def up_to_date(folder: Path, wanted: EngineSpec) -> bool:
    """Whether ``folder`` holds, whole, an engine of the fingerprint of ``wanted``."""
    try:
        found = read_engine(folder)
        verify_engine(folder, found)
    except EngineError:
        return False
    return found.fingerprint == wanted.fingerprint


def as_calibrated(wanted: EngineSpec, folder: Path) -> EngineSpec:
    """``wanted`` with what `stage-rt calibrate` found of the engine in ``folder`` if it has its graphs and dtype."""
    try:
        found = read_engine(folder)
    except EngineError:
        return wanted
    if (found.graphs_fingerprint, found.dtype) != (wanted.graphs_fingerprint, wanted.dtype):
        return wanted
    defaults = dict(wanted.model.defaults)
    for prompt, measured in found.model.defaults.items():
        if measured.steps is not None:
            own = defaults.get(prompt, PromptDefaults())
            defaults[prompt] = own.model_copy(update={"steps": measured.steps})
    return wanted.model_copy(update={"model": wanted.model.model_copy(update={"defaults": defaults})})


def check_replaceable(folder: Path, backend: BackendName, *, force: bool) -> None:
    """Refuse to replace an engine of another backend, which took its time to build, unless ``force``.

    Nor is a folder replaced that holds more than an engine, as the pairs that were painted into it: all would be
    removed with it.

    Raises:
        InputError: ``folder`` holds one, or something else.
    """
    if (folder / ENGINE_FILE).is_file() and (other := next(filter(_is_foreign, inside(folder)), None)):
        inner = other if other.parts[0] == _ADAPTERS else other.parts[0]
        raise InputError(
            f"`{folder / inner}` is no part of an engine and would be removed with the one beside it",
            "move it elsewhere or choose another `-o`",
        )
    try:
        found = read_engine(folder)
    except EngineError:
        return
    if found.backend != backend and not force:
        raise InputError(
            f"`{folder}` holds an engine for {found.backend}",
            "choose another `-o`, or replace it with `--force`",
        )


def _is_foreign(path: PurePosixPath) -> bool:
    """Whether no build makes a file of this name; not by the list of the engine there, which may be damaged."""
    if str(path) == ENGINE_FILE or staged_for(path) == ENGINE_FILE:
        return False
    placed = len(path.parts) == 1 or (len(path.parts) == 2 and path.parts[0] == _ADAPTERS)
    return not placed or path.suffix not in _SUFFIXES


def read_contexts(
    path: Path, model: ModelSpec, error: type[InputError] = EngineError, remedy: str = REBUILD
) -> dict[str, NDArray[np.float32]]:
    """The context float32 ``[tokens, dim]`` of every prompt of ``model``, and of good surface if it has one.

    Raises:
        InputError (as ``error``): the file cannot be read, or one is missing, of another shape or not finite.
    """
    shape, contexts = (model.tokens, model.context_dim), {}
    try:
        with safe_open(path, framework="numpy") as file:
            held = set(file.keys())
            for name in model.contexts:
                # NumPy does not know all that can be stored, so it is asked before it is read.
                stored = file.get_slice(name) if name in held else None
                if stored is None or (tuple(stored.get_shape()), stored.get_dtype()) != (shape, "F32"):
                    raise error(
                        f"`{path}` holds no float32 context of shape {shape} for prompt {name!r}: {remedy}"
                    )
                contexts[name] = file.get_tensor(name)
    except (OSError, SafetensorError) as fault:
        raise error(f"`{path}` cannot be read ({first_line(fault)}): {remedy}") from fault
    for name, context in contexts.items():
        if not np.isfinite(context).all():
            raise error(f"`{path}` holds a context that is not finite for prompt {name!r}: {remedy}")
    return contexts
