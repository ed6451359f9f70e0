"""The CUDA kernels compiled as C++ and run thread by thread, against the CPU library.

This covers every line of `step_cuda.cu` but not the GPU's compiler, its memory or its scheduling.
"""

import ctypes
import math

import numpy as np
import pytest

from stage_rt import kernels
from stage_rt.kernels.reference import fused_step, guide, select
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


def estimate(shape, dtype, seed):
    return narrow(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), dtype)


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def launch(emulated, dtype, arrays, tables, counter, finite, unet=None, aware=None, only=None):
    """Run one step in place; returns the state and the next network input, both as the kernel left them.

    ``tables`` has one a sample. Estimates are that of ``arrays`` where they are None; the next input is written over
    the one of ``arrays``.
    """
    x, eps, clean, mask, seeds, samples = arrays
    batch, channels, height, width = x.shape
    state, network = guarded(x), guarded(eps)
    blocks = math.ceil(x[0].size / (4 * THREADS))
    packed = rows([row for table in tables for row in table])
    estimates = [network if each is None else each for each in (unet, aware, only)]
    getattr(emulated, f"launch_stage_step_{dtype}")(
        *(ctypes.c_uint32(count) for count in (blocks, batch, THREADS)),
        *(pointer(array) for array in (state, *estimates, clean, mask, packed, counter, seeds, samples)),
        *(ctypes.c_uint32(count) for count in (len(tables[0]), channels, height * width)),
        *(pointer(array) for array in (state, network, finite)),
    )
    for array in (state, network):
        np.testing.assert_array_equal(array[-GUARD:], np.full(GUARD, 77, array.dtype))
    return state[:-GUARD].reshape(x.shape), network[:-GUARD].reshape(x.shape)


def lockstep(shape, table, row):
    """The same table and counter for every sample, and a flag for each."""
    return [table] * shape[0], np.full(shape[0], row, np.int32), np.ones(shape[0], np.uint32)


