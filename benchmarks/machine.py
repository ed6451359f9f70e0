"""The machine a benchmark ran on, as its results name it."""

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor, and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
