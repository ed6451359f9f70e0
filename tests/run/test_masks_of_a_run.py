"""How a run reads grey masks, what it tells of them, and that it is part of what decides its bytes."""

from dataclasses import replace

import numpy as np
import pytest
from fake_engine import PROMPT, FakeEngine, manifest, opened, photographs
from PIL import Image, ImageFilter

from stage_rt.errors import MaskError, RunError
from stage_rt.images.masks import Reading
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.run.plan import make_plan


@pytest.fixture
def job(tmp_path) -> Job:
    (tmp_path / "masks").mkdir()
    drawn = np.zeros((30, 40), np.uint8)
    drawn[4:10, 4:10], drawn[14:20, 20:30] = 60, 200
    path = tmp_path / "masks" / "0.png"
    Image.fromarray(drawn).save(path)
    return Job(photographs(tmp_path / "normals", 1), [path], PROMPT, 1, 0, True, 1)


def label(run):
    return np.asarray(opened(run / manifest(run)[0]["mask"])) > 0


def test_classes_are_refused_until_one_is_chosen(job, tmp_path):
    with pytest.raises(
        MaskError, match=r"0\.png` shows several classes \(60, 200\): save one alone, or choose"
    ):
        fill(FakeEngine(), job, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for value, area in ((60, 36), (200, 60)):
        run = tmp_path / str(value)
        fill(FakeEngine(), replace(job, reading=Reading(value=value)), run)
        assert label(run).sum() == area
    fill(FakeEngine(), replace(job, reading=Reading(threshold=0.1)), tmp_path / "both")
    assert label(tmp_path / "both").sum() == 96


def test_a_run_goes_on_only_with_the_same_reading(job, tmp_path):
    fill(FakeEngine(), replace(job, reading=Reading(value=60)), tmp_path / "run")
    with pytest.raises(RunError, match="holds another run, whose mask_class is 60 and not 200"):
        fill(FakeEngine(), replace(job, reading=Reading(value=200)), tmp_path / "run")


def test_shades_and_masks_of_everything_are_told_of(job, tmp_path):
    soft = Image.open(job.masks[0]).filter(ImageFilter.GaussianBlur(2))
    soft.save(job.masks[0])
    everything = tmp_path / "masks" / "1.png"
    Image.fromarray(np.full((30, 40), 255, np.uint8)).save(everything)
    notices: list[str] = []
    fill(
        FakeEngine(),
        replace(job, masks=[*job.masks, everything], count=2),
        tmp_path / "run",
        notify=notices.append,
    )
    assert notices == [
        "masks in shades of grey, labelled from half of their brightest on: `0.png`; `--mask-threshold` sets another",
        "masks that label more than 90% of the photograph: `1.png`; if they are inverted, make the defect white",
    ]


def test_a_bad_mask_that_no_pair_uses_yet_is_refused_before_the_run_begins(job, tmp_path):
    masks = [tmp_path / "masks" / f"{n}.png" for n in range(6)]
    for n, mask in enumerate(masks):
        label = np.zeros((30, 40), np.uint8)
        label[5:15, 5:15] = 255 * (n > 0)
        Image.fromarray(label).save(mask)
    made = make_plan(FakeEngine().spec, replace(job, masks=masks[1:], count=1), lambda notice: None)
    assert made.samples[0].mask != masks[0]
    with pytest.raises(MaskError, match=r"0.png` is all black: paint the defect white or remove the mask"):
        fill(FakeEngine(), replace(job, masks=masks, count=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
