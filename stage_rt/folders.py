"""Folders that describe themselves in a JSON file: read and checked before anything else in them is."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from stage_rt.errors import EngineError, InputError
from stage_rt.files import inside, sha256
from stage_rt.spec import ENGINE_FILE, EngineSpec, first_fault

Spec = TypeVar("Spec", bound=BaseModel)

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
        InputError (as ``error``): the file is missing or does not follow ``kind``.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"`{path.parent}` {absent}") from None
    except ValidationError as fault:
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
        if sha256(folder / name) != digest:
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


def up_to_date(folder: Path, wanted: EngineSpec) -> bool:
    """Whether ``folder`` holds, whole, an engine of the fingerprint of ``wanted``."""
    try:
        found = read_engine(folder)
        verify_engine(folder, found)
    except EngineError:
        return False
    return found.fingerprint == wanted.fingerprint
