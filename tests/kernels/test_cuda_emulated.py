"""The CUDA kernels compiled as C++ and run thread by thread, against the CPU library.

This covers every line of `step_cuda.cu` but not the GPU's compiler, its memory or its scheduling.
"""

import ctypes
import math

import numpy as np
import pytest

from stage_rt import kernels
from stage_rt.kernels.reference import guide
from stage_rt.kernels.table import rows
from stage_rt.recipe import StepCoefficients

THREADS = 32
GUARD = 8

AWARE = StepCoefficients(1.54, 1.17, 0.0031, 0.9957, 0.0837, 0.25, 0.3, 0.65, 0.76, False, 400)
ONLY = StepCoefficients(1.54, 1.17, 0.0031, 0.9957, 0.0837, 0.0, 0.0, 0.0, 0.76, True, 400)
FREE = AWARE._replace(free=1.0)
# Whole fours of everything; planes that are no fours in states that are; nothing in fours.
SIZES = [(2, 4, 8, 8), (3, 4, 3, 3), (2, 4, 5, 7), (2, 3, 5, 5), (2, 1, 1, 3), (1, 2, 1, 1), (2, 3, 16, 18)]


def narrow(array, dtype):
    """The array in a network's dtype; bf16 as the upper halves of float32, to nearest even."""
    if dtype != "bf16":
        return array.astype({"fp32": np.float32, "fp16": np.float16}[dtype])
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widen(array, dtype):
    if dtype != "bf16":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << 16).view(np.float32)


def guarded(array):
    """A copy of an array with untouched room behind it, flat."""
    return np.concatenate([array.ravel(), np.full(GUARD, 77, array.dtype)])


def case(shape, dtype):
    rng = np.random.default_rng(1)
    x, eps, clean = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    mask = (rng.random((shape[0], 1, *shape[2:])) < 0.4).astype(np.float32)
    seeds = rng.integers(0, 2**63, shape[0]).astype(np.uint64)
    return x, narrow(eps, dtype), clean, mask, seeds, np.arange(shape[0], dtype=np.uint32)


def launch(emulated, dtype, arrays, table, step, finite, unet=None):
    """Run one step in place; returns the state and the next network input, both as the kernel left them.

    ``unet`` is the estimate before the adapter, the adapter's own if None.
    """
    x, eps, clean, mask, seeds, samples = arrays
    batch, channels, height, width = x.shape
    state, network = guarded(x), guarded(eps)
    blocks = math.ceil(x[0].size / (4 * THREADS))
    coefficients = rows(table)
    plain = eps if unet is None else unet
    pointers = [state, plain, network, clean, mask]
    getattr(emulated, f"launch_stage_step_{dtype}")(
        *(ctypes.c_uint32(count) for count in (blocks, batch, THREADS)),
        *(ctypes.c_void_p(array.ctypes.data) for array in pointers),
        ctypes.c_void_p(coefficients.ctypes.data),
        *(ctypes.c_void_p(array.ctypes.data) for array in (step, seeds, samples)),
        ctypes.c_uint32(channels),
        ctypes.c_uint32(height * width),
        *(ctypes.c_void_p(array.ctypes.data) for array in (state, network, finite)),
    )
    for array in (state, network):
        np.testing.assert_array_equal(array[-GUARD:], np.full(GUARD, 77, array.dtype))
    return state[:-GUARD].reshape(x.shape), network[:-GUARD].reshape(x.shape)


