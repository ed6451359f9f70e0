import math
from dataclasses import replace

import numpy as np
import pytest
from small_model import small_model

from stage_rt.errors import ParityError
from stage_rt.export import parity
from stage_rt.export.parity import Case, Parity, StoredReferences, compare, references, require
from stage_rt.training.folder import load_model


def test_graphs_agree_with_their_networks_at_any_batch(graphs, model_folder, monkeypatch):
    # diffusers branches at 64 samples, which a trace at two must not have frozen.
    monkeypatch.setattr(parity, "BATCHES", (1, 64))
    parities = compare(graphs("fp32"), references(load_model(model_folder)), "fp32")
    assert len(parities) == 5
    assert all(0 < row.max_rel < 1e-5 for row in parities)


def test_the_unet_is_compared_at_several_timesteps_and_batches(model_folder):
    cases = references(load_model(model_folder))["unet"]
    assert [case.inputs["timestep"].tolist() for case in cases] == [
        *([9], [4], [0]),
        *([9, 4, 0], [4, 0, 9], [0, 9, 4]),
    ]
    assert {len(case.inputs["sample"]) for case in cases} == {1, 3}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_smaller_dtypes_stay_well_within_their_tolerance(graphs, model_folder, dtype):
    parities = compare(graphs(dtype), references(load_model(model_folder)), dtype)
    unit = {"fp16": 2**-11, "bf16": 2**-9}[dtype]
    assert all(unit / 10 < row.max_rel < row.tolerance / 3 for row in parities)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_graphs_of_other_weights_fail(graphs, dtype):
    parities = compare(graphs(dtype), references(small_model(seed=1)), dtype)
    assert not any(row.passed for row in parities)


def test_the_worst_graph_is_named():
    fine = Parity("unet", 1e-6, 1e-6, 1e-4)
    with pytest.raises(ParityError, match=r"graph `b` differs from torch by 3.0e-01 .* more than 1e-04"):
        require([fine, replace(fine, graph="a", max_rel=0.2), replace(fine, graph="b", max_rel=0.3)])
    require([fine])


def test_an_output_that_is_not_finite_fails_whatever_the_others_do():
    rows = [Parity("a", 1.0, 0.5, 1e-4), Parity("b", math.nan, math.nan, 1e-4)]
    with pytest.raises(ParityError, match="graph `b`"):
        require(rows)


def test_networks_read_one_by_one_give_the_same_references(model_folder):
    said = []
    stored, expected = StoredReferences(model_folder, said.append), references(load_model(model_folder))
    assert set(stored) == set(expected)
    assert len(stored) == len(expected)
    for graph, cases in stored.items():
        assert said[-1] == f"comparing {graph} with torch"
        for found, right in zip(cases, expected[graph], strict=True):
            np.testing.assert_array_equal(found.output, right.output)
            for name, values in found.inputs.items():
                np.testing.assert_array_equal(values, right.inputs[name])


class Answering:
    """A session that answers ``output`` to all."""

    def __init__(self, output):
        self.output = output

    def get_inputs(self):
        return []

    def run(self, *_):
        return [self.output]


def test_a_network_that_gives_zeros_is_compared(tmp_path, monkeypatch):
    zeros, cases = np.zeros((1, 2), np.float32), {"unet": [Case({}, np.zeros((1, 2), np.float32))]}
    for output, worst in ((zeros, 0.0), (zeros + 1, math.inf), (zeros + np.nan, math.nan)):
        monkeypatch.setattr(parity, "_session", lambda path, output=output: Answering(output))
        [row] = compare(tmp_path, cases, "fp32")
        assert row.max_rel == pytest.approx(worst, nan_ok=True)
        assert row.passed == (worst == 0)
