"""`stage-rt export` as a user meets it; `tests/export` has what it writes."""

import json
import math

import pytest

from stage_rt.cli import main
from stage_rt.export import graphs
from stage_rt.export.parity import Parity, require


def test_an_error_that_is_not_finite_is_json_all_the_same(tmp_path, monkeypatch, capsys):
    parities = [Parity("unet", math.nan, math.nan, 1e-2), Parity("vae_decoder", 1e-3, 2e-3, 1e-2)]

    def export(model, folder, *, show, **options):
        show(parities)
        require(parities)

    monkeypatch.setattr(graphs, "export", export)
    with pytest.raises(SystemExit) as exited:
        main(["export", "model", "-o", str(tmp_path / "graphs"), "--dtype", "fp16", "--json"])
    assert exited.value.code == 3
    out, err = capsys.readouterr()
    rows = json.loads(out, parse_constant=pytest.fail)["parity"]
    assert [(row["max_abs"], row["max_rel"], row["passed"]) for row in rows] == [
        (None, None, False),
        (1e-3, 2e-3, True),
    ]
    assert "differs from torch by nan of its largest value" in err