@pytest.mark.parametrize("c", [AWARE, ONLY, FREE], ids=["aware", "only", "free"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_a_step_is_the_cpu_librarys_bit_for_bit(emulated, shape, dtype, c):
    arrays = case(shape, dtype)
    x, eps, clean, mask, seeds, samples = arrays
    other = AWARE._replace(sigma=9.0)
    c = c._replace(timestep=317)
    tables, counter, finite = lockstep(shape, [other, other, c], 2)
    state, network = launch(emulated, dtype, arrays, tables, counter, finite)
    expected, _ = kernels.fused_step(x, widen(eps, dtype), clean, mask, c, seeds, samples)
    np.testing.assert_array_equal(state, expected)
    np.testing.assert_array_equal(network, narrow(expected, dtype))
    assert finite.all()


APART = [
    AWARE._replace(timestep=0, sigma=0.0),
    ONLY._replace(timestep=88, only=True),
    AWARE._replace(timestep=317, guidance=2.0),
    ONLY._replace(timestep=640, only=True, guidance=1.5, shared_noise=False),
    FREE._replace(timestep=999),
]
"""A table with rows of both branches and several guidances."""


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", [(6, *size[1:]) for size in SIZES], ids=str)
def test_samples_at_rows_of_their_own_each_step_as_if_alone(emulated, shape, dtype):
    """In branches of their own, with tables of their own; the one at rest is left as it is."""
    arrays = case(shape, dtype)
    x, eps, clean, mask, seeds, samples = arrays
    unet, aware, only = (estimate(shape, dtype, seed) for seed in (3, 4, 5))
    tables = [[row._replace(mix=row.mix / (1 + n)) for row in APART] for n in range(6)]
    counter, finite = np.array([4, 1, -1, 3, 0, 2], np.int32), np.ones(6, np.uint32)
    state, network = launch(emulated, dtype, arrays, tables, counter, finite, unet, aware, only)
    own = [table[at] for table, at in zip(tables, counter, strict=True)]
    wide = [widen(each, dtype) for each in (unet, aware, only)]
    guided = guide(
        wide[0], select(*wide[1:], np.array([c.only for c in own])), np.array([c.guidance for c in own])
    )
    expected, _ = kernels.fused_step(x, guided, clean, mask, own, seeds, samples)
    defined, _ = fused_step(x, guided, clean, mask, own, seeds, samples)
    np.testing.assert_allclose(expected, defined, rtol=1e-6, atol=1e-6)
    expected[2] = x[2]
    np.testing.assert_array_equal(state, expected)
    moved = np.arange(6) != 2
    np.testing.assert_array_equal(network[moved], narrow(expected, dtype)[moved])
    np.testing.assert_array_equal(network[2], eps[2])
    assert finite.all()
    for n in np.flatnonzero(moved):
        part = slice(n, n + 1)
        alone = tuple(array[part].copy() for array in arrays)
        single, _ = launch(
            emulated,
            dtype,
            alone,
            [tables[n]],
            counter[part].copy(),
            np.ones(1, np.uint32),
            *(each[part].copy() for each in (unet, aware, only)),
        )
        np.testing.assert_array_equal(single, state[part])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_broken_in_the_other_branch_or_at_rest_is_not_read(emulated, value):
    shape = (3, 4, 5, 7)
    arrays = case(shape, "fp32")
    aware, only = estimate(shape, "fp32", 4), estimate(shape, "fp32", 5)
    aware[1], only[0], arrays[0][2] = value, value, value
    tables, finite = [[AWARE, ONLY._replace(only=True)]] * 3, np.ones(3, np.uint32)
    counter = np.array([0, 1, -1], np.int32)
    state, _ = launch(emulated, "fp32", arrays, tables, counter, finite, arrays[1], aware, only)
    assert finite.tolist() == [1, 1, 1]
    assert np.isfinite(state[:2]).all()
    np.testing.assert_array_equal(state[2], arrays[0][2])
    aware[0] = value
    launch(emulated, "fp32", arrays, tables, counter, finite, arrays[1], aware, only)
    assert finite.tolist() == [0, 1, 1]


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0, 4.5])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_kernel_guides_as_the_definition_does_bit_for_bit(emulated, shape, dtype, weight):
    arrays = case(shape, dtype)
    x, eps, clean, mask, seeds, samples = arrays
    unet = estimate(shape, dtype, 9)
    c = AWARE._replace(guidance=weight)
    state, _ = launch(emulated, dtype, arrays, *lockstep(shape, [c], 0), unet)
    guided = guide(widen(unet, dtype), widen(eps, dtype), weight)
    expected, _ = kernels.fused_step(x, guided, clean, mask, c, seeds, samples)
    np.testing.assert_array_equal(state, expected)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", [(4, *size[1:]) for size in SIZES], ids=str)
