"""What of a batch is in memory at a time, and that the bytes of a run do not depend on it."""

import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import PROMPT, FakeEngine, contents, manifest, photographs
from PIL import Image

from stage_rt import strokes
from stage_rt.errors import ImageError
from stage_rt.run import workers
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.spec import RegionView

VIEW = RegionView(least=16)
DOTS = 12


class Watched(FakeEngine):
    """Counts at every call which of the pictures that it painted before are still in memory."""

    def __init__(self, **options):
        super().__init__(**options)
        self.alive: list[int] = []
        self._painted: list[weakref.ref] = []

    def paint(self, images, masks, **options):
        self.alive.append(sum(ref() is not None for ref in self._painted))
        painted = super().paint(images, masks, **options)
        self._painted.append(weakref.ref(painted.images))
        return painted


@pytest.fixture
def dotted(tmp_path):
    """A job of two photographs with `DOTS` defects each, none of which shares a region."""
    side = 64
    label = np.zeros((side, DOTS * side), np.uint8)
    for n in range(DOTS):
        label[30:35, n * side + 30 : n * side + 35] = 255
    mask = tmp_path / "dots.png"
    Image.fromarray(label).save(mask)
    normals = photographs(tmp_path / "wide", 2, label.shape[::-1])
    return Job(normals, [mask], PROMPT, count=2, seed=1, composite=True, batch=4)


@pytest.mark.parametrize("retries", [0, 2])
def test_inputs_and_outputs_of_the_networks_are_in_memory_a_call_at_a_time(dotted, run, monkeypatch, retries):
    made = 0
    shown = strokes.network_image

    def counted(photo, model):
        nonlocal made
        made += 1
        return shown(photo, model)

    monkeypatch.setattr(strokes, "network_image", counted)
    prepared = []

    class Counting(Watched):
        def paint(self, images, masks, **options):
            prepared.append(made)
            return super().paint(images, masks, **options)

    engine = Counting(region=VIEW)
    fill(engine, replace(dotted, retries=retries), run)
    assert [line["regions"] for line in manifest(run)] == [DOTS, DOTS]
    assert [len(batch) for batch in engine.batches] == [4] * (2 * DOTS // 4)
    assert prepared == [4 * (n + 1) for n in range(2 * DOTS // 4)]
    # That of the call before, which a device may be at work on.
    assert max(engine.alive) == 1


@pytest.fixture
def read(monkeypatch):
    """How often each photograph was read, and how many of them were in memory when the networks were called."""
    counts: Counter = Counter()
    alive: list[weakref.ref] = []
    reading = workers.read_image

    def counted(path, digest=None):
        photo = reading(path, digest)
        counts[path.name] += 1
        alive.append(weakref.ref(photo))
        return photo

    monkeypatch.setattr(workers, "read_image", counted)
    return counts, alive


@pytest.mark.parametrize("held", [0, 2, 4])
def test_photographs_that_are_painted_whole_are_held_as_far_as_they_have_room(
    job, run, tmp_path, monkeypatch, read, held
):
    monkeypatch.setattr(workers, "PIXELS_HELD", held * 40 * 30)
    counts, alive = read
    most = []

    class Looking(FakeEngine):
        def paint(self, images, masks, **options):
            most.append(sum(ref() is not None for ref in alive))
            return super().paint(images, masks, **options)

    engine = Looking()
    four = replace(job, count=4, retries=0)
    fill(engine, four, run)
    assert engine.batches == [[0, 1, 2, 3]]
    assert most == [held]
    assert sorted(counts.values()) == sorted([1] * held + [4] * (4 - held))
    monkeypatch.undo()
    fill(FakeEngine(), four, tmp_path / "all")
    assert contents(run) == contents(tmp_path / "all")


def test_a_photograph_that_changes_between_two_looks_ends_the_run(job, run, monkeypatch):
    monkeypatch.setattr(workers, "PIXELS_HELD", 0)

    class Exchanging(FakeEngine):
        def paint(self, images, masks, **options):
            for path in job.normals:
                Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)
            return super().paint(images, masks, **options)

    with pytest.raises(ImageError, match="changed since it was checked"):
        fill(Exchanging(), replace(job, count=4), run)
    assert not list((run / "test" / "hole").glob("*.png"))
