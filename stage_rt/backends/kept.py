"""What a compiler found out on this GPU, kept for the next process: it saves time, and is made again where lost."""

import hashlib
from contextlib import suppress
from pathlib import Path

from stage_rt.cuda import device
from stage_rt.files import cache_folder, write_atomic

_DIGEST = hashlib.sha256().digest_size


def place(library: str, version: str, what: str) -> Path:
    """One file for each of ``what`` is kept, GPU, driver and version of a library.

    In the user's cache: an engine folder holds what `engine.json` lists and nothing else, and may be read-only.
    """
    gpu = device.current()
    named = "\n".join([what, gpu.name, gpu.sm, str(device.driver_version()), version])
    return cache_folder() / library / hashlib.sha256(named.encode()).hexdigest()


def read(file: Path) -> bytes:
    """What was kept, nothing where there is none or it is damaged."""
    try:
        stored = file.read_bytes()
    except OSError:
        return b""
    digest, content = stored[:_DIGEST], stored[_DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else b""


def write(file: Path, content: bytes) -> None:
    """Keep it; a disk that is full or read-only costs only the time to make it again."""
    with suppress(OSError):
        write_atomic(file, hashlib.sha256(content).digest() + content)
