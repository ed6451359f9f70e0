"""How far apart two steps are."""

import numpy as np
import pytest

from stage_rt.cuda.replay import difference

STEP = {
    "state": np.array([1.0, -4.0, 0.0], np.float32),
    "sample": np.array([1.0, np.nan], np.float16),
    "counter": np.array([7], np.int32),
}


def changed(name, index, value):
    arrays = {key: array.copy() for key, array in STEP.items()}
    arrays[name][index] = value
    return arrays


@pytest.mark.parametrize(
    ("name", "index", "value", "expected"),
    [
        ("state", 2, 0.0, 0),
        ("state", 2, 0.5, 0.125),
        ("state", 1, -3.0, 0.25),
        ("sample", 0, 1.5, 0.5),
        ("sample", 1, 1.0, np.inf),
        ("state", 0, np.inf, np.inf),
        ("counter", 0, 6, np.inf),
    ],
)
def test_the_largest_difference_counts_as_a_share_of_the_largest_value(name, index, value, expected):
    assert difference(changed(name, index, value), STEP) == pytest.approx(expected)


def test_nothing_against_something_is_infinitely_far():
    assert difference({"state": np.ones(2, np.float32)}, {"state": np.zeros(2, np.float32)}) == np.inf
    assert difference({"state": np.ones(2)}, {"state": np.full(2, np.nan)}) == np.inf
