"""Golden vectors: recorded from the authors' released code, in the repository or beside it."""

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Golden = Callable[[str], dict[str, NDArray[Any]]]

FOLDER = Path(__file__).parent / "golden"
ELSEWHERE = "STAGE_RT_GOLDEN"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent, fetched or served: sockets of networks neither connect nor listen in any test."""

    def refused(_: socket.socket, address: object) -> None:
        raise AssertionError(f"a test reached for the network: {address}")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refused)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from the user's cache, or written to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def golden() -> Golden:
    """``golden(name)`` loads ``<name>.npz``; a test of a file that is nowhere is skipped."""

    def load(name: str) -> dict[str, NDArray[Any]]:
        for folder in (FOLDER, Path(os.environ.get(ELSEWHERE) or FOLDER)):
            path = folder / f"{name}.npz"
            if path.is_file():
                with np.load(path, allow_pickle=False) as arrays:
                    return {key: arrays[key] for key in arrays}
        pytest.skip(f"{name}.npz is too large for the repository: name its folder in {ELSEWHERE}")

    return load


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window, driven by Playwright; a test is skipped where one of them is missing."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """``step_cuda.cu`` compiled as C++: ``launch_<kernel>(blocks, batch, threads, *arguments)`` runs a kernel."""
    from stage_rt import kernels

    compiler = shutil.which("c++")
    source = next((path for f in kernels.__path__ if (path := Path(f) / "step_cuda.cu").is_file()), None)
    if compiler is None or source is None:
        pytest.skip("needs a C++ compiler and the kernels' source")
    here = Path(__file__).parent / "kernels" / "emulated"
    library = tmp_path_factory.mktemp("emulated") / "step_cuda.so"
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", f"-I{here}"]
    command += [f"-I{source.parent}", str(here / "launch.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of ``small_model.py`` on disk."""
    from small_model import write_small_model

    return write_small_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Callable[[str], Path]:
    """``graphs(dtype)`` is that model exported; read it, or copy it before a change."""
    from stage_rt.export.graphs import export

    @cache
    def exported(dtype: str) -> Path:
        folder = tmp_path_factory.mktemp("graphs") / dtype
        export(model_folder, folder, dtype=dtype)
        return folder

    return exported


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory, graphs: Callable[[str], Path]) -> Path:
    """That model as an fp32 engine of batch 4; read it, or copy it before a change."""
    from stage_rt.engines.build import build

    folder = tmp_path_factory.mktemp("engine") / "engine"
    build(graphs("fp32"), folder, backend="onnxruntime", batch=[1, 4])
    return folder


@pytest.fixture(scope="session")
def openvino_engine(tmp_path_factory: pytest.TempPathFactory, graphs: Callable[[str], Path]) -> Path:
    """That model as `engine_folder` is, for OpenVINO; read it, or copy it before a change."""
    from stage_rt.engines.build import build

    folder = tmp_path_factory.mktemp("openvino") / "engine"
    build(graphs("fp32"), folder, backend="openvino", batch=[1, 4])
    return folder


@pytest.fixture(scope="session")
def rtx_engine(tmp_path_factory: pytest.TempPathFactory, graphs: Callable[[str], Path]) -> Path:
    """That model built by TensorRT-RTX in fp16, batches 1 and 2, for SM 8.6, 8.9 and 12.0; read it or copy it."""
    from stage_rt.engines.build import build

    folder = tmp_path_factory.mktemp("rtx") / "engine"
    build(graphs("fp16"), folder, backend="tensorrt-rtx", batch=[2, 1], targets=["sm120", "sm86", "sm89"])
    return folder
