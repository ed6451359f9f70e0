"""The figures of a label on constructed pictures, whose answers are known."""

import numpy as np
import pytest

from stage_rt.images.labels import LEAST_CHANGE, measure, round_trip

SIDE, CELLS = 96, 24


def picture(noise: float = 0.0, seed: int = 0):
    grey = 120 + noise * np.random.default_rng(seed).standard_normal((SIDE, SIDE))
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def square(low=40, high=56):
    label = np.zeros((SIDE, SIDE), bool)
    label[low:high, low:high] = True
    return label


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("noise", [0.0, 6.0])
def test_fill_is_the_painted_share_of_the_label(share, noise):
    photo, label = picture(noise), square()
    painted = picture(0.0)
    rows = round(16 * share)
    painted[40 : 40 + rows, 40:56] = 20
    found = measure(photo, painted, label, CELLS)
    assert found.fill == pytest.approx(share, abs=0.03)
    assert found.contrast == pytest.approx(-100 * share, abs=3)
    assert found.label_pixels == 256
    assert found.leak == pytest.approx(0, abs=0.02)


def test_a_quiet_picture_asks_for_what_can_be_seen_and_a_noisy_one_for_more_than_its_noise():
    label = square()
    quiet = measure(picture(), picture(), label, CELLS)
    noisy = measure(picture(10.0), picture(), label, CELLS)
    assert quiet.threshold == LEAST_CHANGE
    assert noisy.threshold == pytest.approx(2.58 * 10, rel=0.1)
    assert noisy.fill == pytest.approx(0.01, abs=0.02)


def test_what_the_autoencoder_loses_everywhere_is_no_paint():
    """A round trip that shifts every pixel by 20 paints nothing."""
    photo, label = picture(), square()
    shifted = photo - 20
    assert measure(photo, shifted, label, CELLS).fill == 0
    shifted[40:56, 40:48] = 40
    assert measure(photo, shifted, label, CELLS).fill == 0.5


def test_paint_beyond_the_label_is_leak():
    photo, label = picture(), square()
    painted = photo.copy()
    painted[30:66, 30:66] = 200
    found = measure(photo, painted, label, CELLS)
    assert found.fill == 1
    assert found.leak > 0.3
    assert found.contrast == pytest.approx(80)


def test_a_decoded_picture_of_another_size_is_enlarged_first():
    photo, label = picture(), square()
    painted = np.full((SIDE // 2, SIDE // 2, 3), 120, np.uint8)
    painted[20:28, 20:28] = 10
    assert measure(photo, painted, label, CELLS).fill > 0.95


@pytest.mark.parametrize(
    "label", [np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)], ids=["none", "all"]
)
def test_labels_of_nothing_and_of_everything_have_figures(label):
    found = measure(picture(), picture() - 50, label, CELLS)
    assert found.fill == (1.0 if label.any() else 0.0)
    assert found.leak == 0
    assert np.isfinite(found).all()


def test_one_pixel_is_a_label():
    label = np.zeros((SIDE, SIDE), bool)
    label[0, 0] = True
    painted = picture()
    painted[0, 0] = 0
    assert measure(picture(), painted, label, CELLS).fill == 1


def test_a_photograph_far_larger_than_the_network_is_measured_at_a_smaller_size():
    """The same scene eight times as large: the same figures, but for the label's size."""
    rng = np.random.default_rng(0)
    small = np.repeat(rng.integers(90, 110, (64, 64, 1), dtype=np.uint8), 3, axis=2)
    label = np.zeros((64, 64), dtype=bool)
    label[20:30, 24:40] = True
    painted = small.copy()
    painted[20:25, 24:40] = 20
    large = np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))
    first = measure(small, painted, label, 16)
    second = measure(large, painted, np.kron(label, np.ones((8, 8))) > 0, 16)
    assert second.label_pixels == 64 * first.label_pixels
    assert second.fill == pytest.approx(first.fill, abs=0.06)
    assert second.contrast == pytest.approx(first.contrast, abs=3)


def test_a_label_of_one_pixel_of_a_large_photograph_is_measured():
    photo = np.full((3000, 4000, 3), 90, dtype=np.uint8)
    label = np.zeros((3000, 4000), dtype=bool)
    label[1501, 2001] = True
    assert measure(photo, np.full((64, 64, 3), 20, dtype=np.uint8), label, 16).label_pixels == 1


def test_the_round_trip_is_the_same_at_every_scale_of_the_photograph():
    """What is painted takes no part; the rest changes by up to 20 grey levels."""
    rng = np.random.default_rng(0)
    before = np.full((64, 64, 3), 120, dtype=np.uint8)
    after = (before + rng.integers(-20, 21, (64, 64, 1))).astype(np.uint8)
    mask = np.zeros((16, 16), dtype=bool)
    mask[2:4, 2:4] = True
    after[8:16, 8:16] = 0
    assert round_trip(before, after, mask) == pytest.approx(20, abs=1)
    assert round_trip(before, before, mask) == LEAST_CHANGE


def test_paint_of_one_channel_is_measured_as_it_is_put_into_a_photograph_in_colour():
    """Of the luminance that the networks were shown, and not of the mean of red, green and blue."""
    photo, label = picture(), square()
    photo[:] = (0, 0, 255)
    painted = np.full((SIDE, SIDE, 3), 29, dtype=np.uint8)
    assert measure(photo, painted, label, CELLS, 1).contrast == 0
    painted[label] = 129
    found = measure(photo, painted, label, CELLS, 1)
    # Blue is full and stays so.
    assert found.contrast == pytest.approx(200 / 3, abs=0.1)
    assert found.fill == 1
    painted[label] = 0
    assert measure(photo, painted, label, CELLS, 1).contrast == pytest.approx(-29 / 3, abs=0.1)
