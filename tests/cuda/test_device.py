"""The GPU's libraries when they are missing, broken or out of memory."""

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from mock_cuda import CudaError

from stage_rt import extras
from stage_rt.cuda import device, graphs
from stage_rt.errors import BackendError, DeviceError, DeviceMemoryError, MissingExtraError


@pytest.fixture
def forget():
    """What was found out about the libraries of this machine is found out again."""
    for cached in (device._library, device._primary, graphs.library):
        cached.cache_clear()
    yield
    for cached in (device._library, device._primary, graphs.library):
        cached.cache_clear()


def importing(monkeypatch, error):
    def failing(name):
        if name in (device.LIBRARY, graphs.LIBRARY):
            raise error
        return import_module(name)

    monkeypatch.setattr(extras, "import_module", failing)


def test_a_library_that_is_not_installed_names_the_extra(monkeypatch, forget):
    importing(monkeypatch, ModuleNotFoundError("no module"))
    with pytest.raises(
        MissingExtraError, match=r"PyCUDA, which is not installed: `pip install 'stage-rt\[gpu\]'`"
    ):
        device.current()
    with pytest.raises(
        MissingExtraError, match=r"`cuda-bindings`, which is not installed: `pip install 'stage-rt"
    ):
        graphs.library()


def test_a_machine_without_a_driver_is_said_to_have_no_gpu(monkeypatch, forget):
    importing(monkeypatch, ImportError("libcuda.so.1: cannot open shared object file"))
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU can be used here \(libcuda.so.1: cannot open"):
        device.current()


def test_a_driver_that_finds_no_gpu_says_so(machine, monkeypatch):
    def init():
        raise CudaError("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr(sys.modules["pycuda.driver"], "init", init)
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU can be used here .*no CUDA-capable device"):
        device.current()


def test_the_gpu_is_described(machine):
    assert device.current() == device.Gpu("NumPy", "sm90", machine.total)


def test_memory_holds_what_is_written_and_is_given_back(machine):
    stream, memory = device.Stream(), device.Memory(24)
    array = np.arange(6, dtype=np.float32)
    memory.write(array, stream)
    np.testing.assert_array_equal(memory.read((6,), array.dtype, stream), array)
    np.testing.assert_array_equal(memory.read((2,), array.dtype, stream, offset=8), [2, 3])
    memory.close()
    stream.close()
    assert machine.used == 0


def test_a_full_memory_is_an_error_of_its_own(machine):
    with pytest.raises(
        DeviceMemoryError, match=r"the memory of NumPy is full \(cuMemAlloc failed: out of memory\)"
    ):
        device.Memory(machine.memory + 1)


def test_what_cuda_refuses_is_a_backend_error(machine):
    with pytest.raises(BackendError, match="CUDA failed: an illegal address"), device.active():
        raise CudaError("an illegal address\nwas met")
    assert machine.depth == 0


def test_a_capture_that_fails_leaves_the_stream_usable(machine):
    stream = device.Stream()
    with device.active():
        with pytest.raises(BackendError, match="CUDA failed: sync: operation not permitted"):
            graphs.capture(stream.handle, stream.synchronize)
        stream.synchronize()
        graph = graphs.capture(stream.handle, lambda: None)
        graph.launch()
        stream.synchronize()
        graph.close()
    assert not machine.graphs


def test_a_capture_broken_from_within_is_told_by_its_end(machine):
    stream, memory = device.Stream(), device.Memory(4)
    machine.breaks_capture = "copy"
    array = np.zeros(1, np.float32)
    with device.active(), pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        graphs.capture(stream.handle, lambda: memory.write(array, stream))
    memory.close()


def test_the_fatbin_is_asked_for_where_it_is_missing(monkeypatch, tmp_path):
    from stage_rt.cuda import loop

    monkeypatch.setattr(loop.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(
        BackendError, match=r"`step_cuda.fatbin` are missing, install again where .* `nvcc` is found"
    ):
        loop._fatbin()
    (tmp_path / loop.FATBIN).write_bytes(b"code")
    assert loop._fatbin() == b"code"


def test_importing_the_package_imports_no_cuda_and_no_torch():
    code = "import sys, stage_rt.cuda.executor; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert "stage_rt.cuda.loop" in loaded
    assert not {"torch", "pycuda", "pycuda.driver", "cuda", "cuda.bindings"} & set(loaded)


def test_the_names_used_of_cuda_bindings_are_its_names():
    """The stand-in could invent functions; these are looked up in the library itself where it is installed."""
    driver = pytest.importorskip("cuda.bindings.driver")
    from mock_cuda import Machine, cuda_bindings_driver

    mock = cuda_bindings_driver(Machine(None))
    names = {name for name in vars(mock) if name.startswith(("cu", "CU"))}
    assert len(names) == 9
    assert all(hasattr(driver, name) for name in names)
    assert hasattr(driver.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
