"""Painted defects are held against photographs that the training did not see."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from micro import write_dataset

from stage_rt.images.layouts import datasets
from stage_rt.training.holdout import hold_out


@pytest.fixture
def real_defects(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "options", raising=False)
    import real_defects

    return real_defects


@pytest.mark.parametrize("share", [0, 0.4])
def test_what_is_real_is_what_a_training_held_out_or_all(real_defects, tmp_path, share):
    found = datasets(write_dataset(tmp_path / "part", defects=7))
    kept, names = hold_out(found, share, seed=0)
    engine = SimpleNamespace(spec=SimpleNamespace(model=SimpleNamespace(provenance={"held_out": names})))
    seen = {pair for one in kept for pairs in one.defects.values() for pair in pairs} if share else set()
    real = real_defects.held_out(engine, tmp_path / "part")
    assert real == {
        f"part+{kind}": [pair for pair in pairs if pair not in seen]
        for one in found
        for kind, pairs in one.defects.items()
    }
    assert all(real.values())
