"""The GPU's libraries when they are missing, broken or out of memory."""

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from soft_gpu import Kind, Result

from stage_rt import extras
from stage_rt.cuda import device, graphs
from stage_rt.errors import (
    BackendError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    MissingExtraError,
)


@pytest.fixture
def forget(monkeypatch):
    """What was found out about the libraries of this machine is found out again."""
    for module, name in ((device, "_library"), (device, "_retained"), (graphs, "library")):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)


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


def test_a_driver_that_finds_no_gpu_says_so_and_what_hides_those_there_are(machine, forget, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine.fail("cuInit", Result.NO_DEVICE)
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU can be used here .*no CUDA-capable device") as told:
        device.current()
    assert "CUDA_VISIBLE_DEVICES" not in str(told.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    machine.fail("cuInit", Result.NO_DEVICE)
    with pytest.raises(DeviceError, match=r"no CUDA-capable device.*; `CUDA_VISIBLE_DEVICES` is `7`\)"):
        device.current()


@pytest.mark.parametrize(
    "function", ["cuDeviceGet", "cuDeviceGetName", "cuDeviceComputeCapability", "cuDevicePrimaryCtxRetain"]
)
def test_a_gpu_that_fails_as_it_is_opened_cannot_be_used(machine, forget, function):
    machine.fail(function, Result.LAUNCH_FAILED)
    with pytest.raises(DeviceError, match=f"no NVIDIA GPU can be used here .{function} failed"):
        device.current()


def test_the_gpu_is_described(machine):
    assert device.current() == device.Gpu("Soft H100", "sm90", 2**30)


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
        DeviceMemoryError, match=r"the memory of Soft H100 is full \(cuMemAlloc failed: out of memory"
    ):
        device.Memory(machine.memory + 1)


def test_what_cuda_refuses_is_a_backend_error(machine):
    stream = device.Stream()
    machine.fail("cuStreamSynchronize", Result.ILLEGAL_ADDRESS)
    with pytest.raises(
        BackendError, match=r"CUDA failed: cuStreamSynchronize failed: an illegal memory access"
    ):
        stream.synchronize()
    stream.close()


def refused(call):
    with pytest.raises(BackendError) as told, device.active():
        call()
    return told.value


def test_a_device_after_whose_error_every_call_fails_is_lost(machine):
    stream = device.Stream()
    with device.active():
        graph = graphs.capture(stream.handle, lambda: None)
    calls = {"cuStreamSynchronize": stream.synchronize, "cuGraphLaunch": graph.launch}
    for function, call in calls.items():
        machine.fail(function, Result.ILLEGAL_ADDRESS)
        assert type(refused(call)) is BackendError
        machine.fail(function, Result.ILLEGAL_ADDRESS, kind=Kind.STICKY)
        lost = refused(call)
        assert type(lost) is DeviceLostError
        assert str(lost).startswith("CUDA failed: ")
        assert str(lost).endswith(": nothing more can be computed on the GPU by this process, start it again")
        assert type(refused(stream.synchronize)) is DeviceLostError
        machine.heal()

    def library():
        raise BackendError("PyTorch failed in graph `unet`")

    assert type(refused(library)) is BackendError
    machine.fail("cuStreamSynchronize", Result.LAUNCH_FAILED, kind=Kind.STICKY)
    refused(stream.synchronize)
    lost = refused(library)
    assert (type(lost), lost.problem) == (DeviceLostError, "PyTorch failed in graph `unet`")
    machine.heal()
    with device.active():
        graph.close()
    stream.close()


def test_a_context_that_cannot_be_made_current_is_a_backend_error(machine):
    machine.fail("cuCtxPushCurrent", Result.LAUNCH_FAILED)
    with pytest.raises(BackendError, match="CUDA failed: cuCtxPushCurrent failed"), device.active():
        pass
    with device.active():
        assert machine.counts.contexts == 1


def test_a_capture_that_fails_leaves_the_stream_usable(machine):
    stream = device.Stream()
    with device.active():
        with pytest.raises(
            BackendError, match="CUDA failed: cuStreamSynchronize failed: operation not permitted"
        ):
            graphs.capture(stream.handle, stream.synchronize)
        stream.synchronize()
        graph = graphs.capture(stream.handle, lambda: None)
        graph.launch()
        stream.synchronize()
        graph.close()
    stream.close()


def test_a_capture_broken_from_within_is_told_by_its_end(machine):
    stream, event = device.Stream(), device.Event()
    machine.break_captures("cuStreamIsCapturing")
    with device.active(), pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        graphs.capture(
            stream.handle, lambda: graphs._call(graphs.library().cuStreamIsCapturing(stream.handle))
        )
    event.close()
    stream.close()


def test_the_fatbin_is_asked_for_where_it_is_missing(monkeypatch, tmp_path):
    from stage_rt.cuda import step

    monkeypatch.setattr(step.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(
        BackendError, match=r"`step_cuda.fatbin` are missing, install again where .* `nvcc` is found"
    ):
        step.fatbin()
    (tmp_path / step.FATBIN).write_bytes(b"code")
    assert step.fatbin() == b"code"


def test_importing_the_package_imports_no_cuda_and_no_torch():
    code = "import sys, stage_rt.cuda.executor; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert "stage_rt.cuda.loop" in loaded
    assert not {"torch", "pycuda", "pycuda.driver", "cuda", "cuda.bindings"} & set(loaded)
