"""The fused step: the library against the definition, and the definition against the equations.

`step.h`, which is under test here, is the arithmetic of the CUDA kernels too.
"""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_rt import kernels
from stage_rt.errors import InputError
from stage_rt.kernels import reference
from stage_rt.kernels.reference import Draw
from stage_rt.recipe import StepCoefficients

AWARE = StepCoefficients(1.54, 1.17, 0.0031, 0.9957, 0.0837, 0.25, 0.25, 0.65, 0.76, False, 400)
ONLY = StepCoefficients(1.54, 1.17, 0.0031, 0.9957, 0.0837, 0.0, 0.0, 0.0, 0.76, True, 400)
LAST = StepCoefficients(1.0004, 0.0292, 1.0, 0.0, 0.0, 0.0, 0.0, 0.99957, 0.02915, False, 400)
FIRST = StepCoefficients(14.65, 14.61, 0.000828, 0.993925, 0.1086, 1.0, 1.0, 0.0687, 0.9976, False, 400)
FREE = AWARE._replace(free=1.0)
CASES = {"aware": AWARE, "only": ONLY, "last": LAST, "first": FIRST, "free": FREE}
SIZES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 4, 8, 8), (2, 4, 17, 19), (5, 2, 33, 9), (2, 4, 32, 32)]


def case(shape, seed=0):
    rng = np.random.default_rng(seed)
    batch, _, height, width = shape
    x, eps, clean = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    mask = (rng.random((batch, 1, height, width)) < 0.4).astype(np.float32)
    seeds = rng.integers(0, 2**63, batch).astype(np.uint64) * np.uint64(2) + np.uint64(1)
    samples = rng.integers(0, 2**32, batch).astype(np.uint32)
    return x, eps, clean, mask, seeds, samples


def both(arrays, c, i=400):
    x, eps, clean, mask, seeds, samples = arrays
    c = c._replace(timestep=i)
    return (module.fused_step(x, eps, clean, mask, c, seeds, samples) for module in (kernels, reference))


def assert_close(made, defined):
    np.testing.assert_allclose(made, defined, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("c", CASES.values(), ids=CASES)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_library_equals_definition(shape, c):
    (made, finite), (defined, defined_finite) = both(case(shape), c)
    assert made.dtype == defined.dtype == np.float32
    assert_close(made, defined)
    assert finite.all()
    assert defined_finite.all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("c", CASES.values(), ids=CASES)
def test_the_estimate_is_had_back_from_the_next_state(c, dtype, tolerance):
    rng = np.random.default_rng(1)
    x, eps, clean, near, far = (rng.standard_normal((2, 3, 5, 7)).astype(dtype) for _ in range(5))
    mask = (rng.random((2, 1, 5, 7)) < 0.4).astype(dtype)
    following = reference.step(x, eps, clean, mask, c, far, near)
    found = reference.recalled_estimate(following, eps, clean, mask, c, near)
    expected = np.where(mask > 0, reference.clean_estimate(x, eps, clean, mask, c), clean)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
    other = reference.recalled_estimate(following, eps, clean, mask, c, far)
    assert np.array_equal(other, found) == (c.sigma == 0)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20)),
    c=st.sampled_from(list(CASES.values())),
    i=st.integers(0, 999),
)
def test_any_size_is_the_definition_bit_for_bit_once_the_noise_is_given(shape, c, i):
    x, eps, clean, mask, seeds, samples = case(shape, seed=i)
    background_shape, draw = ((1, *shape[2:]), Draw.MASK) if c.shared_noise else (shape[1:], Draw.BACKGROUND)
    n = kernels.normal(seeds, samples, i, draw, background_shape)
    z = kernels.normal(seeds, samples, i, Draw.POSTERIOR, shape[1:])
    made, _ = kernels.fused_step(x, eps, clean, mask, c._replace(timestep=i), seeds, samples)
    np.testing.assert_array_equal(made, reference.step(x, eps, clean, mask, c, n, z))


def test_the_definition_keeps_its_dtype():
    x, eps, clean, mask, _, _ = case((2, 4, 4, 4))
    z = np.ones_like(x)
    # Coefficients as NumPy float64 scalars, as a recipe may hand them over.
    c = StepCoefficients(*(np.float64(value) for value in AWARE[:9]), False, 400)
    assert reference.step(x, eps, clean, mask, c, z, z).dtype == np.float32
    wide = [array.astype(np.float64) for array in (x, eps, clean, mask)]
    assert reference.step(*wide, c, z.astype(np.float64), z.astype(np.float64)).dtype == np.float64