def test_a_prompt_is_weighed_against_good_surface_by_every_samples_own_weight(emulated, shape, dtype):
    values = [widen(estimate(shape, dtype, seed), dtype) for seed in (6, 7)]
    values[0][1], values[1][2].flat[0] = np.inf, -np.inf
    surface, prompt = (narrow(each, dtype) for each in values)
    weights = [3.5, 1.0, 0.0, 2.0]
    tables = [AWARE._replace(prompt_guidance=9.0), *(AWARE._replace(prompt_guidance=w) for w in weights)]
    packed = rows([row for n in range(4) for row in (tables[0], tables[1 + n])])
    counter, found = np.array([1, 1, 1, -1], np.int32), guarded(prompt)
    elements = prompt[0].size
    getattr(emulated, f"launch_stage_contrast_{dtype}")(
        *(ctypes.c_uint32(count) for count in (math.ceil(elements / (4 * THREADS)), 4, THREADS)),
        *(pointer(array) for array in (surface, packed, counter)),
        *(ctypes.c_uint32(count) for count in (2, elements)),
        pointer(found),
    )
    np.testing.assert_array_equal(found[-GUARD:], np.full(GUARD, 77, found.dtype))
    left = found[:-GUARD].reshape(shape)
    weighed = guide(widen(surface, dtype), widen(prompt, dtype), np.array(weights))
    finite = np.isfinite(weighed)
    np.testing.assert_array_equal(left[:3][finite[:3]], narrow(weighed, dtype)[:3][finite[:3]])
    np.testing.assert_array_equal(np.isnan(widen(left, dtype)[:3]), np.isnan(weighed[:3]))
    # With a weight of 1 good surface plays no part, and at rest nothing happens.
    np.testing.assert_array_equal(left[[1, 3]], prompt[[1, 3]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_estimate_of_the_unet_counts_only_where_it_is_used(emulated, value):
    arrays = case((2, 4, 5, 7), "fp32")
    unet = np.full_like(arrays[1], value)
    for weight, whole in ((1.0, 1), (2.0, 0)):
        tables, counter, finite = lockstep((2,), [AWARE._replace(guidance=weight)], 0)
        launch(emulated, "fp32", arrays, tables, counter, finite, unet)
        assert finite.tolist() == [whole, whole]


def test_the_counters_count_down_to_rest_and_choose_noise_and_coefficients(emulated):
    arrays = case((2, 4, 5, 7), "fp32")
    step, finite = np.array([1, 0, -1, 5] + [77] * GUARD, np.int32), np.ones(2, np.uint32)
    x, eps, clean, mask, seeds, samples = arrays
    emulated.launch_stage_advance(1, 1, THREADS, ctypes.c_uint32(4), pointer(step))
    assert step.tolist() == [0, -1, -1, 4] + [77] * GUARD
    only = ONLY._replace(timestep=0)
    state, _ = launch(emulated, "fp32", arrays, [[only, AWARE]] * 2, np.zeros(2, np.int32), finite)
    expected, _ = kernels.fused_step(x, eps, clean, mask, only, seeds, samples)
    np.testing.assert_array_equal(state, expected)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_sample_is_marked_and_stays_marked(emulated, shape, value):
    arrays = case(shape, "fp32")
    tables, counter, finite = lockstep(shape, [AWARE], 0)
    healthy = arrays[0].copy()
    arrays[0][-1].flat[-1] = value
    state, _ = launch(emulated, "fp32", arrays, tables, counter, finite)
    assert finite.tolist() == [1] * (shape[0] - 1) + [0]
    assert not np.isfinite(state[-1].flat[-1])
    launch(emulated, "fp32", (healthy, *arrays[1:]), tables, counter, finite)
    assert finite[-1] == 0


@pytest.mark.parametrize("c", [AWARE, ONLY, FREE], ids=["aware", "only", "free"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("cells", [1, 32, 75])
def test_what_the_networks_are_handed_is_gathered_by_the_counters(emulated, cells, dtype, c):
    mask = (np.random.default_rng(2).random((3, cells)) < 0.4).astype(np.float32)
    before = narrow(np.full((3, cells), 9, np.float32), dtype)
    handed, timestep = guarded(before), np.full(4, 77, np.int64)
    counter = np.array([1, 0, -1], np.int32)
    table = rows([AWARE, c._replace(timestep=777), ONLY._replace(timestep=5), AWARE, AWARE, AWARE])
    getattr(emulated, f"launch_stage_gather_{dtype}")(
        *(ctypes.c_uint32(count) for count in (math.ceil(cells / THREADS), 3, THREADS)),
        *(pointer(array) for array in (mask, table, counter)),
        *(ctypes.c_uint32(count) for count in (2, cells)),
        *(pointer(array) for array in (timestep, handed)),
    )
    soft = mask + np.float32([[c.mix], [ONLY.mix], [0]]) * (1 - mask)
    left = handed[:-GUARD].reshape(before.shape)
    np.testing.assert_array_equal(left[:2], narrow(soft, dtype)[:2])
    np.testing.assert_array_equal(left[2], before[2])
    np.testing.assert_array_equal(handed[-GUARD:], np.full(GUARD, 77, handed.dtype))
    assert timestep.tolist() == [777, 5, 77, 77]
