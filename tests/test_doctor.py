"""Every finding of the doctor, on machines made up for it: packages on a path, a driver, a broken file."""

import ctypes
import re
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import pytest

from stage_rt import doctor, kernels
from stage_rt.doctor import Line, Status, examine, lacking
from stage_rt.errors import BackendError

ROOT = Path(__file__).parents[1]
GPU = ("NVIDIA RTX 4090", "8.9", 24 * 10**9, 20 * 10**9)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a module of the given source before all others, here and in child processes."""

    def make(name: str, source: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return make


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch):
    """Shared libraries that can be loaded, by name; no others can."""

    def install(**found: object) -> None:
        def load(name: str) -> object:
            for library, content in found.items():
                if name.startswith(library):
                    return content
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")

        monkeypatch.setattr(doctor.ctypes, "CDLL", load)

    return install


def driver(version: int = 13000, code: int = 0) -> types.SimpleNamespace:
    def answer(pointer) -> int:
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = version
        return code

    return types.SimpleNamespace(cuDriverGetVersion=answer)


def only(lines, subject: str) -> Line:
    (line,) = [line for line in lines if line.subject == subject]
    return line


def test_this_machine_can_take_the_default_path() -> None:
    lines = examine()
    assert lacking(lines) == []
    for subject in ("Python", "stage-rt kernels", "ONNX Runtime", "torch", "onnx"):
        assert only(lines, subject).status is Status.OK
    assert "CPUExecutionProvider" in only(lines, "ONNX Runtime").found
    assert {"NVIDIA driver", "libcuda", "libcudart", "TensorRT", "TensorRT-RTX", "disk here"} <= {
        line.subject for line in lines
    }
    assert all(bool(line.fix) == (line.status is not Status.OK) for line in lines)


def test_an_old_python_is_named_with_the_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PYTHON", (99, 0))
    (line,) = doctor._python()
    assert (line.status, line.fix) == (Status.WRONG, "install Python 99.0 or newer")
    assert lacking([line]) == ["Python"]


def test_kernels_that_cannot_be_loaded_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BackendError("`libstage_step.so` cannot be loaded (wrong ELF class)", kernels.REINSTALL)

    monkeypatch.setattr(kernels, "library", broken)
    (line,) = doctor._kernels()
    assert (line.status, line.needed) == (Status.WRONG, True)
    assert line.found == "`libstage_step.so` cannot be loaded (wrong ELF class)"
    assert line.fix.startswith("install again with a C++ compiler: `pip install")


def test_a_runtime_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    (line,) = doctor._onnxruntime()
    assert (line.status, line.fix) == (Status.MISSING, "`pip install 'stage-rt[cpu]'`")
    assert lacking([line]) == ["ONNX Runtime"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise ImportError('libfoo.so.3: cannot open\\nshared object file')", "shared object file"),
        (
            "__version__ = '1'; import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "crashes with signal 4",
        ),
        ("raise SystemExit(3)", ""),
        ("", "AttributeError: module 'onnxruntime' has no attribute '__version__'"),
        (
            "__version__ = '1'\ndef get_available_providers(): return ['TpuExecutionProvider']",
            "1: TpuExecutionProvider: it cannot run on the CPU",
        ),
    ],
)
def test_a_runtime_that_is_broken_is_a_line_not_a_traceback(package, source: str, found: str) -> None:
    package("onnxruntime", source)
    line = next(doctor._onnxruntime())
    assert (line.subject, line.status, line.needed) == ("ONNX Runtime", Status.WRONG, True)
    assert found in line.found
    # Not with stage-rt itself, which pip would look for on an index.
    assert line.fix.removeprefix("install it again: ") == (
        "`pip install --force-reinstall --no-deps onnxruntime`"
    )


def test_an_import_that_hangs_is_given_up(package, monkeypatch: pytest.MonkeyPatch) -> None:
    package("tensorrt", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)
    line = next(doctor._tensorrt())
    assert line.status is Status.WRONG
    assert "takes more than 0.2 s" in line.found


def test_what_a_package_prints_on_import_is_no_answer(package) -> None:
    package("tensorrt", "print('hello'); __version__ = '11.0'")
    line = next(doctor._tensorrt())
    assert (line.status, line.found, line.needed) == (Status.OK, "11.0", False)


def test_a_folder_without_code_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hollow").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor._module("Hollow", "hollow", "pip install hollow", "hollow").status is Status.MISSING


def test_two_runtimes_in_one_module_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.30", "onnxruntime-gpu": "1.31"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    line = only(list(doctor._onnxruntime()), "ONNX Runtime clash")
    assert line.found == "`onnxruntime` and `onnxruntime-gpu` overwrite each other's files"
    assert line.fix == (
        "`pip uninstall onnxruntime-gpu`, then `pip install --force-reinstall --no-deps onnxruntime`"
    )
    assert lacking([line]) == ["ONNX Runtime clash"]


def test_one_runtime_of_another_name_is_no_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", {"onnxruntime-gpu": "1.31"}.get)
    assert [line.subject for line in doctor._onnxruntime()] == ["ONNX Runtime"]


def extras_of_pyproject() -> dict[str, set[str]]:
    """The distributions of every extra, without those that are extras of ours themselves."""
    project = tomllib.loads((Path(doctor.__file__).resolve().parents[1] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[\[><=]", one)[0] for one in wanted} for extra, wanted in extras.items()}
    return {extra: wanted - {"stage-rt"} for extra, wanted in names.items()}


def test_every_extra_has_a_line_or_is_a_library_with_one_of_its_own() -> None:
    lines = {line.subject for line in examine()}
    own = {"cpu": "ONNX Runtime", "export": "onnxscript", "openvino": "OpenVINO", "rtx": "TensorRT-RTX"}
    own |= {"tensorrt": "TensorRT"}
    for extra in set(extras_of_pyproject()) - {"dev"}:
        assert own.get(extra, f"extra {extra}") in lines


def test_an_extra_is_known_by_a_module_of_each_of_its_distributions() -> None:
    providers, wanted = metadata.packages_distributions(), extras_of_pyproject()
    for extra, (_, modules) in doctor.EXTRAS.items():
        brought = [name for module in modules for name in providers.get(module.partition(".")[0], ())]
        known = {name.replace("_", "-") for name in brought}
        # PyCUDA is compiled against CUDA's toolkit, and may not be there to be asked.
        assert wanted[extra] - {"pycuda"} <= known | set(modules)


def test_an_extra_that_is_missing_is_told_with_the_command_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = {"cv2", "sklearn", "fastapi"}
    monkeypatch.setattr(doctor, "_is_there", lambda module: module not in missing)
    monkeypatch.setattr(doctor, "_broken", lambda module, fix: None)
    lines = {line.subject: line for line in doctor._extras()}
    absent = {subject: line for subject, line in lines.items() if line.status is not Status.OK}
    assert {subject: (line.found, line.fix) for subject, line in absent.items()} == {
        "extra quality": (
            "not installed: cv2, sklearn",
            "`evaluate` needs `pip install 'stage-rt[quality]'`",
        ),
        "extra serve": (
            "not installed: fastapi",
            "`serve` and `client` need `pip install 'stage-rt[serve]'`",
        ),
    }
    assert lines["extra pack"].found == "pyarrow, pycocotools"
    assert not lacking(list(lines.values()))


def test_a_pycuda_that_cannot_be_imported_is_told(package, tmp_path, monkeypatch) -> None:
    """Compiled with cuRAND it does not load where that is not installed."""
    monkeypatch.setattr(doctor, "_is_there", lambda module: True)
    package("pycuda", "")
    driver = tmp_path / "pycuda" / "driver.py"
    driver.write_text("raise ImportError('libcurand.so.10: cannot open shared object file')")
    line = only(doctor._extras(), "extra gpu")
    assert (line.status, line.found) == (
        Status.WRONG,
        "`pycuda.driver`: ImportError: libcurand.so.10: cannot open shared object file",
    )
    # As the image for a GPU is made: pip alone compiles it with cuRAND again.
    script, wheels = re.search(r"`python (\S+) \S+ --wheels (\S+)`", line.fix).groups()
    assert f"`pip install --force-reinstall --no-deps {wheels}/pycuda-*.whl`" in line.fix
    assert f"python {script} " in (ROOT / "deploy" / "Dockerfile").read_text()
    assert "--no-cuda-enable-curand" in (ROOT / script).read_text()
    driver.write_text("")
    assert only(doctor._extras(), "extra gpu").status is Status.OK


def test_a_compiler_is_told_or_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (line,) = doctor._compiler()
    assert (line.status, line.found) == (Status.MISSING, "none of c++, g++, clang++ is there")
    assert "`apt install g++`" in line.fix
    (tmp_path / "my-compiler").touch(0o755)
    monkeypatch.setenv("CXX", "my-compiler")
    (line,) = doctor._compiler()
    assert (line.status, line.found, line.fix) == (Status.OK, str(tmp_path / "my-compiler"), None)


def test_gpus_are_listed_with_sm_and_free_memory(monkeypatch: pytest.MonkeyPatch, libraries) -> None:
    libraries(libcuda=driver())
    monkeypatch.setattr(doctor, "_gpus", lambda: ("580.65", [GPU, GPU]))
    lines = list(doctor._nvidia())
    assert [line.subject for line in lines] == ["NVIDIA driver", "libcuda", "GPU 0", "GPU 1"]
    assert {line.status for line in lines} == {Status.OK}
    assert lines[1].found == "serves CUDA 13.0"
    assert lines[3].found == "NVIDIA RTX 4090, SM 8.9, 20.0 GB of 24.0 GB free"


def test_a_gpu_that_tensorrt_rtx_does_not_serve_is_told(monkeypatch: pytest.MonkeyPatch, libraries) -> None:
    libraries(libcuda=driver())
    monkeypatch.setattr(
        doctor, "_gpus", lambda: ("580.159.04", [("NVIDIA H200", "9.0", 150 << 30, 149 << 30)])
    )
    gpu = list(doctor._nvidia())[-1]
    assert (gpu.status, gpu.found) == (
        Status.OK,
        "NVIDIA H200, SM 9.0, 160.0 GB of 161.1 GB free; not for TensorRT-RTX",
    )


def test_a_driver_without_a_gpu_and_a_stub_of_a_driver_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, libraries
) -> None:
    libraries(libcuda=driver(code=34))
    monkeypatch.setattr(doctor, "_gpus", lambda: ("580.65", []))
    _, libcuda, gpu = doctor._nvidia()
    assert (libcuda.status, gpu.status) == (Status.WRONG, Status.MISSING)
    assert "CUDA error 34" in libcuda.found
    assert "--gpus all" in gpu.fix


def test_no_driver_is_missing_and_not_needed(monkeypatch: pytest.MonkeyPatch, libraries) -> None:
    libraries()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    lines = [*doctor._nvidia(), *doctor._libcudart()]
    assert {line.status for line in lines} == {Status.MISSING}
    assert all(line.fix for line in lines)
    assert not lacking(lines)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch):
    """Two GPUs behind the names of `pynvml`; what was called is kept in ``calls``."""
    calls: list[str] = []
    names = {
        "nvmlInit": lambda: calls.append("init"),
        "nvmlShutdown": lambda: calls.append("shutdown"),
        "nvmlSystemGetDriverVersion": lambda: "580.65",
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: f"card {handle}",
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (12, handle),
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=16 * 10**9, free=handle),
    }
    module = types.SimpleNamespace(calls=calls, **names)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvml_is_asked_where_its_bindings_are_there(nvml) -> None:
    gpus = [("card 0", "12.0", 16 * 10**9, 0), ("card 1", "12.1", 16 * 10**9, 1)]
    assert doctor._gpus() == ("580.65", gpus)
    assert nvml.calls == ["init", "shutdown"]


def test_an_error_of_nvml_is_a_line(nvml, libraries) -> None:
    def fail() -> None:
        raise RuntimeError("Driver Not Loaded")

    libraries()
    nvml.nvmlInit = fail
    line = next(doctor._nvidia())
    assert (line.subject, line.status, line.found) == ("NVIDIA driver", Status.MISSING, "Driver Not Loaded")


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A program `nvidia-smi` of the given shell script, and no NVML."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def install(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return install


def test_nvidia_smi_is_asked_where_nvml_is_not_there(smi) -> None:
    smi("echo '580.65, 9.0, 81559, 81008, NVIDIA H100 80GB HBM3'")
    assert doctor._gpus() == ("580.65", [("NVIDIA H100 80GB HBM3", "9.0", 81559 << 20, 81008 << 20)])


def test_nvidia_smi_that_fails_is_a_line(smi, libraries) -> None:
    libraries()
    smi("echo 'NVIDIA-SMI has failed because it cannot reach the driver'; exit 9")
    line = next(doctor._nvidia())
    assert line.found == "`nvidia-smi` fails: NVIDIA-SMI has failed because it cannot reach the driver"


def test_the_cuda_runtime_is_found_in_a_python_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "nvidia/cu13/lib/libcudart.so.13"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(name: str) -> None:
        if name != str(packaged):
            raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", load)
    assert only(doctor._libcudart(), "libcudart").found == str(packaged)


def test_a_disk_that_is_nearly_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**9))
    for line in doctor._disk():
        assert line.status is Status.WRONG
        assert line.found.startswith("1.0 GB free in")
        assert line.fix == "a full-size model needs 4.0 GB: free some"


def test_a_probe_that_fails_itself_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(doctor, "_PROBES", {"Python": doctor._python, "disk": fail})
    lines = examine()
    assert [line.subject for line in lines] == ["Python", "disk"]
    assert lines[1].status is Status.WRONG
    assert "could not be examined ('surprise')" in lines[1].found
    assert lacking(lines) == []


def test_a_machine_is_not_ready_where_what_is_needed_could_not_be_examined(package) -> None:
    # Its last line is no answer, and nobody knows whether it works.
    package("onnxruntime", "import atexit; atexit.register(print, 'bye'); __version__ = '1'")
    assert "ONNX Runtime" in lacking(examine())
