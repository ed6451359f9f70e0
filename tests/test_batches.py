"""Batches in the sizes that an engine was built for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage_rt import batches

BUCKETS = st.lists(st.integers(1, 70), min_size=1, max_size=5)


@given(st.integers(1, 500), BUCKETS)
def test_parts_hold_every_sample_once_in_order_with_little_padding(count, buckets):
    parts = batches.parts(count, buckets)
    assert [n for part in parts for n in range(part.start, part.start + part.length)] == list(range(count))
    assert all(part.bucket in buckets for part in parts)
    assert all(part.length == part.bucket == max(buckets) for part in parts[:-1])
    last = parts[-1]
    assert last.bucket == min(size for size in buckets if size >= last.length)


@pytest.mark.parametrize(
    ("buckets", "failed", "left"),
    [([1, 8, 32], 32, [1, 8]), ([1, 2, 4, 8], 8, [1, 2, 4]), ([1, 3], 3, [1]), ([8], 8, []), ([1], 1, [])],
)
def test_a_batch_that_does_not_fit_leaves_those_of_half_its_size(buckets, failed, left):
    assert batches.halved(buckets, failed) == left


@pytest.mark.parametrize(("buckets", "chosen"), [([1, 8, 32], 8), ([1, 4], 4), ([16, 32], 16), ([2], 2)])
def test_the_autoencoder_takes_a_moderate_batch(buckets, chosen):
    assert batches.autoencoder_bucket(buckets) == chosen


def test_padding_repeats_the_last_sample():
    array = np.arange(6).reshape(3, 2)
    assert batches.padded(array, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert batches.padded(array, 3).tolist() == array.tolist()
