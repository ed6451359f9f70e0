"""What somebody accepted lies in a data set, and nothing of it takes the place of something else."""

import json

import numpy as np
import pytest
from closed_engine import closed_engine

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


def test_what_the_list_could_not_tell_of_is_not_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(kept, "write_atomic", full)
    with pytest.raises(OSError, match="full"):
        Kept(tmp_path).put(pair("a", "cap+crack"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    Kept(tmp_path).put(pair("b", "cap+crack"))
    assert [
        json.loads(line)["id"] for line in (tmp_path / "tiles/accepted.jsonl").read_text().splitlines()
    ] == ["b"]
