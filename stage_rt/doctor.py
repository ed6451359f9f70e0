"""What this machine has and lacks for stage-rt: one line a subject, each with its fix.

Nothing here raises: a package that is broken, or crashes on import, is a line like any other.
"""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stage_rt import __version__
from stage_rt.errors import first_line

PYTHON = (3, 11)

DISK_BYTES = 4 * 10**9
"""Graphs and engine of a full-size fp16 model, 1.8 GB each, and some room."""

ONNX_RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-training",
)
"""Distributions that all install the module ``onnxruntime``, each over the other's files."""

EXPORT_PACKAGES = ("torch", "diffusers", "onnx", "onnxscript", "matplotlib")

EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pack": ("`pack --format coco|parquet`", ("pyarrow", "pycocotools")),
    "quality": ("`evaluate`", ("torch", "cv2", "skimage", "sklearn", "transformers")),
    "serve": ("`serve` and `client`", ("fastapi", "httpx", "prometheus_client", "uvicorn")),
    "ray": ("`synth --ray`", ("ray",)),
    "text": ("`import diffusers --prompt NAME=TEXT`", ("transformers",)),
    "gpu": ("an engine on a GPU", ("pycuda", "cuda.bindings", "pynvml")),
}
"""What needs an extra, and its modules; the libraries of the other extras have lines of their own."""

_PYCUDA = (
    "build it again without cuRAND, where `nvcc` and a C++ compiler are, in a checkout of stage-rt: "
    "`python tests/support/softcuda/build.py build/softcuda --wheels build/pycuda`, "
    "then `pip install --force-reinstall --no-deps build/pycuda/pycuda-*.whl`"
)
COMPILED = {"gpu": (("pycuda.driver", _PYCUDA),)}
"""Of an extra, what was compiled against libraries that may not be here, and the fix: pip alone compiles PyCUDA with
cuRAND, which it then needs and nothing here calls."""

COMPILERS = ("c++", "g++", "clang++")

CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")

