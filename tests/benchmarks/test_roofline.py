"""What bounds a step: the longer of arithmetic and traffic, product by product."""

import sys
from pathlib import Path

import pytest

from stage_rt.engines.operations import Product


@pytest.fixture
def roofline(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "options", raising=False)
    import roofline

    return roofline


def test_every_product_takes_the_longer_of_arithmetic_and_traffic(roofline):
    machine = roofline.Machine("m", flops=1e9, bandwidth=1e9, width=4)
    # 8 ms of arithmetic against 1 + 2 of traffic, then 1 against 4 + 1; at batch 8 arithmetic alone grows eightfold.
    counted = [Product(8_000_000, 250_000, 500_000), Product(1_000_000, 1_000_000, 250_000)]
    one, eight = (roofline.bound(counted, batch, machine) for batch in (1, 8))
    assert (one["least ms"], one["bound by traffic"]) == (13, round(5 / 13, 3))
    assert (one["FLOP a byte"], one["MB"], one["weights, MB"]) == (round(9 / 8, 1), 8, 5)
    # 64 against 1 + 16, and 8 against 4 + 8.
    assert (eight["least ms"], eight["bound by traffic"]) == (76, round(12 / 76, 3))
    assert eight["GFLOP/s"] == round(72 / 76, 1)
