"""The GPU of softcuda for every test of this folder that asks for ``machine``; skips where there is none."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from soft_gpu import SoftGpu

BUILT = Path(__file__).parents[2] / "build" / "softcuda"


def missing() -> str | None:
    """Why the driver of this process is not softcuda, or None where it is."""
    if (BUILT / "missing").is_file():
        return (BUILT / "missing").read_text().strip()
    try:
        ctypes.CDLL("libcuda.so.1").soft_counts  # noqa: B018
    except (OSError, AttributeError):
        return "runs on softcuda: `make softcuda`, then `build/softcuda/run .venv/bin/pytest tests/cuda`"
    return None


@pytest.fixture
def machine() -> Iterator["SoftGpu"]:
    """The GPU; what a test leaves alive on it fails that test."""
    if reason := missing():
        pytest.skip(reason)
    from soft_gpu import SoftGpu

    gpu = SoftGpu()
    yield gpu
    gpu.check()


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def notify(notices: list[str]) -> Callable[[str], None]:
    return notices.append
