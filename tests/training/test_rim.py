"""How defects end beyond their labels, on constructed ones."""

import numpy as np
import pytest

from stage_rt.training import rim


def scene(*shades: int) -> tuple[np.ndarray, np.ndarray]:
    """A label of 12x12 pixels of the first shade, frames of the others around it one pixel wide, then 100."""
    image, label = np.full((1, 48, 48), 100, dtype=np.uint8), np.zeros((48, 48), dtype=bool)
    for width, shade in reversed(list(enumerate(shades))):
        image[0, 18 - width : 30 + width, 18 - width : 30 + width] = shade
    label[18:30, 18:30] = True
    return image, label


def test_a_profile_is_the_difference_from_the_surface_label_and_bands():
    assert rim.profile(*scene(40)) == pytest.approx([-60, 0, 0, 0])
    inside, *beyond = rim.profile(*scene(40, 70, 90))
    assert inside == -60
    # The corners of a frame are farther from the label than its sides.
    assert beyond == pytest.approx([-30, -12, -0.5], abs=2.1)


def test_what_no_picture_shows_is_no_difference():
    image = np.full((1, 8, 8), 100, dtype=np.uint8)
    label = np.ones((8, 8), dtype=bool)
    assert rim.mean_profile([(image, label)]).tolist() == [0, 0, 0, 0]
    assert rim.mean_profile([(image, ~label)] * 2 + [scene(40)]) == pytest.approx([-60, 0, 0, 0])


@pytest.mark.parametrize(
    ("real", "beyond"),
    [
        ((-60, -20, -5, 0), True),
        ((50, 20, 0, 0), True),
        ((-60, -5, 0, 0), False),
        ((-60, 20, 9, 0), False),
        ((0, 0, 0, 0), False),
    ],
)
def test_a_defect_goes_on_beyond_its_label_if_the_first_band_is_a_part_of_it(real, beyond):
    assert rim.reaches_beyond(np.array(real, dtype=float)) is beyond


@pytest.mark.parametrize(
    ("real", "painted", "shares"),
    [
        ((-20, -10, -5), (-40, -40, -20), (0.5, 0.25, 0.25)),
        ((-20, -10, -5), (-10, -5, -2), (1, 1, 1)),
        ((-20, 0, 0), (-20, -10, 0), (1,)),
        ((-20, -10, -5), (-40, -10, -5), (0.5, 0.5, 0.5)),
        ((-20, -10, -5), (20, 10, 5), ()),
        ((-20, -10, -5), (0, 0, 0), ()),
        ((20, 3, 0), (40, 30, 9), (0.5, 0.1)),
    ],
)
def test_paint_fades_as_real_defects_do_and_never_rises(real, painted, shares):
    inside = (-60.0,)
    assert rim.fading(np.array(inside + real), np.array(inside + painted)) == shares
