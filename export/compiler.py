"""Whether PyTorch's ahead-of-time compiler works here, asked in a process of its own: one that is broken crashes."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from stage_rt.backends.pytorch import release
from stage_rt.errors import BackendError

# Without the folder it is started in, where a checkout's `stage_rt` would stand before the installed one.
_COMMAND = [sys.executable, "-P", "-m", "stage_rt.export.one_layer"]
_SECONDS = 300
"""The longest that one layer may take; it took 26 s on two cores, nearly all of them PyTorch's own headers."""


def require(device: str) -> None:
    """Let one layer be compiled, opened and called, before minutes are spent on whole networks.

    PyTorch 2.11.0 for CUDA 13.0 was seen on an H100 to crash on opening whatever it had compiled (docs/gpu.md).

    Args:
        device: ``cuda`` or ``cpu``.

    Raises:
        BackendError: it crashed, failed, gave a wrong result or took minutes.
    """
    version = release(torch.__version__)
    remedy = "install another version of PyTorch or use `--backend torch`"
    with tempfile.TemporaryDirectory() as folder:
        command = [*_COMMAND, device, str(Path(folder) / "layer.b1.pt2")]
        try:
            child = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BackendError(
                f"PyTorch {version} did not compile a single layer in {_SECONDS} s: {remedy}"
            ) from None
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise BackendError(
            f"PyTorch {version} crashes with {name} on a single layer that it compiled: {remedy}"
        )
    if child.returncode:
        said = [line for line in child.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        raise BackendError(f"PyTorch {version} cannot compile a single layer ({said[-1].strip()}): {remedy}")
