"""What somebody accepted lies in a data set, and nothing of it takes the place of something else."""

import json

import numpy as np
import pytest
from closed_engine import closed_engine

from stage_rt.errors import InputError
from stage_rt.run.job import resolve
from stage_rt.run.workers import Result
from stage_rt.serve import kept
from stage_rt.serve.kept import Kept
from stage_rt.serve.pairs import Pair, Request, asked

METHOD = resolve(asked("tile+crack", 0, None), closed_engine().spec.model)


def pair(name, prompt):
    photo = np.zeros((4, 4, 3), np.uint8)
    made = Pair(name, Request("tiles", prompt, photo, photo[..., 0] > 0, False, 0, METHOD))
    made.result = Result(0, name.encode(), None, b"label", 1, 1, 1, 1.0, 0.0, (0, 0, 1, 1), None)
    return made


def test_two_prompts_of_one_type_have_places_of_their_own(tmp_path):
    pairs = [
        pair("a", "bottle+crack"),
        pair("b", "cap+crack"),
        pair("c", "cap+hole"),
        pair("d", "bottle+crack"),
    ]
    places = [Kept(tmp_path).put(each) for each in pairs]
    assert places == [
        f"tiles/test/{place}.png" for place in ("crack/000000", "crack/000001", "hole/000000", "crack/000002")
    ]
    assert [(tmp_path / place).read_bytes() for place in places] == [b"a", b"b", b"c", b"d"]


def ids(folder):
    return [json.loads(line)["id"] for line in (folder / "tiles/accepted.jsonl").read_text().splitlines()]


def test_a_pair_that_was_taken_out_leaves_its_number_to_nobody_who_would_overwrite_another(tmp_path):
    for name in "abc":
        Kept(tmp_path).put(pair(name, "cap+crack"))
    listed = tmp_path / "tiles/accepted.jsonl"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[1:]))
    (tmp_path / "tiles/test/crack/000000.png").unlink()
    assert Kept(tmp_path).put(pair("d", "cap+crack")) == "tiles/test/crack/000003.png"
    # Whoever begins the list anew has the pictures all the same, and whoever moves the pictures has the list.
    listed.unlink()
    assert Kept(tmp_path).put(pair("e", "cap+crack")) == "tiles/test/crack/000004.png"
    (tmp_path / "tiles/test").rename(tmp_path / "moved")
    (tmp_path / "tiles/ground_truth").rename(tmp_path / "truth")
    assert Kept(tmp_path).put(pair("f", "cap+crack")) == "tiles/test/crack/000005.png"
    assert (tmp_path / "moved/crack/000002.png").read_bytes() == b"c"
    assert ids(tmp_path) == ["e", "f"]


def test_a_list_whose_last_line_does_not_end_goes_on(tmp_path):
    Kept(tmp_path).put(pair("a", "cap+crack"))
    listed = tmp_path / "tiles/accepted.jsonl"
    listed.write_bytes(listed.read_bytes().rstrip(b"\n"))
    Kept(tmp_path).put(pair("b", "cap+crack"))
    assert ids(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("line", ["{", "[1]", "{}", "\udcff"])
def test_a_list_that_cannot_be_read_is_told_of(tmp_path, line):
    Kept(tmp_path).put(pair("a", "cap+crack"))
    listed = tmp_path / "tiles/accepted.jsonl"
    whole = listed.read_bytes() + line.encode(errors="surrogateescape")
    listed.write_bytes(whole)
    told = r"^line 2 of the list of accepted pairs `tiles/accepted.jsonl` cannot be read: mend it or take it out$"
    with pytest.raises(InputError, match=told):
        Kept(tmp_path).put(pair("b", "cap+crack"))
    assert listed.read_bytes() == whole
    assert not (tmp_path / "tiles/test/crack/000001.png").exists()


def test_what_the_list_could_not_tell_of_is_not_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(kept, "write_atomic", full)
    with pytest.raises(OSError, match="full"):
        Kept(tmp_path).put(pair("a", "cap+crack"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    Kept(tmp_path).put(pair("b", "cap+crack"))
    assert ids(tmp_path) == ["b"]
