"""The driver made of software refuses what CUDA refuses, and runs nothing before somebody waits."""

import ctypes
import threading

import numpy as np
import pytest

from stage_rt.cuda import device
from stage_rt.cuda.step import fatbin

ROW = 60
"""Bytes of a row of the step's table."""


@pytest.fixture
def cu(machine):
    """cuda-bindings' driver, in the context; what a test leaves is cleared away by its own last lines."""
    driver = pytest.importorskip("cuda.bindings.driver")
    with device.active():
        yield driver


def good(result):
    status, *values = result
    assert status.name == "CUDA_SUCCESS", status.name
    return values[0] if values else None


def refused(result):
    return result[0].name.removeprefix("CUDA_ERROR_")


@pytest.fixture
def stream(cu):
    made = good(cu.cuStreamCreate(cu.CUstream_flags.CU_STREAM_NON_BLOCKING))
    yield made
    good(cu.cuStreamDestroy(made))


@pytest.fixture
def block(cu, machine):
    """64 bytes on the device, and a view of them."""
    address = good(cu.cuMemAlloc(64))
    yield address, machine.view(int(address), (64,), np.uint8)
    good(cu.cuMemFree(address))


def begin(cu, stream):
    return cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)


def filled(cu, address, value, stream, size=64):
    return cu.cuMemsetD8Async(address, value, size, stream)


@pytest.mark.parametrize(
    "wait", ["cuStreamSynchronize", "cuStreamQuery", "cuEventSynchronize", "cuCtxSynchronize"]
)
def test_a_stream_runs_when_somebody_waits_and_not_before(cu, stream, block, wait):
    address, view = block
    event = good(cu.cuEventCreate(0))
    good(filled(cu, address, 7, stream))
    good(cu.cuEventRecord(event, stream))
    good(filled(cu, address, 8, stream))
    assert not {7, 8} & set(view)
    handles = {"cuCtxSynchronize": (), "cuEventSynchronize": (event,)}.get(wait, (stream,))
    result = getattr(cu, wait)(*handles)
    if wait == "cuStreamQuery":
        # One item a question: whoever asks only once knows nothing.
        assert refused(result) == "NOT_READY"
        assert set(view) == {7}
        good(cu.cuStreamSynchronize(stream))
    else:
        good(result)
        assert set(view) == {7 if wait == "cuEventSynchronize" else 8}
        good(cu.cuStreamSynchronize(stream))
    good(cu.cuEventDestroy(event))


def test_pageable_memory_is_read_at_once_and_pinned_memory_when_its_turn_comes(cu, stream, block, machine):
    address, view = block
    pinned = device.Pinned((64,), np.dtype(np.uint8))
    pinned.array[:] = 1
    good(cu.cuMemcpyHtoDAsync(address, pinned.array.ctypes.data, 64, stream))
    pinned.array[:] = 2
    good(cu.cuStreamSynchronize(stream))
    assert set(view) == {2}
    pinned.close()
    pageable = np.full(64, 3, np.uint8)
    good(cu.cuMemcpyHtoDAsync(address, pageable.ctypes.data, 64, stream))
    pageable[:] = 4
    good(cu.cuStreamSynchronize(stream))
    assert set(view) == {3}
    assert machine.faults == "an array was changed or freed before the device read it\n"
    machine.heal()


def test_copies_beyond_a_block_are_refused(cu, stream, block):
    address, _ = block
    host = np.zeros(65, np.uint8)
    assert refused(cu.cuMemcpyHtoDAsync(address, host.ctypes.data, 65, stream)) == "INVALID_VALUE"
    assert refused(cu.cuMemcpyDtoHAsync(host.ctypes.data, int(address) + 1, 64, stream)) == "INVALID_VALUE"
    assert refused(cu.cuMemFree(int(address) + 1)) == "INVALID_VALUE"


def test_memory_that_is_freed_before_its_turn_breaks_the_context(cu, stream, machine):
    address = good(cu.cuMemAlloc(64))
    good(filled(cu, address, 1, stream))
    good(cu.cuMemFree(address))
    assert refused(cu.cuStreamSynchronize(stream)) == "ILLEGAL_ADDRESS"
    assert refused(cu.cuMemAlloc(64)) == "ILLEGAL_ADDRESS"
    assert "device memory was freed before its turn came" in machine.faults
    machine.heal()


def test_a_write_past_the_end_is_found(cu, machine):
    address = good(cu.cuMemAlloc(60))
    machine.view(int(address) + 60, (1,), np.uint8)[:] = 1
    good(cu.cuMemFree(address))
    assert machine.faults == "written past the end of a block of 60\n"
    machine.heal()


def test_the_memory_has_an_end(cu, machine):
    machine.memory = 1000
    address = good(cu.cuMemAlloc(600))
    assert refused(cu.cuMemAlloc(401)) == "OUT_OF_MEMORY"
    assert good(cu.cuMemGetInfo()) == 400
    good(cu.cuMemFree(address))
    assert refused(cu.cuMemAlloc(0)) == "INVALID_VALUE"


@pytest.mark.parametrize(
    "call", ["cuMemAlloc", "cuMemFree", "cuStreamSynchronize", "cuCtxSynchronize", "cuModuleUnload"]
)
def test_what_a_capture_forbids_breaks_it(cu, stream, block, call):
    address, _ = block
    handles = {
        "cuMemAlloc": (8,),
        "cuMemFree": (address,),
        "cuStreamSynchronize": (stream,),
        "cuCtxSynchronize": (),
    }
    good(begin(cu, stream))
    result = getattr(cu, call)(*handles.get(call, (cu.CUmodule(0),)))
    assert refused(result) == "STREAM_CAPTURE_UNSUPPORTED"
    assert refused(filled(cu, address, 1, stream)) == "STREAM_CAPTURE_INVALIDATED"
    assert refused(cu.cuStreamEndCapture(stream)) == "STREAM_CAPTURE_INVALIDATED"
    good(begin(cu, stream))
    good(cu.cuGraphDestroy(good(cu.cuStreamEndCapture(stream))))


