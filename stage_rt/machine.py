"""What this process may use of the machine."""

import os


def cores() -> int:
    """Cores this process may use; a container or ``taskset`` may keep some of the machine's from it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
