"""The distance of painted from real defects: none between halves, large for what is plainly different."""

import numpy as np
import pytest
import torch

from stage_rt.quality import realism
from stage_rt.quality.learning import find
from stage_rt.quality.pictures import Pictures
from stage_rt.quality.segmenters import SEGMENTERS
from stage_rt.training.loop import Device

RNG = np.random.default_rng(0)


def test_kid_of_two_points_is_that_by_hand() -> None:
    first, second = np.array([[1.0], [1.0]]), np.array([[0.0], [0.0]])
    each = np.arange(2)
    assert realism.kid(first, second, each, each) == pytest.approx(2**3 + 1 - 2)
    assert realism.kid(first, first, each, each) == pytest.approx(0)
    assert np.isnan(realism.kid(first[:1], second, each[:1], each))
    assert np.isnan(realism.kid(first, second, each, np.zeros(2, int)))


def test_defects_of_the_same_kind_are_within_the_floor_and_others_far_beyond() -> None:
    real, alike = (RNG.normal(size=(80, 6)) for _ in range(2))
    near, far = (realism.compare(painted, real, np.arange(80)) for painted in (alike, alike + 2))
    assert near.distance < 3 * near.floor
    assert far.distance > 20 * far.floor


def test_several_photographs_of_a_defect_do_not_make_a_perfect_painter_look_far_off() -> None:
    beyond = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        real = np.repeat(rng.normal(size=(11, 6)), 5, axis=0) + 0.1 * rng.normal(size=(55, 6))
        told = realism.compare(rng.normal(size=(80, 6)), real, np.repeat(np.arange(11), 5))
        beyond += told.distance > told.floor
    assert beyond <= 4


def test_a_feature_that_no_real_defect_has_does_not_blow_up() -> None:
    real, painted = (RNG.normal(size=(40, 6)) for _ in range(2))
    real[:, 0] = 0
    assert realism.compare(painted, real, np.arange(40)).distance < 100


def test_features_are_averaged_under_the_label_and_classes_are_what_is_found() -> None:
    images = RNG.integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
    classes = np.zeros((3, 32, 32), dtype=np.uint8)
    classes[0, 4:12, 4:12] = classes[2, 20:22, 20:22] = 1
    network = SEGMENTERS["unet"](2).eval()
    device = Device(torch.device("cpu"), False)
    pictures = Pictures(images, classes, ["a", "b", "c"])
    seen = realism.look(network, pictures, device)
    np.testing.assert_array_equal(seen.classes, find(network, pictures, device).classes)
    assert seen.features.shape == (3, network.last.in_channels)
    assert not seen.features[1].any()
    assert seen.features[[0, 2]].any(axis=1).all()
    changed = images.copy()
    changed[0, 28:, 28:] = 0
    again = realism.look(network, Pictures(changed, classes, ["a", "b", "c"]), device).features
    np.testing.assert_allclose(again[2], seen.features[2], rtol=1e-5)
    assert not network.last._forward_hooks
