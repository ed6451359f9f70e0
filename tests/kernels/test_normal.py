"""Standard normal numbers: the library against the definition, and the definition against the normal law."""

import numpy as np
import pytest

from stage_rt import kernels
from stage_rt.kernels import reference

SEEDS = np.array([7, 2**63 + 1, 12345], np.uint64)
SAMPLES = np.array([0, 1, 2**32 - 1], np.uint32)


def relative_error(made, defined):
    return np.max(np.abs(made.astype(np.float64) - defined) / np.maximum(1, np.abs(defined)))


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (4,), (1, 5, 7), (4, 3, 3), (4, 16, 16), (3, 31, 33)])
def test_library_equals_definition(shape):
    made = kernels.normal(SEEDS, SAMPLES, 17, 3, shape)
    assert made.dtype == np.float32
    assert made.shape == (3, *shape)
    assert relative_error(made, reference.normal(SEEDS, SAMPLES, 17, 3, shape)) <= 1e-6


def test_library_equals_definition_over_a_million_numbers():
    made, defined = (draws.normal(SEEDS, SAMPLES, 0, 0, (4, 300, 300)) for draws in (kernels, reference))
    assert relative_error(made, defined) <= 1e-6


@pytest.mark.parametrize("draws", [kernels, reference])
def test_a_longer_draw_begins_with_the_shorter(draws):
    longer = draws.normal(SEEDS, SAMPLES, 1, 1, (1030,))
    np.testing.assert_array_equal(draws.normal(SEEDS, SAMPLES, 1, 1, (257,)), longer[:, :257])


@pytest.mark.parametrize("draws", [kernels, reference])
def test_the_numbers_of_a_seed_never_change(draws):
    # Pairs are made again from their seeds, so another method of drawing would be another file format.
    first = draws.normal(np.uint64([0]), np.uint32([0]), 0, 0, (6,))[0]
    published = [0.9911378, -0.9246624, -0.6176090, -0.4820686, -0.1536382, 0.1808258]
    np.testing.assert_allclose(first, published, rtol=0, atol=1e-6)


def test_moments_are_those_of_the_normal_law():
    n = 1_000_000
    numbers = kernels.normal(np.uint64([2024]), np.uint32([0]), 3, 1, (n,))[0].astype(np.float64)
    # Five standard errors of the mean, variance, skewness and kurtosis of n independent normal numbers.
    assert abs(numbers.mean()) < 5 * np.sqrt(1 / n)
    assert abs(numbers.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((numbers**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((numbers**4).mean() - 3) < 5 * np.sqrt(96 / n)


def test_quantiles_are_those_of_the_normal_law():
    n = 1_000_000
    numbers = kernels.normal(np.uint64([77]), np.uint32([0]), 3, 1, (n,))[0]
    for level, probability in ((-3, 0.0013499), (-1, 0.1586553), (0, 0.5), (1, 0.8413447), (3, 0.9986501)):
        assert abs((numbers < level).mean() - probability) < 5 * np.sqrt(probability * (1 - probability) / n)


def test_neighbours_draws_steps_and_samples_are_uncorrelated():
    n = 100_000
    streams = [
        kernels.normal(np.uint64([seed]), np.uint32([sample]), step, draw, (n,))[0]
        for seed, sample, step, draw in ((1, 0, 5, 1), (2, 0, 5, 1), (1, 1, 5, 1), (1, 0, 6, 1), (1, 0, 5, 2))
    ]
    lagged = [streams[0][:-lag] * streams[0][lag:] for lag in (1, 2, 3, 4)]
    crossed = [streams[0] * other for other in streams[1:]]
    for product in lagged + crossed:
        assert abs(product.mean()) < 5 / np.sqrt(n - 4)
