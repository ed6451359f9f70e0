"""`import stage_rt` is light, offers what it lists, and the runtime reaches for no training library."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import stage_rt

# Never imported by the runtime, whatever is used of it.
FOREIGN = {"torch", "torchvision", "diffusers", "transformers", "onnx", "onnxscript", "matplotlib"}
OTHER_PACKAGES = {"stage_rt.training", "stage_rt.export", "stage_rt.engines"}


def modules_after(statement):
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    loaded = modules_after("import stage_rt")
    assert not loaded & (FOREIGN | OTHER_PACKAGES | {"numpy", "PIL", "pydantic", "onnxruntime"})
    assert {name for name in loaded if name.startswith("stage_rt")} == {"stage_rt"}


def test_the_whole_runtime_imports_no_training_library():
    loaded = modules_after("import stage_rt.cli; [getattr(stage_rt, name) for name in stage_rt.__all__]")
    assert "stage_rt.sampler" in loaded
    assert not loaded & (FOREIGN | OTHER_PACKAGES | {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"})


@pytest.mark.parametrize("name", stage_rt.__all__)
def test_every_listed_name_is_an_attribute(name):
    assert getattr(stage_rt, name) is not None
    assert name in dir(stage_rt)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="`stage_rt` has no attribute `nonsense`"):
        stage_rt.nonsense  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert stage_rt.__version__ == project["version"]