def test_the_definition_is_the_three_equations():
    x, eps, clean, mask = (np.float64([[[[value]]]]) for value in (0.5, -0.25, 2.0, 0.0))
    n, z = np.float64([[[[0.75]]]]), np.float64([[[[-1.5]]]])
    c = StepCoefficients(2.0, 3.0, 0.5, 0.25, 0.1, 0.2, 0.4, 0.6, 0.8, False, 400)
    x0 = 0.2 * (2.0 * 0.5 + 3.0 * 0.25) + 0.8 * 2.0
    y = 0.5 * x0 + 0.25 * 0.5 - 0.1 * 1.5
    outside = 0.4 * y + 0.6 * (0.6 * 2.0 + 0.8 * 0.75)
    assert reference.step(x, eps, clean, mask, c, n, z).item() == pytest.approx(outside)
    inside = 0.5 * (2.0 * 0.5 + 3.0 * 0.25) + 0.25 * 0.5 - 0.1 * 1.5
    assert reference.step(x, eps, clean, mask + 1, c, n, z).item() == pytest.approx(inside)


@pytest.mark.parametrize("shared", [False, True])
def test_the_background_draw_is_one_channel_only_when_shared(shared):
    arrays = case((2, 4, 5, 5))
    outside = (*arrays[:3], np.zeros_like(arrays[3]), *arrays[4:])
    silent = StepCoefficients(1, 0, 0, 0, 0, 0, 0, 0, 1, shared, 400)
    made = next(both(outside, silent))[0]
    assert (made[:, :1] == made).all() == shared


@pytest.mark.parametrize("name", ["x", "eps", "clean"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "minus_inf"])
@pytest.mark.parametrize("c", CASES.values(), ids=CASES)
def test_non_finite_values_match_by_kind_and_mark_their_sample_only(name, value, c):
    arrays = case((3, 3, 5, 7))
    bad = arrays[["x", "eps", "clean"].index(name)]
    inside, outside = (np.argwhere(arrays[3][1, 0] == label)[0] for label in (1, 0))
    bad[1, 0, *inside] = value
    bad[1, 2, *outside] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (made, finite), (defined, defined_finite) = both(arrays, c)
    np.testing.assert_array_equal(np.isnan(made), np.isnan(defined))
    np.testing.assert_array_equal(np.isposinf(made), np.isposinf(defined))
    np.testing.assert_array_equal(np.isneginf(made), np.isneginf(defined))
    assert finite.tolist() == defined_finite.tolist() == [True, False, True]
    assert_close(made[[0, 2]], defined[[0, 2]])


def test_an_overflow_is_not_finite():
    arrays = case((2, 2, 3, 3))
    arrays[0][0] = 3e38
    (made, finite), (defined, _) = both(arrays, FIRST)
    assert np.isinf(defined).any()
    np.testing.assert_array_equal(np.isinf(made), np.isinf(defined))
    assert finite.tolist() == [False, True]


@pytest.mark.parametrize("c", [AWARE, ONLY], ids=["aware", "only"])
def test_a_sample_is_the_same_bits_alone_in_any_batch_and_on_any_number_of_threads(c):
    x, eps, clean, mask, seeds, samples = case((7, 4, 67, 71))
    whole, _ = kernels.fused_step(x, eps, clean, mask, c, seeds, samples, threads=1)
    for threads in (2, 3, 16):
        made, _ = kernels.fused_step(x, eps, clean, mask, c, seeds, samples, threads=threads)
        np.testing.assert_array_equal(made, whole)
    for rows in (slice(3, 4), slice(0, 2), slice(5, 7)):
        part = [array[rows] for array in (x, eps, clean, mask)]
        made, _ = kernels.fused_step(*part, c, seeds[rows], samples[rows])
        np.testing.assert_array_equal(made, whole[rows])


ROWS = [c._replace(timestep=i) for c, i in zip(CASES.values(), (400, 3, 0, 999, 58), strict=True)]


def test_every_sample_may_have_a_transition_of_its_own():
    """As if it were alone, bit for bit, on any number of threads; and as it is defined."""
    x, eps, clean, mask, seeds, samples = case((5, 4, 67, 71))
    made, finite = kernels.fused_step(x, eps, clean, mask, ROWS, seeds, samples)
    for threads in (1, 2, 7):
        again, _ = kernels.fused_step(x, eps, clean, mask, ROWS, seeds, samples, threads=threads)
        np.testing.assert_array_equal(again, made)
    for n, c in enumerate(ROWS):
        part = [array[n : n + 1] for array in (x, eps, clean, mask)]
        alone, _ = kernels.fused_step(*part, c, seeds[n : n + 1], samples[n : n + 1])
        np.testing.assert_array_equal(made[n : n + 1], alone)
    defined, defined_finite = reference.fused_step(x, eps, clean, mask, ROWS, seeds, samples)
    assert_close(made, defined)
    assert finite.all()
    assert defined_finite.all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "minus_inf"])