_SECONDS = 120
_IMPORT = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
version = None if "." in sys.argv[1] else module.__version__
print(json.dumps([version, getattr(module, "get_available_providers", list)()]))
"""


class Status(StrEnum):
    """``wrong``: there, but not usable as it is."""

    OK = "ok"
    MISSING = "missing"
    WRONG = "wrong"


@dataclass(frozen=True)
class Line:
    """What was found of one subject, and the fix where it is not ok.

    ``needed``: the default path, ONNX Runtime on the CPU, does not work without it.
    """

    subject: str
    status: Status
    found: str
    fix: str | None = None
    needed: bool = False


def examine() -> list[Line]:
    """Look at everything, from Python to the disk; never raises."""
    lines: list[Line] = []
    for subject, probe in _PROBES.items():
        try:
            lines += probe()
        except Exception as error:
            fix = "report this as a bug of `stage-rt doctor`"
            found = f"could not be examined ({first_line(error)})"
            lines.append(Line(subject, Status.WRONG, found, fix, needed=subject in _NEEDED))
    return lines


def lacking(lines: Sequence[Line]) -> list[str]:
    """The subjects that the default path needs and that are not ok."""
    return [line.subject for line in lines if line.needed and line.status is not Status.OK]


def _python() -> Iterator[Line]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    fits = sys.version_info >= PYTHON
    fix = None if fits else f"install Python {'.'.join(map(str, PYTHON))} or newer"
    yield Line("Python", Status.OK if fits else Status.WRONG, found, fix, needed=True)


def _kernels() -> Iterator[Line]:
    from stage_rt import kernels
    from stage_rt.errors import BackendError

    subject = "stage-rt kernels"
    try:
        kernels.library()
    except BackendError as error:
        yield Line(subject, Status.WRONG, error.problem, error.remedy, needed=True)
    else:
        found = f"stage-rt {__version__}, {kernels.LIBRARY} agrees with its definition"
        yield Line(subject, Status.OK, found, needed=True)


def _onnxruntime() -> Iterator[Line]:
    installed = [name for name in ONNX_RUNTIMES if _version(name)]
    own = (installed or ONNX_RUNTIMES)[0]
    line = _module(
        "ONNX Runtime", "onnxruntime", "`pip install 'stage-rt[cpu]'`", f"--no-deps {own}", needed=True
    )
    if line.status is Status.OK and "CPUExecutionProvider" not in line.found:
        fix = "`pip install --force-reinstall --no-deps onnxruntime`"
        line = Line(line.subject, Status.WRONG, f"{line.found}: it cannot run on the CPU", fix, needed=True)
    yield line
    if len(installed) > 1:
        keep = installed[0]
        yield Line(
            "ONNX Runtime clash",
            Status.WRONG,
            f"{' and '.join(f'`{name}`' for name in installed)} overwrite each other's files",
            f"`pip uninstall {' '.join(installed[1:])}`, then `pip install --force-reinstall --no-deps {keep}`",
            needed=True,
        )


def _openvino() -> Iterator[Line]:
    fix = "`--backend openvino` needs `pip install 'stage-rt[openvino]'`"
    yield _module("OpenVINO", "openvino", fix, "--no-deps openvino")


def _tensorrt() -> Iterator[Line]:
    # Their libraries are distributions of their own, which these ask for.
    fix = "`--backend tensorrt` needs `pip install 'stage-rt[tensorrt]'`"
    yield _module("TensorRT", "tensorrt", fix, "tensorrt")
    fix = "`--backend tensorrt-rtx` needs `pip install 'stage-rt[rtx]'`"
    yield _module("TensorRT-RTX", "tensorrt_rtx", fix, "tensorrt-rtx-cu13")


def _export() -> Iterator[Line]:
    versions = {name: _version(name) if _is_there(name) else None for name in EXPORT_PACKAGES}
    fix = "`train`, `import`, `export`, `verify` and `build MODEL` need `pip install 'stage-rt[export]'`"
    for name, version in versions.items():
        yield (
            Line(name, Status.OK, version) if version else Line(name, Status.MISSING, "not installed", fix)
        )


def _extras() -> Iterator[Line]:
    for name, (needing, modules) in EXTRAS.items():
        subject, absent = f"extra {name}", [module for module in modules if not _is_there(module)]
        if absent:
            verb = "need" if " and " in needing else "needs"
            fix = f"{needing} {verb} `pip install 'stage-rt[{name}]'`"
            yield Line(subject, Status.MISSING, f"not installed: {', '.join(absent)}", fix)
            continue
        broken = next(filter(None, (_broken(module, fix) for module, fix in COMPILED.get(name, ()))), None)
        yield (
            Line(subject, Status.WRONG, *broken) if broken else Line(subject, Status.OK, ", ".join(modules))
        )


def _compiler() -> Iterator[Line]:
    found = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))), None)
    fix = "to install stage-rt from a checkout, and for `--backend inductor`: `apt install g++`, or name one in `CXX`"
    yield (
        Line("C++ compiler", Status.OK, found)
        if found
        else Line("C++ compiler", Status.MISSING, f"none of {', '.join(COMPILERS)} is there", fix)
    )


def _nvidia() -> Iterator[Line]:
    try:
        driver, gpus = _gpus()
    except Exception as error:
        fix = (
            "install NVIDIA's driver to run TensorRT engines, or start the container with `--gpus all`; "
            "ONNX Runtime and building for TensorRT-RTX need none"
        )
        yield Line("NVIDIA driver", Status.MISSING, first_line(error), fix)
        yield _libcuda("it comes with NVIDIA's driver")
        return
    yield Line("NVIDIA driver", Status.OK, driver)
    yield _libcuda("start the container with `NVIDIA_DRIVER_CAPABILITIES=compute,utility`")
    if not gpus:
        yield Line("GPU", Status.MISSING, "the driver sees none", "start the container with `--gpus all`")
    for index, (name, sm, total, free) in enumerate(gpus):
        found = f"{name}, SM {sm}, {_size(free)} of {_size(total)} free"
        yield Line(f"GPU {index}", Status.OK, found if _for_rtx(sm) else f"{found}; not for TensorRT-RTX")


def _for_rtx(sm: str) -> bool:
    """Whether TensorRT-RTX runs on a compute capability as ``8.9``: no data centre's since Ampere's."""
    from stage_rt.backends.tensorrt import FLAVOURS

    return f"sm{sm.replace('.', '')}" in FLAVOURS["tensorrt-rtx"].targets


def _libcuda(fix: str) -> Line:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return Line("libcuda", Status.MISSING, str(error), fix)
    version = ctypes.c_int()
    if code := library.cuDriverGetVersion(ctypes.byref(version)):
        return Line(
            "libcuda", Status.WRONG, f"answers with CUDA error {code}, as the toolkit's stub does", fix
        )
    return Line("libcuda", Status.OK, f"serves CUDA {version.value // 1000}.{version.value % 1000 // 10}")


def _libcudart() -> Iterator[Line]:
    for path in (*CUDA_RUNTIMES, *_packaged_runtimes()):
        try:
            ctypes.CDLL(path)
        except OSError:
            continue
        yield Line("libcudart", Status.OK, path)
        return
    fix = "to run TensorRT engines: `pip install nvidia-cuda-runtime`, or put the toolkit's into `LD_LIBRARY_PATH`"
    yield Line("libcudart", Status.MISSING, f"neither {' nor '.join(CUDA_RUNTIMES)} can be loaded", fix)


def _packaged_runtimes() -> list[str]:
    """Where NVIDIA's Python packages keep the CUDA runtime."""
    spec = find_spec("nvidia")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [
        str(path)
        for folder in folders
        for name in CUDA_RUNTIMES
        for path in sorted(Path(folder).glob(f"*/lib/{name}"))
    ]


