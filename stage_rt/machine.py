"""What this process may use of the machine."""

import os


def cores() -> int:
    """Cores this process may use; a container or ``taskset`` may keep some of the machine's from it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
