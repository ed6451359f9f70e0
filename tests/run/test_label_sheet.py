"""Labels at their own scale."""

import numpy as np
import pytest

from stage_rt.run.label_sheet import CONTEXT, LEAST_SIDE, square_around


@pytest.mark.parametrize(
    ("rows", "columns"), [((10, 14), (50, 90)), ((0, 1), (0, 1)), ((90, 100), (110, 120)), ((0, 60), (0, 50))]
)
def test_the_square_holds_the_label_and_lies_in_the_picture(rows, columns):
    label = np.zeros((100, 120), bool)
    label[slice(*rows), slice(*columns)] = True
    left, top, right, bottom = square_around(label)
    side = max(rows[1] - rows[0], columns[1] - columns[0])
    assert right - left == bottom - top == max(round(side * (1 + 2 * CONTEXT)), LEAST_SIDE)
    assert 0 <= left <= columns[0] < columns[1] <= right <= 120
    assert 0 <= top <= rows[0] < rows[1] <= bottom <= 100 or bottom - top > 100


def test_a_label_in_the_middle_is_in_the_middle():
    label = np.zeros((100, 120), bool)
    label[48:52, 50:70] = True
    left, top, right, bottom = square_around(label)
    assert (left + right, top + bottom) == (120, 100)


def test_a_label_as_large_as_the_picture_shows_it_all():
    assert square_around(np.ones((100, 120), bool)) == (0, 0, 120, 120)


def test_an_empty_label_shows_the_whole_picture():
    assert square_around(np.zeros((30, 40), bool)) == (0, 0, 40, 30)
