"""`stage-rt pack` as a user meets it."""

import json
from dataclasses import replace

import pytest
from fake_engine import FakeEngine, photographs, ten_pairs
from PIL import Image

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
        "9 pairs in `set`\ntrain 7 pairs (7 hole), 4 good photographs\n"
        "val   2 pairs (2 hole), 1 good photograph\nleft out: 1 failed\n",
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
    assert out == (
        "3 pairs in `set`\ntrain 3 good photographs\ntest  3 pairs (3 hole), 2 good photographs\n"
        "left out: 1 failed, 6 painted into train/good\n"
    )
    assert err == (
        "notice: 6 pairs left out, as their photographs are in `train/good`: `--split 0` keeps every pair and leaves "
        "`train/good` empty, a `--split` below 0.6 or more photographs that nothing was painted into keep more\n"
    )
    code, out, err = pack("run", "-o", "other", "--format", "mvtec")
    assert (code, err) == (
        0,
        "notice: `train/good` is empty, which anomalib does not train on: add `--normals DIR`\n",
    )


def test_the_split_that_a_notice_names_keeps_every_pair(pack):
    code, out, err = pack("run", "-o", "set", "--format", "mvtec", "--split", "0", "--normals", "normals")
    assert (code, out) == (
        0,
        "9 pairs in `set`\ntrain nothing\ntest  9 pairs (9 hole), 5 good photographs\nleft out: 1 failed\n",
    )
    assert err == (
        "notice: `train/good` is empty, which anomalib does not train on: take a larger `--split`\n"
    )


@pytest.fixture
def data(tmp_path):
    """A data set of five holes of one label each and two good photographs, in the working folder."""
    (tmp_path / "tile/ground_truth/hole").mkdir(parents=True)
    for n, photo in enumerate(photographs(tmp_path / "tile/test/hole", 5, seed=1)):
        label = Image.new("L", (40, 30))
        label.paste(255, (2 + 7 * n, 16, 7 + 7 * n, 22))
        label.save(tmp_path / f"tile/ground_truth/hole/{photo.stem}_mask.png")
    photographs(tmp_path / "tile/test/good", 2, seed=2)


@pytest.mark.usefixtures("data")
def test_real_photographs_are_counted_apart(pack):
    arguments = ("run", "--format", "coco", "--normals", "normals", "--real", "tile", "--split", "0.6")
    code, out, err = pack(*arguments, "-o", "set")
    assert (code, out) == (
        0,
        "9 painted pairs and 5 labelled photographs in `set`\n"
        "train 9 painted pairs (9 hole), 3 labelled photographs (3 hole), 5 good photographs\n"
        "val   2 labelled photographs (2 hole), 2 good photographs\nleft out: 1 failed\n",
    )
    assert err == (
        "notice: the model that painted may have learned from photographs that validate: with `--engine ENGINE` "
        "those that its training held out do (`stage-rt train --hold-out`)\n"
    )
    told = json.loads(pack(*arguments, "-o", "other", "--json")[1])
    assert told["pairs"] == {"train": 9, "val": 0}
    assert told["real"] == {"train": {"hole": 3}, "val": {"hole": 2}}
    assert told["pictures"] == {"train": {"hole": 12, "good": 5}, "val": {"hole": 2, "good": 2}}


@pytest.mark.usefixtures("data")
def test_the_engine_says_what_validates(pack, tmp_path):
    spec = FakeEngine().spec
    held = {"held_out": [f"tile/hole/00{n}.png" for n in (1, 4)]}
    sealed = spec.model_copy(update={"model": spec.model.model_copy(update={"provenance": held})}).sealed()
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/engine.json").write_text(sealed)
    code, out, err = pack("run", "-o", "set", "--format", "yolo", "--real", "tile", "--engine", "engine")
    assert (code, err) == (0, "")
    assert "\nval   2 labelled photographs (2 hole), 2 good photographs\n" in out


@pytest.mark.usefixtures("data")
def test_real_photographs_have_no_place_in_mvtec(pack):
    assert pack("run", "-o", "set", "--format", "mvtec", "--real", "tile") == (
        1,
        "",
        "error: readers of `mvtec` learn from good photographs alone, so that pairs to train on have no place in it: "
        "leave out `--real`, or take another `--format`\n",
    )


def test_one_pair_is_no_pairs(pack, tmp_path):
    job = ten_pairs(tmp_path)
    fill(FakeEngine(), replace(job, count=1, normals=job.normals[:1]), tmp_path / "single")
    assert pack("single", "-o", "set", "--format", "yolo", "--split", "1")[1] == (
        "1 pair in `set`\ntrain 1 pair (1 hole)\nval   nothing\n"
    )


def test_a_folder_that_cannot_be_made_is_one_sentence(pack, tmp_path):
    (tmp_path / "file").touch()
    assert pack("run", "-o", "file/set", "--format", "voc") == (
        3,
        "",
        f"error: writing to `{tmp_path}/file` failed (File exists): mend that and run the same command again\n",
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
