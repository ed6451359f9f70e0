"""Crops around defects and of good surface, and how much a small label counts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import MICRO
from PIL import Image
from scipy import ndimage

from stage_rt.errors import InputError
from stage_rt.spec import RegionView
from stage_rt.training import crops, data, denoiser
from stage_rt.training.presets import PRESETS
from stage_rt.training.train import _spec, train

VIEW = RegionView(context=0.5, least=16)


def ignore(*_: object) -> None:
    """A report that nobody reads."""


def bent_together(photo: np.ndarray, label: np.ndarray) -> bool:
    """Whether a photograph of 255 under its label is as bright there still, but for the outline's two pixels."""
    bright = photo[..., 0] > 200
    inner, outer = ndimage.binary_erosion(label), ndimage.binary_dilation(label)
    return bool((bright[inner]).all() and not bright[~outer].any() and bright.any())


@pytest.fixture
def scene():
    """A photograph with a white defect of 6x10 px, which is its label, and a small one far away."""
    photo = np.full((120, 160, 3), 90, dtype=np.uint8)
    label = np.zeros((120, 160), dtype=bool)
    label[50:56, 70:80] = label[100:102, 10:12] = True
    photo[label] = 255
    return photo, label


def test_crops_hold_their_defect_at_varying_places_and_scales(scene):
    found = list(crops.around_defects(*scene, VIEW, 40, np.random.default_rng(0), turn=False))
    assert len(found) == 80
    for photo, label, _ in found:
        assert photo.shape[:2] == label.shape
        assert bent_together(photo, label)
        assert 35 < label.sum() < 95 or 1 <= label.sum() <= 9
    sides = {label.shape[0] for _, label, _ in found}
    assert min(sides) < 16 < max(sides)
    assert len({label.tobytes() for _, label, _ in found}) > 60


def test_a_crop_never_cuts_its_defect_even_at_the_border():
    label = np.zeros((40, 40), dtype=bool)
    label[:7, 30:] = True
    photo = np.repeat(label[..., None].astype(np.uint8) * 255, 3, axis=2)
    for _, found, _ in crops.around_defects(photo, label, VIEW, 50, np.random.default_rng(1), turn=True):
        assert 45 < found.sum() < 110
        assert found[0].any() or found[-1].any() or found[:, 0].any() or found[:, -1].any()


def test_crops_are_bent_each_otherwise_and_never_lose_their_label():
    photo = np.full((90, 90, 3), 90, dtype=np.uint8)
    photo[45, 45] = 255
    label = photo[..., 0] == 255
    found = [
        cut
        for _, cut, _ in crops.around_defects(photo, label, VIEW, 60, np.random.default_rng(2), turn=False)
    ]
    assert all(cut.any() for cut in found)
    line = np.zeros((90, 90), dtype=bool)
    line[30:60, 45] = True
    drawn = [
        np.nonzero(cut)[1]
        for _, cut, _ in crops.around_defects(photo, line, VIEW, 40, np.random.default_rng(2), turn=False)
    ]
    assert sum(np.ptp(columns) > 1 for columns in drawn) > 20


def test_what_a_bend_brings_in_is_the_photographs_own():
    photo = np.random.default_rng(0).integers(100, 120, (80, 80, 3), dtype=np.uint8)
    for part, _ in crops.of_surface(photo, 60, 20, np.random.default_rng(0), turn=True):
        assert part.min() > 85
        assert part.max() < 135


def test_only_with_turn_a_defect_stands_upright_and_lies_down(scene):
    def upright(turn: bool) -> int:
        rng = np.random.default_rng(0)
        first = list(crops.around_defects(*scene, VIEW, 40, rng, turn=turn))[:40]
        return sum(int(np.ptp(np.nonzero(label)[0]) > np.ptp(np.nonzero(label)[1])) for _, label, _ in first)

    assert upright(turn=False) == 0
    assert 8 < upright(turn=True) < 32


def test_crops_of_good_surface_are_of_the_size_asked_for_and_label_nothing():
    photo = np.random.default_rng(0).integers(0, 255, (50, 400, 3), dtype=np.uint8)
    for side in (16, 45, 300):
        for part, label in crops.of_surface(photo, side, 20, np.random.default_rng(0), turn=False):
            assert not label.any()
            assert part.shape[0] == min(part.shape[1], 50)
            assert 0.6 * side - 1 <= part.shape[1] <= 1.6 * side + 1


