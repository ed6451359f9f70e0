"""Labels at their own scale."""

import numpy as np
import pytest

from stage_rt.run.label_sheet import CONTEXT, LEAST_SIDE, square_around


@pytest.mark.parametrize(
    ("rows", "columns"),
    [((10, 14), (50, 90)), ((0, 1), (0, 1)), ((90, 100), (110, 120)), ((0, 100), (0, 120))],
)
def test_the_square_holds_the_label_in_its_middle(rows, columns):
    label = np.zeros((100, 120), bool)
    label[slice(*rows), slice(*columns)] = True
    left, top, right, bottom = square_around(label)
    side = max(rows[1] - rows[0], columns[1] - columns[0])
    assert right - left == bottom - top == max(round(side * (1 + 2 * CONTEXT)), LEAST_SIDE)
    assert abs((left + right) - sum(columns)) <= 1
    assert abs((top + bottom) - sum(rows)) <= 1


def test_an_empty_label_shows_the_whole_picture():
    assert square_around(np.zeros((30, 40), bool)) == (0, 0, 40, 30)
