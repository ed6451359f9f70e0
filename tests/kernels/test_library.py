"""Finding and trusting the compiled library."""

import shutil
import subprocess

import pytest

from stage_rt import kernels
from stage_rt.errors import BackendError


@pytest.fixture
def fresh_loader():
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


def compiled():
    return next(path for path in kernels.__path__ if (kernels.Path(path) / kernels.LIBRARY).is_file())


@pytest.mark.usefixtures("fresh_loader")
def test_a_missing_library_is_one_line_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "__path__", [str(tmp_path)])
    with pytest.raises(BackendError, match=r"are missing: install again with a C\+\+ compiler: `pip install"):
        kernels.library()


@pytest.mark.usefixtures("fresh_loader")
def test_a_file_that_is_no_library_is_named(monkeypatch, tmp_path):
    (tmp_path / kernels.LIBRARY).write_bytes(b"no library")
    monkeypatch.setattr(kernels, "__path__", [str(tmp_path)])
    with pytest.raises(BackendError, match="cannot be loaded"):
        kernels.library()


@pytest.mark.usefixtures("fresh_loader")
def test_the_folder_that_holds_the_library_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "__path__", [str(tmp_path), compiled()])
    assert isinstance(kernels.library(), kernels.StepLibrary)


@pytest.mark.usefixtures("fresh_loader")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler to build another version with")
@pytest.mark.parametrize("functions", [["stage_words", "stage_normal", "stage_step"], ["stage_words"]])
def test_a_library_of_other_sources_is_refused(monkeypatch, tmp_path, functions):
    stale = tmp_path / "stale.cpp"
    stale.write_text("".join(f'extern "C" void {name}() {{}}' for name in functions))
    subprocess.run(["c++", "-shared", "-fPIC", str(stale), "-o", str(tmp_path / kernels.LIBRARY)], check=True)
    monkeypatch.setattr(kernels, "__path__", [str(tmp_path)])
    with pytest.raises(BackendError, match="was built from other sources"):
        kernels.library()


@pytest.mark.usefixtures("fresh_loader")
def test_a_library_with_another_table_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "LAYOUT", kernels.LAYOUT.replace("timestep", "step"))
    with pytest.raises(BackendError, match="was built from other sources"):
        kernels.library()


def test_the_library_reads_the_table_as_python_writes_it():
    assert kernels.library().functions.stage_layout().decode() == kernels.LAYOUT
    assert kernels.LAYOUT.startswith("sqrt_recip_abar:f4@0 ")
    assert kernels.LAYOUT.endswith(" free:f4@48 only:u4@52 prompt_guidance:f4@56")
