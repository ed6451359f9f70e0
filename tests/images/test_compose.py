import numpy as np
import pytest
from PIL import Image, ImageFilter

from stage_rt.images.compose import FEATHER, composite, pixels

RNG = np.random.default_rng(0)


def grown(label, by):
    image = Image.fromarray(label.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * by + 1))) > 0


def test_pixels_are_clamped_and_rounded():
    painted = np.array([-2, -1, -0.999, 0, 0.5, 1, 9], dtype=np.float32).reshape(1, 1, 7)
    levels = pixels(np.repeat(painted, 3, axis=0))
    assert levels.dtype == np.uint8
    assert levels.shape == (1, 7, 3)
    assert levels[0, :, 1].tolist() == [0, 0, 0, 128, 191, 255, 255]


def test_channels_stay_in_order_and_one_channel_is_repeated():
    assert pixels(np.array([-1, 0.2, 1], dtype=np.float32).reshape(3, 1, 1)).tolist() == [[[0, 153, 255]]]
    assert pixels(np.full((1, 2, 2), 0.2, dtype=np.float32)).tolist() == [[[153] * 3] * 2] * 2


@pytest.mark.parametrize(
    "place", [(slice(20, 30), slice(25, 45)), (slice(0, 1), slice(0, 1)), (slice(59, 60), slice(0, 80))]
)
def test_the_label_is_all_paint_and_beyond_the_feather_all_photo(place):
    photo = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    painted = np.full((32, 32, 3), 77, dtype=np.uint8)
    label = np.zeros((60, 80), dtype=bool)
    label[place] = True
    result = composite(photo, painted, label)
    assert result.dtype == np.uint8
    assert (result[label] == 77).all()
    beyond = ~grown(label, 2 * FEATHER)
    np.testing.assert_array_equal(result[beyond], photo[beyond])
    ramp = ~beyond & ~label
    low, high = np.minimum(photo, 77)[ramp], np.maximum(photo, 77)[ramp]
    assert ((low <= result[ramp]) & (result[ramp] <= high)).all()
    assert (result[ramp] != photo[ramp]).any()
    assert (result[ramp] != 77).any()


def test_a_ramp_is_the_same_wherever_other_defects_are():
    photo = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    painted = np.full((32, 32, 3), 77, dtype=np.uint8)
    label = np.zeros((60, 80), dtype=bool)
    label[20:24, 30:35] = True
    alone = composite(photo, painted, label)
    label[0, 0] = label[59, 79] = True
    np.testing.assert_array_equal(composite(photo, painted, label)[10:40, 20:60], alone[10:40, 20:60])


def test_no_label_leaves_the_photograph():
    photo = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    result = composite(photo, np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((6, 8), dtype=bool))
    np.testing.assert_array_equal(result, photo)
    assert result is not photo
