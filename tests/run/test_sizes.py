"""Small and large photographs, and defects at their borders."""

from dataclasses import replace

import numpy as np
import pytest
from fake_engine import PROMPT, FakeEngine, manifest, opened
from PIL import Image

from stage_rt.run import plan
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.spec import RegionView

VIEW = RegionView(context=0.5, least=32)


def job(folder, label: np.ndarray) -> Job:
    """One photograph of the label's size, smooth so that it is written fast."""
    height, width = label.shape
    photo = np.linspace(60, 180, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    folder.mkdir()
    Image.fromarray(photo).save(folder / "photo.png", compress_level=1)
    Image.fromarray(label.astype(np.uint8) * 255).save(folder / "mask.png", compress_level=1)
    return Job(
        normals=[folder / "photo.png"],
        masks=[folder / "mask.png"],
        prompt=PROMPT,
        count=1,
        seed=0,
        composite=True,
        batch=4,
    )


def painted(folder, label):
    """Which pixels changed, and the manifest's line."""
    made = job(folder, label)
    fill(FakeEngine(region=VIEW), made, folder / "run")
    (line,) = manifest(folder / "run")
    before, after = np.asarray(opened(made.normals[0])), np.asarray(opened(folder / "run" / line["image"]))
    return np.abs(after.astype(np.int16) - before).max(axis=2) > 0, line


def test_tiny_defects_of_a_large_photograph_are_painted(tmp_path):
    label = np.zeros((2048, 3072), dtype=bool)
    spots = [(0, 0), (10, 3060), (1000, 1500), (2045, 0), (2040, 3069)]
    for row, column in spots:
        label[row : row + 3, column : column + 3] = True
    changed, line = painted(tmp_path / "large", label)
    assert line["regions"] == 5
    assert changed[label].mean() > 0.95
    assert changed.sum() < 40 * label.sum()


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((1, 1), ((0, 1), (0, 1))),
        ((5, 300), ((0, 5), (0, 300))),
        ((300, 5), ((10, 290), (2, 3))),
        ((40, 40), ((39, 40), (39, 40))),
        ((200, 200), ((0, 200), (0, 200))),
    ],
)
def test_every_shape_of_photograph_and_label_is_painted(tmp_path, shape, box):
    label = np.zeros(shape, dtype=bool)
    label[slice(*box[0]), slice(*box[1])] = True
    changed, line = painted(tmp_path / "shape", label)
    assert changed[label].mean() > 0.8
    assert line["latent_mask_cells"] > 0


def test_photographs_that_are_cut_are_held_in_memory_a_few_at_a_time(tmp_path, monkeypatch):
    label = np.zeros((60, 80), dtype=bool)
    label[10:14, 10:14] = True
    many = replace(job(tmp_path / "many", label), count=4)
    monkeypatch.setattr(plan, "PIXELS_TOGETHER", 2 * 60 * 80)
    cut = FakeEngine(region=VIEW)
    fill(cut, many, tmp_path / "cut")
    assert cut.batches == [[0, 1], [2, 3]]
    whole = FakeEngine()
    fill(whole, many, tmp_path / "whole")
    assert whole.batches == [[0, 1, 2, 3]]
