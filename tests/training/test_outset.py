"""What is at a label's outline, and what networks are told of a label, on constructed ones."""

import numpy as np

from stage_rt.images.inputs import cover
from stage_rt.training import outset


def test_the_outermost_pixels_are_those_beside_what_is_not_labelled():
    label = np.zeros((8, 8), dtype=bool)
    label[2:6, 5:] = True
    outermost = outset.outermost(label)
    inside = np.zeros((8, 8), dtype=bool)
    inside[3:5, 6:] = True
    np.testing.assert_array_equal(outermost, label & ~inside)
    label[:] = True
    assert outset.outermost(label).all()


def test_networks_are_told_of_the_cells_that_a_wider_label_meets():
    label = np.zeros((16, 16), dtype=bool)
    label[4:8, 5:8] = True
    np.testing.assert_array_equal(outset.told(label, 0, 8), cover(label, 8))
    rows, columns = np.nonzero(outset.told(label, 0.5, 8))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 4, 2, 4)
