"""The guidance and the least fill of a prompt, measured when its model is made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import MICRO

from stage_rt.images.labels import Figures
from stage_rt.recipe import Recipe
from stage_rt.training import calibration, outset
from stage_rt.training.data import Examples
from stage_rt.training.presets import PRESETS
from stage_rt.training.train import train
from stage_rt.training.trial import Painter, Trial, Way, unseen


def examples(shades: list[int], surface: int = 100) -> Examples:
    """Two good images, then a square of each shade in the middle of ``surface``."""
    images = np.full((2 + len(shades), 1, 32, 32), surface, dtype=np.uint8)
    masks = np.zeros((2 + len(shades), 1, 16, 16), dtype=bool)
    labels = np.zeros((2 + len(shades), 32, 32), dtype=bool)
    for n, shade in enumerate(shades, start=2):
        masks[n, 0, 6:10, 6:10] = True
        images[n, 0, 12:20, 12:20] = shade
        labels[n, 12:20, 12:20] = True
    prompt = torch.tensor([0, 0] + [1] * len(shades))
    parts = (torch.from_numpy(part) for part in (images, labels, masks))
    return Examples(*parts, prompt, ["good", "part+dent"])


def shown(scene: Examples, figures: list[Figures], way: Way) -> Trial:
    """Its defects, painted on the first good image."""
    pairs = calibration._shown(scene, torch.nonzero(scene.prompt == 1).flatten())
    return Trial(way, [scene.images[0].numpy()] * len(pairs), pairs, figures)


def test_a_defects_appearance_is_its_contrast_and_its_fine_texture():
    scene = examples([40, 40, 40])
    noise = np.random.default_rng(0).normal(0, 9, (8, 8))
    scene.images[3, 0, 12:20, 12:20] += torch.from_numpy(noise).to(torch.uint8)
    scene.images[4, 0, 12:20, 12:20] += torch.arange(8, dtype=torch.uint8)[:, None] * 3
    flat, rough, shaded = calibration._looks(calibration._shown(scene, torch.tensor([2, 3, 4])), reach=False)
    assert flat == pytest.approx([-60, -60, 0], abs=1e-6)
    assert rough[2] > 6
    assert shaded[2] < 4


def test_the_distance_is_none_for_the_same_figures_and_grows_with_the_shift():
    real = np.random.default_rng(0).normal(size=(50, 2)) * [20, 5]
    spread = real.std(axis=0)
    assert calibration.distance(real, real) == 0
    assert calibration.distance(real + spread, real) == pytest.approx(1, rel=1e-3)
    assert calibration.distance(real + 3 * spread, real) == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize(("real", "wanted"), [(70, 1.0), (55, 1.5), (40, 2.0), (10, 3.0)])
def test_the_guidance_is_chosen_whose_defects_look_like_the_real_ones(monkeypatch, real, wanted):
    """A painter whose defects are 30 grey levels darker than the surface per unit of guidance."""
    scene = examples([real, real + 1, real - 1])

    def painted(painter, number, way, called):
        assert not way.wide
        for _ in range(painter.trials.calls):
            called()
        figures = [Figures(fill, 0, 0, 8, 16) for fill in (0.1, 0.5, 0.9)]
        dark = examples([round(100 - 30 * way.guidance)] * 3)
        return shown(dark, figures, way)

    monkeypatch.setattr(Painter, "paint", painted)
    monkeypatch.setattr(calibration, "GUIDANCES", (1.0, 1.5, 2.0, 3.0))
    told = []
    latents = type("Latents", (), {"examples": scene})()
    defaults, round_trip = calibration.calibrate(
        None,
        latents,
        {"part+dent": "a"},
        Recipe.masked(),
        MICRO.calibration,
        0,
        None,
        lambda *a: told.append(a),
    )
    assert defaults["part+dent"].guidance == wanted
    assert defaults["part+dent"].min_fill == pytest.approx(0.26)
    assert defaults["part+dent"].rim == ()
    assert round_trip == 8
    calls = 8 * MICRO.calibration.calls
    assert told == [("calibration", step, calls, None) for step in range(1, calls + 1)]


@pytest.mark.parametrize(("beside", "kept"), [(40, True), (250, False)])
def test_paint_is_kept_beyond_a_label_where_that_looks_as_real_defects_do(monkeypatch, beside, kept):
    """Real defects have half of their contrast one pixel beyond; painted wide ones all of it, or they turn bright."""
    scene = examples([40, 42, 44])
    for image in scene.images[2:]:
        inside = image[0, 12:20, 12:20].clone()
        image[0, 11:21, 11:21] = 70
        image[0, 12:20, 12:20] = inside

    def painted(painter, number, way, called):
        made = examples([40, 42, 44] if kept or not way.wide else [250, 250, 250])
        if way.wide:
            made.images[2:, 0, 10:22, 10:22] = beside
        return shown(made, [Figures(0.5, 0, 0, 8, 16)] * 3, way)

    monkeypatch.setattr(Painter, "paint", painted)
    latents = type("Latents", (), {"examples": scene})()
    arguments = ({"part+dent": "a"}, Recipe.masked(), MICRO.calibration, 0, None, lambda *a: None)
    defaults, _ = calibration.calibrate(None, latents, *arguments, reach=True)
    if not kept:
        assert defaults["part+dent"].rim == ()
        return
    unasked, _ = calibration.calibrate(None, latents, *arguments)
    assert unasked["part+dent"].rim == ()
    first, *others = defaults["part+dent"].rim
    assert first == pytest.approx(0.5, abs=0.1)
    # What is left at the corners of a square.
    assert all(share < 0.1 for share in others)


@pytest.mark.parametrize(("early", "wanted"), [(False, (2.0, 0.0)), (True, (1.5, 0.5))])
def test_guidance_and_outset_are_chosen_that_together_look_like_real_defects(monkeypatch, early, wanted):
    """Paint is 30 levels an unit of guidance, half of that in the outermost pixels but with an outset."""

    def scene(guidance: float, *, early: bool) -> Examples:
        made = examples([round(100 - 30 * guidance)] * 3)
        if not early:
            for image, label in zip(made.images[2:, 0], made.labels[2:], strict=True):
                image[torch.from_numpy(outset.outermost(label.numpy()))] = round(100 - 15 * guidance)
        return made

    def painted(painter, number, way, called):
        told.append(way)
        figures = [Figures(way.guidance / 4 + way.outset / 10, 0, 0, 8, 16)] * 3
        return shown(scene(way.guidance, early=way.outset > 0), figures, way)

    told: list[Way] = []
    monkeypatch.setattr(Painter, "paint", painted)
    latents = type("Latents", (), {"examples": scene(wanted[0], early=early)})()
    arguments = ({"part+dent": "a"}, Recipe.masked(), MICRO.calibration, 0, None, lambda *a: None)
    defaults, _ = calibration.calibrate(None, latents, *arguments)
    assert (defaults["part+dent"].guidance, defaults["part+dent"].outset) == wanted
    assert defaults["part+dent"].min_fill == pytest.approx(wanted[0] / 4 + wanted[1] / 10, abs=1e-3)
    assert sorted(told) == sorted(
        Way(weight, beyond) for weight in calibration.GUIDANCES for beyond in (0.0, 0.5)
    )


def test_no_pair_is_painted_again_for_its_last_few_pixels(monkeypatch):
    def painted(painter, number, way, called):
        return shown(examples([40, 42, 44]), [Figures(1.0, 0, 0, 8, 16)] * 3, way)

    monkeypatch.setattr(Painter, "paint", painted)
    latents = type("Latents", (), {"examples": examples([40, 42, 44])})()
    arguments = ({"part+dent": "a"}, Recipe.masked(), MICRO.calibration, 0, None, lambda *a: None)
    defaults, _ = calibration.calibrate(None, latents, *arguments)
    assert defaults["part+dent"].min_fill == calibration.ENOUGH


def test_labels_of_the_calibration_are_none_that_training_showed():
    label = np.zeros((32, 32), dtype=bool)
    label[8:12, 4:24] = True
    labels = np.stack([label] * 12)
    made = unseen(labels, seed=3)
    np.testing.assert_array_equal(made, unseen(labels, seed=3))
    assert (made != unseen(labels, seed=4)).any()
    assert made.any(axis=(1, 2)).all()
    shapes = {one[np.ix_(one.any(axis=1), one.any(axis=0))].tobytes() for one in made}
    assert len(shapes) > 10
    assert not any((one == other).all() for one in made for other in (label, label[::-1], label[:, ::-1]))


def test_a_trained_model_carries_defaults_for_every_prompt(dataset: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", MICRO)
    stages = set()
    train(
        dataset,
        tmp_path / "m",
        report=lambda stage, *_: stages.add(stage),
        say=lambda line: None,
        notify=print,
    )
    spec = json.loads((tmp_path / "m" / "stage.json").read_text())
    assert set(spec["defaults"]) == {"part+dent", "part+spot"}
    for defaults in spec["defaults"].values():
        assert defaults["guidance"] in calibration.GUIDANCES
        assert 0 <= defaults["min_fill"] <= 1
    assert spec["round_trip"] >= 8
    assert "calibration" in stages


def test_the_recipes_own_guidance_stays_where_no_other_is_clearly_better():
    own = Way(2.0)
    distances = {Way(1.0): 0.96, own: 1.0, Way(3.0, 0.5): 2.0}
    assert calibration.chosen(distances, own) == own
    assert calibration.chosen(distances | {Way(1.0): 0.95}, own) == Way(1.0)
    assert calibration.chosen(distances | {Way(3.0, 0.5): 0.5}, own) == Way(3.0, 0.5)
    assert calibration.chosen(distances, Way(4.0)) == Way(1.0)
