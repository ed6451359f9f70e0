"""Whether a process that a test started still runs."""

from pathlib import Path


def gone(pid: int) -> bool:
    """It ended; one that nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