def test_large_windows_are_made_smaller_before_they_are_bent(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(3)
    photo = np.repeat(ndimage.gaussian_filter(rng.normal(0, 3000, (333, 401)), 20)[..., None], 3, axis=2)
    photo = (photo + 120).clip(0, 255).astype(np.uint8)
    label = np.zeros((333, 401), dtype=bool)
    label[5:150, 100:210] = label[200, 100:380] = True
    view = RegionView(context=0.5, least=32)

    def cut() -> list[crops.Cut]:
        return list(crops.around_defects(photo, label, view, 8, np.random.default_rng(0), turn=True))

    whole = cut()
    monkeypatch.setattr(crops, "MOST_SIDE", 60)
    smaller = cut()
    assert [one.side for one in smaller] == [one.side for one in whole]
    assert max(one.side for one in whole) > 240
    for one, other in zip(smaller, whole, strict=True):
        factor = -(-other.side // 60)
        assert one.photo.shape[:2] == one.label.shape
        assert max(one.label.shape) == other.side // factor <= 60
        size = one.label.shape[::-1]
        expected = np.asarray(Image.fromarray(other.photo).resize(size, Image.Resampling.BOX)).astype(float)
        # Of a side of 401 pixels seven times 57 are left: half a pixel of those at most.
        assert (
            np.abs(expected - one.photo).mean() < 5 < np.abs(np.roll(expected, 2, axis=1) - one.photo).mean()
        )
        shown = np.asarray(Image.fromarray(other.label.astype(np.float32)).resize(size, Image.Resampling.BOX))
        assert one.label[shown > 0.9].all()
        assert not one.label[ndimage.maximum_filter(shown, 5) == 0].any()


def test_a_scratch_of_a_large_window_does_not_vanish(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crops, "MOST_SIDE", 40)
    label = np.zeros((300, 300), dtype=bool)
    label[40:260, 150] = True
    photo = np.zeros((300, 300, 3), dtype=np.uint8)
    view = RegionView(context=0.5, least=32)
    for one in crops.around_defects(photo, label, view, 10, np.random.default_rng(0), turn=False):
        assert one.label.any(axis=1).mean() > 0.5


def test_many_defects_get_fewer_crops_each():
    assert [crops.crops_a_region(n) for n in (1, 40, 100, 5000)] == [24, 20, 8, 1]


def test_examples_are_crops_where_the_model_sees_regions(dataset: Path):
    found = data.find(dataset)
    spec = _spec(MICRO, "stage", "region", 1, ["part+dent", "part+spot"])
    assert spec.region == RegionView(least=32, slender=4)
    told: list[float] = []
    examples = data.load(found, spec, seed=0, turn=True, notify=print, progress=told.append)
    assert told == sorted(told)
    assert (told[0], told.count(1.0)) == (0, 1)
    assert len(set(told)) == 6 + 6 + 1
    # Whoever wants to stop need not wait for all crops of a photograph.
    assert len(told) == 6 + 6 + len(examples.images) + 1
    assert examples.images.shape == (6 * 24 + 6 * 24, 1, 32, 32)
    for k in (1, 2):
        cells = examples.masks[examples.prompt == k].flatten(1).sum(1)
        # A defect of 8x8 in a crop of about 32 is a quarter of a side, whatever the photograph's size.
        assert 10 < cells.float().median() < 27
    covered = examples.masks.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, 0]
    assert not (examples.labels & ~covered).any()
    drawn, cells = (part[examples.prompt > 0].flatten(1).sum(1) for part in (examples.labels, covered))
    assert drawn.min() > 0
    assert 0.4 < (drawn / cells).median() < 0.95
    again = data.load(found, spec, seed=0, turn=True, notify=print)
    assert torch.equal(examples.images, again.images)
    assert not torch.equal(examples.images, data.load(found, spec, seed=1, turn=True, notify=print).images)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_held_out_that_cannot_be_is_refused(dataset: Path, tmp_path: Path, share):
    with pytest.raises(InputError, match="`hold_out` must be from 0 to below 1"):
        train(dataset, tmp_path / "m", hold_out=share, report=ignore, say=ignore, notify=ignore)


@pytest.mark.parametrize("view", ["whole", "region"])
def test_a_model_says_how_it_sees_and_what_it_has_not_seen(dataset, tmp_path, monkeypatch, view):
    monkeypatch.setitem(PRESETS, "tiny", MICRO)
    train(dataset, tmp_path / "model", view=view, hold_out=0.3, report=ignore, say=ignore, notify=ignore)
    spec = json.loads((tmp_path / "model" / "stage.json").read_text())
    assert len(spec["provenance"]["held_out"]) == 2
    assert spec.get("region") == ({"context": 0.5, "least": 32, "slender": 4.0} if view == "region" else None)


def test_a_small_label_counts_more():
    masks = torch.zeros(4, 1, 32, 32)
    for n, cells in enumerate((0, 4, 16, 512)):
        masks[n].view(-1)[:cells] = 1
    assert denoiser.label_weight(masks).flatten().tolist() == [64.0, 64.0, 16.0, 4.0]


def test_a_thin_defect_is_learned_in_pieces_that_go_on_beyond_their_crop():
    label = np.zeros((120, 300), dtype=bool)
    label[60:63, 20:280] = True
    photo = np.repeat(label[..., None].astype(np.uint8) * 255, 3, axis=2)
    view = RegionView(context=0.5, least=32, slender=4)
    found = list(crops.around_defects(photo, label, view, 40, np.random.default_rng(0), turn=False))
    assert 40 <= len(found) <= 60
    for part, shown, _ in found:
        assert bent_together(part, shown)
        assert max(shown.shape) <= 52
    through = sum(bool(shown.any(axis=0).all()) for _, shown, _ in found)
    assert through > len(found) / 2


def test_the_light_of_a_crop_changes_all_of_it_alike_and_no_defect_in_it():
    rng = np.random.default_rng(3)
    photo = rng.integers(60, 200, (20, 30, 3)).astype(np.uint8)
    found = np.stack([crops.lit(photo, rng).astype(int) - photo for _ in range(300)])
    assert (found == found[:, :1, :1, :1]).all()
    moved = found[:, 0, 0, 0]
    assert np.abs(moved).max() == crops.LIGHT
    assert abs(moved.mean()) < 2
    assert moved.std() == pytest.approx(crops.LIGHT / np.sqrt(3), rel=0.1)


def test_light_ends_at_black_and_white():
    photo = np.array([[[0, 3, 255], [250, 128, 5]]], np.uint8)
    rng = np.random.default_rng(0)
    found = [crops.lit(photo, rng) for _ in range(50)]
    assert np.min(found, axis=0).tolist() == [[[0, 0, 239], [234, 112, 0]]]
    assert np.max(found, axis=0).tolist() == [[[16, 19, 255], [255, 144, 21]]]
