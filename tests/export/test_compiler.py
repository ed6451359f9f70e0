"""A compiler that crashes is told of before it is given whole networks."""

import subprocess
import sys

import pytest

from stage_rt.errors import BackendError
from stage_rt.export import compiler, one_layer
from stage_rt.export.compiler import require


def test_a_layer_is_compiled_and_called(tmp_path):
    one_layer.main("cpu", tmp_path / "layer.b1.pt2")


def test_the_installed_package_is_asked_from_within_a_checkout_too(tmp_path, monkeypatch):
    """A checkout's own `stage_rt` has no `export`: that folder lies beside it."""
    (tmp_path / "stage_rt").mkdir()
    (tmp_path / "stage_rt/__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    child = subprocess.run([*compiler._COMMAND, "cpu"], capture_output=True, text=True, check=False)
    assert child.stderr.rstrip().endswith("IndexError: list index out of range")


def test_a_compiler_that_works_is_found_to(monkeypatch):
    program = "import sys; device, package = sys.argv[1:]; sys.exit(device != 'cuda')"
    monkeypatch.setattr(compiler, "_COMMAND", [sys.executable, "-c", program])
    require("cuda")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes with SIGSEGV on a single layer"),
        ("raise OSError('no compiler')", r"cannot compile a single layer \(OSError: no compiler\): install "),
        ("import sys; sys.exit(3)", r"cannot compile a single layer \(it gave no reason\): install "),
        ("import time; time.sleep(60)", "did not compile a single layer in 1 s: install "),
    ],
)
def test_one_that_does_not_is_told_of_in_a_sentence(program, told, monkeypatch):
    monkeypatch.setattr(compiler, "_COMMAND", [sys.executable, "-c", program])
    if "sleep" in program:
        monkeypatch.setattr(compiler, "_SECONDS", 1)
    with pytest.raises(BackendError, match=rf"^PyTorch \d+\.\d+\.\d+ {told}"):
        require("cuda")
