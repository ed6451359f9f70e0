"""bf16 without a bf16 type in NumPy, against PyTorch's rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage_rt.networks import narrow, widen


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_bf16_is_rounded_as_torch_rounds_it(values):
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16)
    np.testing.assert_array_equal(narrow(array, "bf16"), expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(widen(narrow(array, "bf16"), "bf16"), expected.float().numpy())


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFFFFFFFF])
def test_a_nan_stays_one(bits):
    array = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(widen(narrow(array, "bf16"), "bf16")).all()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_others_are_numpys_own(dtype):
    array = np.array([1e-9, 1.0, -70000.0, np.inf], np.float32)
    with np.errstate(over="ignore"):
        expected = array.astype({"fp32": np.float32, "fp16": np.float16}[dtype])
    np.testing.assert_array_equal(narrow(array, dtype), expected)
    np.testing.assert_array_equal(widen(narrow(array, dtype), dtype), expected.astype(np.float32))