def _disk() -> Iterator[Line]:
    folders = {"disk here": Path.cwd(), "disk for scratch": Path(tempfile.gettempdir())}
    for subject, folder in folders.items():
        free = shutil.disk_usage(folder).free
        found = f"{_size(free)} free in `{folder}`"
        enough = free >= DISK_BYTES
        fix = None if enough else f"a full-size model needs {_size(DISK_BYTES)}: free some"
        yield Line(subject, Status.OK if enough else Status.WRONG, found, fix)


_PROBES: dict[str, Callable[[], Iterator[Line]]] = {
    "Python": _python,
    "stage-rt kernels": _kernels,
    "ONNX Runtime": _onnxruntime,
    "OpenVINO": _openvino,
    "NVIDIA driver": _nvidia,
    "libcudart": _libcudart,
    "TensorRT": _tensorrt,
    "export": _export,
    "extras": _extras,
    "C++ compiler": _compiler,
    "disk": _disk,
}

_NEEDED = {"Python", "stage-rt kernels", "ONNX Runtime"}
"""Subjects whose lines are needed."""


def _module(subject: str, module: str, fix: str, again: str, *, needed: bool = False) -> Line:
    """Version and providers of a module, imported in a process of its own: a broken one may well crash.

    ``fix`` is for one that is not installed; ``again`` is what pip is to install once more where it is broken: not
    stage-rt, which is on no index.
    """
    if not _is_there(module):
        return Line(subject, Status.MISSING, "not installed", fix, needed)
    imported = _imported(module)
    if isinstance(imported, str):
        return Line(
            subject,
            Status.WRONG,
            imported,
            f"install it again: `pip install --force-reinstall {again}`",
            needed,
        )
    version, providers = imported
    return Line(subject, Status.OK, ": ".join(filter(None, (version, ", ".join(providers)))), None, needed)


def _broken(module: str, fix: str) -> tuple[str, str] | None:
    """Why a module that is there cannot be imported, and its ``fix``; None where it can."""
    imported = _imported(module)
    return (f"`{module}`: {imported}", fix) if isinstance(imported, str) else None


def _imported(module: str) -> tuple[str | None, list[str]] | str:
    """Version and providers of a module that another process imports, or why that fails."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _IMPORT, module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its import takes more than {_SECONDS} s"
    if child.returncode == 0:
        version, providers = json.loads(child.stdout.splitlines()[-1])
        return version, providers
    last = (child.stderr.strip().splitlines() or [""])[-1]
    return last if child.returncode > 0 else f"its import crashes with signal {-child.returncode}"


def _is_there(module: str) -> bool:
    """A folder without code, as an uninstalled package or one of types may leave, does not count."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


Gpu = tuple[str, str, int, int]
"""Name, SM as ``8.9``, total and free memory in bytes."""


def _gpus() -> tuple[str, list[Gpu]]:
    """Version of the driver and its GPUs, from NVML or, where its bindings are missing, from nvidia-smi."""
    try:
        nvml = import_module("pynvml")
    except ModuleNotFoundError:
        return _gpus_of_smi()
    nvml.nvmlInit()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return str(nvml.nvmlSystemGetDriverVersion()), [_gpu_of_nvml(nvml, handle) for handle in handles]
    finally:
        nvml.nvmlShutdown()


def _gpu_of_nvml(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return str(nvml.nvmlDeviceGetName(handle)), f"{major}.{minor}", memory.total, memory.free


def _gpus_of_smi() -> tuple[str, list[Gpu]]:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        raise FileNotFoundError("neither `nvidia-smi` nor the package `nvidia-ml-py` is there to ask")
    query = "--query-gpu=driver_version,compute_cap,memory.total,memory.free,name"
    child = subprocess.run(
        [smi, query, "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if child.returncode:
        said = (child.stdout or child.stderr).strip().partition("\n")[0]
        raise OSError(f"`nvidia-smi` fails: {said}")
    driver, gpus = "unknown version", list[Gpu]()
    for row in child.stdout.splitlines():
        driver, sm, total, free, name = (field.strip() for field in row.split(",", maxsplit=4))
        gpus.append((name, sm, int(total) << 20, int(free) << 20))
    return driver, gpus


def _size(count: int) -> str:
    return f"{count / 10**9:.1f} GB"
