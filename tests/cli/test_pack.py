"""`stage-rt pack` as a user meets it."""

import json

import pytest
from fake_engine import FakeEngine, ten_pairs

from stage_rt.cli import main
from stage_rt.run.fill import fill


@pytest.fixture
def pack(tmp_path, monkeypatch, capsys):
    """Run the command beside a run of ten pairs, five photographs."""
    fill(FakeEngine(poisoned=(3,)), ten_pairs(tmp_path), tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as exited:
            main(["pack", *arguments])
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


def test_it_tells_what_is_on_which_side(pack):
    assert pack("run", "-o", "set", "--format", "yolo", "--normals", "normals") == (
        0,
        "9 pairs in `set`\ntrain 7 pairs: 4 good, 7 hole\nval   2 pairs: 1 good, 2 hole\nleft out: 1 failed\n",
        "",
    )


def test_json(pack):
    code, out, err = pack("run", "-o", "set", "--format", "coco", "--split", "0.5", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["pairs"] == {side: sum(told["pictures"][side].values()) for side in ("train", "val")}
    assert sum(told["pairs"].values()) == 9
    assert (told["pack"], told["classes"], told["skipped"]) == ("set", ["hole"], {"failed": 1})


def test_what_mvtec_cannot_hold_is_told(pack):
    code, out, err = pack("run", "-o", "set", "--format", "mvtec", "--split", "0.6", "--normals", "normals")
    assert code == 0
    assert "train 0 pairs: 3 good\nval   3 pairs: 2 good, 3 hole\n" in out
    assert err.startswith("notice: 6 pairs were left out, as their photographs are in `train/good`: ")
    code, out, err = pack("run", "-o", "other", "--format", "mvtec")
    assert (code, err) == (
        0,
        "notice: `train/good` is empty, which anomalib does not train on: add `--normals DIR`\n",
    )


def test_a_mistake_is_one_sentence(pack, tmp_path):
    (tmp_path / "run/test/hole/000001.png").unlink()
    assert pack("run", "-o", "set", "--format", "voc") == (
        1,
        "",
        "error: `run/test/hole/000001.png` is missing: run its `stage-rt synth` again, which paints it anew\n",
    )
    code, out, err = pack("run", "-o", "set", "--format", "tfrecord")
    assert (code, out) == (2, "")
    assert "tfrecord" in err
    assert not (tmp_path / "set").exists()
