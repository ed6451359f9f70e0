import numpy as np
import pytest
from skimage.filters import threshold_otsu

from stage_rt.images.objects import find_object, otsu


def scene(background, part, noise=4, hole=None, seed=0):
    rng = np.random.default_rng(seed)
    photo = np.full((120, 160, 3), background, dtype=float)
    inside = np.zeros((120, 160), dtype=bool)
    inside[30:90, 40:120] = True
    photo[inside] = part
    if hole:
        photo[50:60, 60:70] = background
    return np.clip(photo + rng.normal(0, noise, photo.shape), 0, 255).astype(np.uint8), inside


@pytest.mark.parametrize(("background", "part"), [(20, 180), (230, 90), ((0, 60, 0), (0, 60, 200))])
def test_a_part_before_a_plain_background_is_found(background, part):
    photo, inside = scene(background, part)
    assert (find_object(photo) != inside).mean() < 0.005


def test_holes_belong_to_the_object_and_specks_do_not():
    photo, inside = scene(20, 180, hole=True)
    photo[5:9, 5:9] = 180
    assert (find_object(photo) != inside).mean() < 0.005


@pytest.mark.parametrize("noise", [0, 10, 60])
def test_a_surface_is_an_object_everywhere(noise):
    photo, _ = scene(120, 120, noise=noise)
    assert find_object(photo).all()


def test_a_part_that_reaches_the_border_all_around_is_no_background():
    photo, _ = scene(20, 180)
    photo[:, :100] = 180
    assert find_object(photo).all()


def test_otsus_threshold_is_that_of_scikit_image():
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = np.concatenate([rng.normal(60, 15, 900), rng.normal(rng.uniform(120, 220), 20, 400)])
        values = np.clip(values, 0, 255).astype(np.uint8)
        level, share = otsu(values)
        assert abs(level - int(threshold_otsu(values))) <= 1
        below, above = values[values <= level], values[values > level]
        between = len(below) * len(above) / len(values) ** 2 * (below.mean() - above.mean()) ** 2
        assert share == pytest.approx(between / values.var())


def test_values_that_are_all_the_same_part_nowhere():
    assert otsu(np.full((5, 5), 7, dtype=np.uint8))[1] == 0


def test_dark_strips_along_the_border_are_no_part():
    photo = np.full((100, 80, 3), 120, dtype=np.uint8)
    photo[:, :6] = photo[-4:] = 20
    found = find_object(photo)
    wanted = np.ones((100, 80), dtype=bool)
    wanted[:, :6] = wanted[-4:] = False
    assert (found == wanted).mean() > 0.98
    assert not found[50, 3]
    assert not found[98, 40]


def test_what_is_dark_further_in_is_the_parts_own():
    photo = np.full((100, 80, 3), 120, dtype=np.uint8)
    photo[:60, 20:70] = 20
    assert find_object(photo).all()
