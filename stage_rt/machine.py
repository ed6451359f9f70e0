"""The machine: what this process may use of it, and what results name it by."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores this process may use; a container or ``taskset`` may keep some of the machine's from it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory this process may use; a container or a service may be given less than the machine has."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits() -> Iterator[int]:
    """Limits in bytes of the control groups, of either version, that this process is in (cgroups(7))."""
    for line in _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.is_file() else ():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            top, file = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = PurePosixPath(name)
        # A group within another has the limit of that too. In a container the names may be those outside of it.
        for group in (own, *own.parents):
            # Where there is no limit it says `max`.
            with suppress(OSError, ValueError):
                yield int((top / group.relative_to("/") / file).read_text())


def cpu_name() -> str:
    """The processor, and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {cores()} of {os.cpu_count()} cores"
