"""How strong defects are at their outlines, on constructed ones."""

import numpy as np
import pytest

from stage_rt.images.inputs import cover
from stage_rt.training import outset


def scene(*shades: int) -> tuple[np.ndarray, np.ndarray]:
    """A label of 12x12 pixels on 100 whose rings have these shades from the outline inside, and then the last."""
    image, label = np.full((1, 48, 48), 100, dtype=np.uint8), np.zeros((48, 48), dtype=bool)
    for depth, shade in enumerate(shades):
        image[0, 18 + depth : 30 - depth, 18 + depth : 30 - depth] = shade
    label[18:30, 18:30] = True
    return image, label


def test_strengths_are_the_differences_from_the_surface_by_depth():
    assert outset.strengths([scene(90, 70, 40)]) == pytest.approx([-10, -30, -60])
    assert outset.strengths([scene(90, 70, 40), scene(110, 130, 160)]) == pytest.approx([0, 0, 0])


def test_what_is_not_that_deep_or_has_no_surface_around_counts_nothing():
    thin, label = np.full((1, 48, 48), 100, dtype=np.uint8), np.zeros((48, 48), dtype=bool)
    thin[0, 20, 8:40], label[20, 8:40] = 60, True
    assert outset.strengths([(thin, label)]).tolist() == [-40, 0, 0]
    everywhere = np.ones((48, 48), dtype=bool)
    assert outset.strengths([(thin, everywhere), scene(90, 70, 40)]) == pytest.approx([-10, -30, -60])


def test_they_are_apart_by_their_mean_difference():
    assert outset.apart(np.array([10.0, 20, 30]), np.array([10.0, 26, 27])) == pytest.approx(3)


def test_networks_are_told_of_the_cells_that_a_wider_label_meets():
    label = np.zeros((16, 16), dtype=bool)
    label[4:8, 5:8] = True
    np.testing.assert_array_equal(outset.told(label, 0, 8), cover(label, 8))
    rows, columns = np.nonzero(outset.told(label, 0.5, 8))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 4, 2, 4)
