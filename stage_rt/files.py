"""Files and folders that appear whole or not at all: staged beside the destination, synced, renamed."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath

from stage_rt.errors import InputError, StageError

LONGEST_NAME = 241
"""Bytes that a file's name may have, so that the one it is staged under has no more than file systems allow (255)."""
_LOCK_SECONDS = 0.2
_STAGED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds(path: Path, digest: str | None) -> bool:
    """Whether a file is there and its content has that sha256."""
    return path.is_file() and sha256(path) == digest


def identity(path: str | Path) -> tuple[int, int, int] | None:
    """A file's size, time in nanoseconds and inode, which tell whether it is as it was; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def real(path: Path) -> Path:
    """``path`` without links; `Path.resolve` raises where links lead in a circle."""
    return Path(os.path.realpath(path))


def check_apart(folder: Path, output: Path, option: str = "-o") -> None:
    """Refuse to write ``output``, named by ``option``, into a ``folder`` that is read: what is there lists what it
    holds, or is searched.

    Raises:
        InputError: it lies there.
    """
    if real(output).is_relative_to(real(folder)):
        raise InputError(
            f"`{output}` would lie in `{folder}`, which could not be used with it inside: choose another `{option}`"
        )


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder by its POSIX path inside it, in order of the paths."""
    return {str(path): sha256(folder / path) for path in inside(folder)}


