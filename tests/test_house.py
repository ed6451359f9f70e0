"""The import contracts of pyproject.toml, on the tree as it is and with one import too many."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = "from importlinter.cli import lint_imports_command as run; run()"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The packages as they are installed, one beside the other."""
    for name, place in {
        "stage_rt": "",
        "training": "training",
        "export": "export",
        "engines": "engines",
        "benchmarks/quality": "quality",
    }.items():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "stage_rt" / place, ignore=ignored, dirs_exist_ok=True)
    return tmp_path


def lint(tree: Path) -> tuple[int, str]:
    # Without site: the finder of an editable install would look at the checkout instead.
    path = os.pathsep.join([str(tree), sysconfig.get_path("purelib")])
    command = [sys.executable, "-S", "-c", CODE, str(ROOT / "pyproject.toml"), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_house_stands(tree: Path) -> None:
    code, output = lint(tree)
    assert code == 0, output
    assert "0 broken" in output


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        (
            "images/compose.py",
            "from stage_rt.engine import Engine",
            "stage_rt.images.compose -> stage_rt.engine",
        ),
        ("engine.py", "from stage_rt.loading import load", "stage_rt.engine -> stage_rt.loading"),
        ("executor.py", "from stage_rt.cuda import executor", "stage_rt.executor -> stage_rt.cuda.executor"),
        ("networks.py", "from stage_rt.folders import verify", "stage_rt.networks -> stage_rt.folders"),
        ("attic.py", "", "attic"),
        ("sampler.py", "import onnxruntime", "stage_rt.sampler -> onnxruntime"),
        ("run/workers.py", "import torch", "stage_rt.run.workers -> torch"),
        ("cuda/loop.py", "import pycuda.driver", "stage_rt.cuda.loop -> pycuda"),
        (
            "engines/build.py",
            "from stage_rt.training import folder",
            "stage_rt.engines.build -> stage_rt.training.folder",
        ),
        ("cli/../spec.py", "from stage_rt.cli import console", "stage_rt.spec -> stage_rt.cli.console"),
    ],
)
def test_an_import_too_many_is_named(tree: Path, file: str, line: str, words: str) -> None:
    path = tree / "stage_rt" / file
    path.write_text((path.read_text() if path.exists() else '"""New."""\n') + f"\n{line}\n")
    code, output = lint(tree)
    assert code == 1
    assert words in output