@pytest.mark.parametrize("c", [AWARE, ONLY, FREE], ids=["aware", "only", "free"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_a_step_is_the_cpu_librarys_bit_for_bit(emulated, shape, dtype, c):
    arrays = case(shape, dtype)
    x, eps, clean, mask, seeds, samples = arrays
    step, finite = np.array([2], np.int32), np.ones(shape[0], np.uint32)
    other = AWARE._replace(sigma=9.0)
    c = c._replace(timestep=317)
    table = [other, other, c]
    state, network = launch(emulated, dtype, arrays, table, step, finite)
    expected, _ = kernels.fused_step(x, widen(eps, dtype), clean, mask, c, seeds, samples)
    np.testing.assert_array_equal(state, expected)
    np.testing.assert_array_equal(network, narrow(expected, dtype))
    assert finite.all()


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0, 4.5])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_kernel_guides_as_the_definition_does_bit_for_bit(emulated, shape, dtype, weight):
    arrays = case(shape, dtype)
    x, eps, clean, mask, seeds, samples = arrays
    unet = narrow(np.random.default_rng(9).standard_normal(shape).astype(np.float32), dtype)
    c = AWARE._replace(guidance=weight)
    state, _ = launch(
        emulated, dtype, arrays, [c], np.array([0], np.int32), np.ones(shape[0], np.uint32), unet
    )
    guided = guide(widen(unet, dtype), widen(eps, dtype), weight)
    expected, _ = kernels.fused_step(x, guided, clean, mask, c, seeds, samples)
    np.testing.assert_array_equal(state, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_estimate_of_the_unet_counts_only_where_it_is_used(emulated, value):
    arrays = case((2, 4, 5, 7), "fp32")
    unet = np.full_like(arrays[1], value)
    for weight, whole in ((1.0, 1), (2.0, 0)):
        finite = np.ones(2, np.uint32)
        row = AWARE._replace(guidance=weight)
        launch(emulated, "fp32", arrays, [row], np.array([0], np.int32), finite, unet)
        assert finite.tolist() == [whole, whole]


def test_the_counter_counts_down_and_chooses_noise_and_coefficients(emulated):
    arrays = case((2, 4, 5, 7), "fp32")
    step, finite = np.array([1], np.int32), np.ones(2, np.uint32)
    x, eps, clean, mask, seeds, samples = arrays
    emulated.launch_stage_advance(1, 1, 1, ctypes.c_void_p(step.ctypes.data))
    assert step.tolist() == [0]
    only = ONLY._replace(timestep=0)
    state, _ = launch(emulated, "fp32", arrays, [only, AWARE], step, finite)
    expected, _ = kernels.fused_step(x, eps, clean, mask, only, seeds, samples)
    np.testing.assert_array_equal(state, expected)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_sample_is_marked_and_stays_marked(emulated, shape, value):
    arrays = case(shape, "fp32")
    step, finite = np.array([0], np.int32), np.ones(shape[0], np.uint32)
    healthy = arrays[0].copy()
    arrays[0][-1].flat[-1] = value
    state, _ = launch(emulated, "fp32", arrays, [AWARE], step, finite)
    assert finite.tolist() == [1] * (shape[0] - 1) + [0]
    assert not np.isfinite(state[-1].flat[-1])
    launch(emulated, "fp32", (healthy, *arrays[1:]), [AWARE], step, finite)
    assert finite[-1] == 0


@pytest.mark.parametrize("c", [AWARE, ONLY, FREE], ids=["aware", "only", "free"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("cells", [1, 32, 75])
def test_what_the_networks_are_handed_is_gathered_by_the_counter(emulated, cells, dtype, c):
    mask = (np.random.default_rng(2).random(cells) < 0.4).astype(np.float32)
    handed, timestep = guarded(narrow(np.full(cells, 9, np.float32), dtype)), np.full(2, 77, np.int64)
    step = np.array([1], np.int32)
    table = rows([AWARE, c._replace(timestep=777)])
    getattr(emulated, f"launch_stage_gather_{dtype}")(
        *(ctypes.c_uint32(count) for count in (math.ceil(cells / THREADS), 1, THREADS)),
        ctypes.c_void_p(mask.ctypes.data),
        ctypes.c_void_p(table.ctypes.data),
        ctypes.c_void_p(step.ctypes.data),
        ctypes.c_uint32(cells),
        ctypes.c_void_p(timestep.ctypes.data),
        ctypes.c_void_p(handed.ctypes.data),
    )
    soft = mask + np.float32(c.mix) * (1 - mask)
    np.testing.assert_array_equal(handed[:-GUARD], narrow(soft, dtype))
    np.testing.assert_array_equal(handed[-GUARD:], np.full(GUARD, 77, handed.dtype)[:GUARD])
    assert timestep.tolist() == [777, 77]
