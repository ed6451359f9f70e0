"""The rules by which labels are made and paint is pasted: a run is finished by those it was begun by."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import FakeEngine, contents

from stage_rt.errors import RunError
from stage_rt.images.compose import composite
from stage_rt.packs.pack import Request, pack
from stage_rt.run.fill import fill
from stage_rt.run.plan import RULES
from stage_rt.run.supply import Dice, partners, placed

RNG = np.random.default_rng(5)
PHOTO = RNG.integers(90, 110, (120, 160, 3)).astype(np.uint8)
PAINTED = np.broadcast_to(np.arange(0, 128, 2, dtype=np.uint8)[:, None, None], (64, 64, 3)).copy()

SCRATCH, BLOT, CHIP, BAND = (np.zeros((120, 160), np.bool_) for _ in range(4))
SCRATCH[60:63, 40:90] = True
BLOT[40:60, 70:84] = BLOT[46:54, 84:94] = True
CHIP[:12, 30:60] = True
BAND[:, 70:76] = True

WITNESSES = {
    3: [
        [0, 3, 3, -1, -1, -1, 3, -1, -1, -1, 2, 1, -1, -1, -1, -1],
        [138, 58, 90, 31, 214],
        [148, 38, 96, 53, 236],
        [193, 77, 55, 46, 303],
        [566, 34, 41, 68, 75],
        [263, 37, 97, 43, 56],
        [607, 74, 139, 83, 67],
        [425, 7, 91, 47, 76],
        [278, 5, 97, 31, 77],
        [618, 9, 141, 57, 92],
        [701, 60, 93, 345, 93],
        [546, 59, 95, 347, 79],
        [838, 60, 141, 347, 87],
        [52, 1148, 998],
        [52, 217, 843],
        [52, 688, 959],
    ]
}
"""By their number, what the rules come to (`witness`)."""


def witness() -> list[list[int]]:
    """Size, place and spread of labels, which masks are joined, and grey levels of what was pasted."""
    found = [partners(7, np.arange(16, dtype=np.uint32), np.full(16, 4)).tolist()]
    for label in (SCRATCH, BLOT, CHIP, BAND):
        for sample in range(3):
            places = np.argwhere(placed(label, np.ones_like(label), Dice(7, sample)))
            found.append([len(places), *places.mean(axis=0), *10 * places.std(axis=0)])
    beside = np.roll(BLOT, 12, axis=1) & ~BLOT
    for more in ({"exact": True}, {"exact": False}, {"exact": True, "rim": (0.5,)}):
        result = composite(PHOTO, PAINTED, BLOT, **more).astype(float)
        grain = np.diff(result, axis=1)[BLOT[:, 1:]]
        found.append([result[BLOT].mean(), 100 * grain.std(), 10 * result[beside].mean()])
    return [np.rint(one).astype(int).tolist() for one in found]


def test_whoever_changes_the_rules_gives_them_another_number():
    """And puts what they come to in the place of what those of before came to."""
    for found, known in zip(witness(), WITNESSES[RULES], strict=True):
        np.testing.assert_allclose(found, known, atol=1)


@pytest.fixture
def older(job, run):
    """A run whose ``run.json`` says nothing of rules."""
    fill(FakeEngine(), job, run)
    told = json.loads((run / "run.json").read_text())
    assert told.pop("rules") == RULES
    (run / "run.json").write_text(json.dumps(told))
    return run


@pytest.mark.parametrize("count", [10, 12])
def test_a_run_is_neither_resumed_nor_grown_by_other_rules(job, older, count):
    (older / "test/hole/000003.png").unlink()
    before = contents(older)
    with pytest.raises(RunError) as refused:
        fill(FakeEngine(), replace(job, count=count), older)
    assert str(refused.value) == (
        f"`{older}` holds another run, whose labels and paint are by the rules of another release: finish it with "
        "the release that began it or give another `-o`"
    )
    assert contents(older) == before


def test_a_run_of_other_rules_that_is_finished_is_packed(older, tmp_path):
    assert pack(Request([older], "coco", split=1), tmp_path / "pack").pairs("train") == 10