def write_atomic(
    path: str | Path, content: bytes | Iterable[bytes | memoryview], *, synced: bool = True
) -> None:
    """Write or replace a file, making its folder first; a crash leaves the old content or the new.

    Args:
        path: the file.
        content: its bytes, or parts of them.
        synced: wait for the disk; otherwise a machine that loses power may leave an empty file.
    """
    # As text: a `Path` puts each part of its name into the interpreter's table of strings, which is built anew, in
    # another size, when so many names have come and gone.
    folder, name = os.path.split(path)
    changed = [folder or "."]
    while not os.path.exists(changed[-1]):
        changed.append(os.path.dirname(changed[-1]) or ".")
    os.makedirs(changed[0], exist_ok=True)
    staged = os.path.join(folder, _staged(name))
    try:
        with open(staged, "xb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(staged)
        raise
    if synced:
        for place in changed:
            _sync(place)


def cache_folder() -> Path:
    """Where users have what only saves time: ``$XDG_CACHE_HOME`` or ``~/.cache``, and there ``stage-rt``.

    Users without a home, as some in containers are, have it where nothing can be read or written.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stage-rt"
    except RuntimeError:
        return Path(os.devnull, "stage-rt")


def remember(path: Path, *parts: bytes | memoryview) -> None:
    """Write what may be lost: a hidden file that only saves work, with its own digest in the first line."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_atomic(path, (digest.hexdigest().encode() + b"\n", *parts), synced=False)


def recall(path: Path) -> bytes | None:
    """What `remember` wrote; None where there is nothing or something else."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest().encode() == digest else None


@contextmanager
def disk_failures(path: Path, option: str = "-o") -> Iterator[None]:
    """A block that writes ``path``, named by ``option``, in which a failing disk becomes one sentence on the file.

    Raises:
        InputError: a file may not be read or written.
        StageError: the disk is full or failed.
    """
    try:
        yield
    except OSError as failure:
        if failure.errno is None:
            # Libraries have errors of their own that are called so.
            raise
        place = _place(failure) or path
        if not isinstance(failure, PermissionError):
            raise StageError(
                f"{_doing(failure, place)} `{place}` failed ({failure.strerror})",
                "mend that and run the same command again",
            ) from failure
        if os.path.exists(place) and not os.access(place, os.R_OK):
            raise unreadable(place) from failure
        there = next(each for each in (place, *place.parents) if os.path.exists(each))
        raise InputError(
            f"`{there}` may not be written", f"give yourself permission or another `{option}`"
        ) from failure


def unreadable(path: Path, error: type[InputError] = InputError) -> InputError:
    """The error on a file that this user may not read: others would be told to make it anew."""
    return error(f"`{path}` may not be read", "give yourself permission and run the same command again")


def _doing(failure: OSError, place: Path) -> str:
    if failure.errno == errno.EIO:
        return "reading or writing"
    # What is written is made where it is not there, if its folder is.
    missing = failure.errno == errno.ENOENT and place.parent.is_dir()
    return "reading" if missing else "writing to"


def _place(failure: OSError) -> Path | None:
    """The file that failed, under the name it has or would have had."""
    name = failure.filename2 or failure.filename
    if not isinstance(name, str | os.PathLike):
        return None
    return Path(*(staged_for(PurePath(part)) or part for part in Path(name).parts))


def try_out(path: Path, option: str = "-o") -> None:
    """See that ``path``, named by ``option``, can be written before the work whose result it is; nothing is made.

    Raises:
        InputError, StageError: as `disk_failures`.
    """
    with disk_failures(path, option):
        missing = next((each for each in (path, *path.parents) if os.path.lexists(each.parent)), path)
        staged = _beside(missing)
        staged.touch(exist_ok=False)
        # Another process may be in `locked`, and take it for what a crash left.
        staged.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Folder to fill that becomes ``folder`` when the block ends and vanishes when it raises.

    Args:
        folder: destination; its parents are made.
        replace: let a ``folder`` with content give way once the new one is complete.

    Raises:
        InputError: ``folder`` has content and is not to be replaced, is a file, or a disk is mounted there.
        OSError: a disk failed, which `locked` around it tells.
    """
    folder = real(folder)
    _check_free(folder, replace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = _beside(folder)
    staged.mkdir()
    try:
        yield staged
        # Not by `rglob`, which remembers every path.
        for place, _, names in os.walk(staged, topdown=False):
            for name in names:
                _open_to_others(Path(place, name), staged)
            for path in (*names, "."):
                _sync(Path(place, path))
        _check_free(folder, replace)
        _move(staged, folder, replace)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _sync(folder.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """`staged_folder` for one process at a time, without what one that was killed had staged there.

    Raises:
        InputError, StageError: as `staged_folder` and `locked`, or another process is writing ``folder``.
    """

    def taken() -> None:
        raise InputError(f"`{folder}` is being written by another process", "wait for it to end")

    _check_free(real(folder), replace=False)
    with locked(folder, taken), staged_folder(folder) as staged:
        yield staged


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time into the block, by a hidden file beside ``path`` that is gone afterwards.

    What processes that were killed had staged for ``path`` is removed: an engine has gigabytes.

    Args:
        path: what the block writes; its folder is made.
        waiting: called every fifth of a second while another process is in the block; it may raise.

    Raises:
        InputError, StageError: as `disk_failures`, of what the block does too.
    """
    with disk_failures(path):
        path = real(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.name}.lock")
        handle = _lock(name, waiting)
        try:
            _sweep(path)
            yield
        finally:
            name.unlink(missing_ok=True)
            os.close(handle)


def _sweep(path: Path) -> None:
    """Remove what was staged for ``path``, whom no other process is writing."""
    for left in path.parent.iterdir():
        if staged_for(left) != path.name:
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _lock(name: Path, waiting: Callable[[], None]) -> int:
    while True:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder removes the file in the end: a lock on a removed one keeps nobody out.
            if os.path.samestat(os.fstat(handle), name.stat()):
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        waiting()
        time.sleep(_LOCK_SECONDS)


def _check_free(folder: Path, replace: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"`{folder}` is a file, choose another `-o`")
    if os.path.ismount(folder):
        # Nothing can be renamed to it, which would be seen when all the work is done.
        raise InputError(f"a disk is mounted at `{folder}`: give a folder inside it as `-o`")
    if not replace and any(folder.iterdir()):
        raise InputError(f"`{folder}` exists already, remove it or choose another `-o`")


def _move(staged: Path, folder: Path, replace: bool) -> None:
    if not (replace and folder.exists()):
        os.rename(staged, folder)
        return
    old = _beside(folder)
    os.rename(folder, old)
    try:
        os.rename(staged, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def inside(folder: Path) -> list[PurePosixPath]:
    """Files and links in a folder, by their paths inside it, in order."""
    return sorted(
        PurePosixPath(path.relative_to(folder).as_posix())
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def staged_for(path: PurePath) -> str | None:
    """The name of the file that ``path`` was to become when a crash left it, None if it is no such file."""
    name = _STAGED.fullmatch(path.name)
    return name and name[1]


def _beside(path: Path) -> Path:
    return path.with_name(_staged(path.name))


def _staged(name: str) -> str:
    return f".{name}.{secrets.token_hex(4)}.tmp"


def _open_to_others(path: Path, folder: Path) -> None:
    """Give a file the permissions that it would have if its folder's maker had written it.

    Some libraries, safetensors for one, make theirs for their user alone. A file with another name is someone else's.
    """
    if path.stat().st_nlink == 1:
        path.chmod(folder.stat().st_mode & 0o666)


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