def elsewhere(work):
    found = []

    def run():
        with device.active():
            found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_a_capture_is_its_threads_own(cu, stream):
    good(begin(cu, stream))
    address = good(elsewhere(lambda: cu.cuMemAlloc(8)))
    assert refused(elsewhere(lambda: cu.cuStreamEndCapture(stream))) == "STREAM_CAPTURE_WRONG_THREAD"
    assert refused(begin(cu, stream)) == "ILLEGAL_STATE"
    good(cu.cuGraphDestroy(good(cu.cuStreamEndCapture(stream))))
    good(cu.cuMemFree(address))
    assert refused(cu.cuStreamEndCapture(stream)) == "ILLEGAL_STATE"


def test_a_graph_runs_what_was_recorded_as_often_as_it_is_launched(cu, stream, block):
    address, view = block
    good(filled(cu, address, 1, stream))
    good(cu.cuStreamSynchronize(stream))
    good(begin(cu, stream))
    for value in (5, 6):
        good(filled(cu, address, value, stream))
    graph = good(cu.cuStreamEndCapture(stream))
    executable = good(cu.cuGraphInstantiate(graph, 0))
    good(cu.cuGraphDestroy(graph))
    good(cu.cuStreamSynchronize(stream))
    assert set(view) == {1}
    good(cu.cuGraphLaunch(executable, stream))
    good(filled(cu, address, 9, stream, 1))
    good(cu.cuGraphExecDestroy(executable))
    good(cu.cuStreamSynchronize(stream))
    assert view.tolist() == [9] + [6] * 63
    assert refused(cu.cuGraphLaunch(executable, stream)) == "INVALID_VALUE"


@pytest.fixture
def gather(cu):
    """``stage_gather_fp32`` of the real fatbin."""
    module = good(cu.cuModuleLoadData(fatbin()))
    assert refused(cu.cuModuleGetFunction(module, b"stage_gather_fp64")) == "NOT_FOUND"
    yield good(cu.cuModuleGetFunction(module, b"stage_gather_fp32"))
    good(cu.cuModuleUnload(module))


def gathered(cu, function, stream, *, cells=4, row=0, rows=1, table=ROW, threads=64, size=0):
    """Launch it on memory for 4 cells and one row, the counter at ``row``; what waiting for it gives.

    ``size`` bytes of the parameters are kept back.
    """
    sizes = {"mask": 16, "table": table, "step": 4, "timestep": 8, "handed": 16}
    at = {name: good(cu.cuMemAlloc(each)) for name, each in sizes.items()}
    counter = np.array([row], np.int32)
    good(cu.cuMemcpyHtoD(at["step"], counter.ctypes.data, 4))
    pointers = [int(at[name]) for name in ("mask", "table", "step")]
    counts = rows | cells << 32
    values = np.array([*pointers, counts, int(at["timestep"]), int(at["handed"])], np.uint64).tobytes()
    launch = ctypes.CDLL("libcuda.so.1").cuLaunchKernel
    length = ctypes.c_size_t(len(values) - size)
    # CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
    extra = (ctypes.c_void_p * 5)(1, ctypes.cast(values, ctypes.c_void_p), 2, ctypes.addressof(length), 0)
    one, block = ctypes.c_uint(1), ctypes.c_uint(threads)
    handles = ctypes.c_void_p(int(function)), ctypes.c_void_p(int(stream))
    result = launch(handles[0], one, one, one, block, one, one, ctypes.c_uint(0), handles[1], None, extra)
    told = cu.CUresult(result) if result else cu.cuStreamSynchronize(stream)[0]
    for address in at.values():
        cu.cuMemFree(address)
    return told.name.removeprefix("CUDA_")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "SUCCESS"),
        ({"cells": 5}, "ERROR_ILLEGAL_ADDRESS"),
        ({"row": 1}, "ERROR_ILLEGAL_ADDRESS"),
        ({"row": 1, "rows": 2}, "ERROR_ILLEGAL_ADDRESS"),
        ({"row": 1, "table": 2 * ROW}, "ERROR_ILLEGAL_ADDRESS"),
        ({"row": 1, "rows": 2, "table": 2 * ROW}, "SUCCESS"),
        ({"row": -1}, "SUCCESS"),
        ({"threads": 1025}, "ERROR_INVALID_VALUE"),
        ({"size": 8}, "ERROR_INVALID_VALUE"),
    ],
)
def test_a_kernel_reads_and_writes_only_what_is_there(cu, machine, stream, gather, options, expected):
    assert gathered(cu, gather, stream, **options) == expected
    machine.heal()


def test_a_function_of_the_host_must_not_call_the_driver(cu, machine, stream):
    results = []
    library = ctypes.CDLL("libcuda.so.1")
    machine.enqueue(
        int(stream), lambda: results.append(library.cuMemsetD8Async(None, 0, ctypes.c_size_t(0), None))
    )
    good(cu.cuStreamSynchronize(stream))
    assert results[0] != 0


def test_nothing_works_without_a_context(machine):
    driver = pytest.importorskip("cuda.bindings.driver")
    device.current()
    assert refused(driver.cuMemAlloc(8)) == "INVALID_CONTEXT"