def test_non_finite_samples_at_transitions_of_their_own_match_by_kind(value):
    arrays = case((5, 3, 5, 7))
    arrays[1][2, 0, 1], arrays[0][4] = value, value
    x, eps, clean, mask, seeds, samples = arrays
    made, finite = kernels.fused_step(x, eps, clean, mask, ROWS, seeds, samples)
    defined, defined_finite = reference.fused_step(x, eps, clean, mask, ROWS, seeds, samples)
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(made), kind(defined))
    assert finite.tolist() == defined_finite.tolist() == [True, True, False, True, False]
    assert_close(made[[0, 1, 3]], defined[[0, 1, 3]])


def test_equal_transitions_are_one_for_all_bit_for_bit():
    x, eps, clean, mask, seeds, samples = case((3, 4, 17, 19))
    for c in CASES.values():
        made, _ = kernels.fused_step(x, eps, clean, mask, [c] * 3, seeds, samples)
        whole, _ = kernels.fused_step(x, eps, clean, mask, c, seeds, samples)
        np.testing.assert_array_equal(made, whole)


def test_another_number_of_transitions_than_samples_is_refused():
    x, eps, clean, mask, seeds, samples = case((3, 4, 6, 6))
    with pytest.raises(InputError, match="`c` must be one transition or one a sample, got 2 for 3 samples"):
        kernels.fused_step(x, eps, clean, mask, [AWARE, ONLY], seeds, samples)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_sample_is_guided_by_its_own_weight_and_by_1_to_the_bit(dtype):
    unet, adapter = (np.random.default_rng(n).standard_normal((4, 2, 3, 3)).astype(dtype) for n in range(2))
    unet[1] = np.nan
    weights = [0.0, 1.0, 2.0, 3.7]
    found = reference.guide(unet, adapter, np.array(weights))
    for n, weight in enumerate(weights):
        alone = reference.guide(unet[n : n + 1], adapter[n : n + 1], weight)
        np.testing.assert_array_equal(found[n : n + 1], alone)
        assert alone.dtype == found.dtype == dtype
    assert reference.guide(unet, adapter, 1) is adapter
    np.testing.assert_array_equal(found[1], adapter[1])


def test_flags_of_a_sample_shared_by_two_threads_are_joined():
    arrays = case((1, 4, 256, 256))
    arrays[0][0, 0, 0, 0] = np.nan
    x, eps, clean, mask, seeds, samples = arrays
    for threads in (1, 2, 4):
        _, finite = kernels.fused_step(x, eps, clean, mask, AWARE, seeds, samples, threads=threads)
        assert finite.tolist() == [False]


def test_an_empty_batch_is_an_empty_result():
    (made, finite), _ = both(case((0, 4, 8, 8)), AWARE)
    assert made.shape == (0, 4, 8, 8)
    assert finite.shape == (0,)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x[0], r"`x` must have shape \[B, C, h, w\]"),
        (0, lambda x: x.astype(np.float64), "`x` must be .* got float64"),
        (1, lambda eps: eps.transpose(0, 1, 3, 2), "`eps` must be .* not C-contiguous"),
        (1, lambda eps: eps[:, :3].copy(), r"`eps` must be .* shape \(2, 4, 6, 6\), got .* \(2, 3, 6, 6\)"),
        (2, lambda clean: clean[:1], "`clean` must be"),
        (3, lambda mask: mask.repeat(4, axis=1), r"`mask` must be .* of shape \(2, 1, 6, 6\)"),
        (3, lambda mask: mask > 0, "`mask` must be .* got bool"),
        (4, lambda seeds: seeds.astype(np.int64), "`seeds` must be .* got int64"),
        (4, lambda seeds: seeds[:1], "`seeds` must be"),
        (5, lambda samples: samples[::-1], "`samples` must be .* not C-contiguous"),
    ],
)
def test_a_wrong_array_is_refused(position, change, message):
    arrays = list(case((2, 4, 6, 6)))
    arrays[position] = change(arrays[position])
    with pytest.raises(InputError, match=message):
        kernels.fused_step(*arrays[:4], AWARE, *arrays[4:])


def test_without_aif_the_estimate_is_the_networks_own_everywhere():
    x, eps, clean, mask = (np.float64([[[[value]]]]) for value in (0.5, -0.25, 2.0, 0.0))
    n, z = np.float64([[[[0.75]]]]), np.float64([[[[-1.5]]]])
    c = StepCoefficients(2.0, 3.0, 0.5, 0.25, 0.1, 0.2, 0.4, 0.6, 0.8, False, 400, free=1.0)
    y = 0.5 * (2.0 * 0.5 + 3.0 * 0.25) + 0.25 * 0.5 - 0.1 * 1.5
    outside = 0.4 * y + 0.6 * (0.6 * 2.0 + 0.8 * 0.75)
    assert reference.step(x, eps, clean, mask, c, n, z).item() == pytest.approx(outside)
