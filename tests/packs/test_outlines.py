"""Outlines against the readers that fill them again: pycocotools for corners, OpenCV for points."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from stage_rt.packs import outlines
from stage_rt.packs.outlines import Edge, corners, outline, parts, points

# pycocotools' own, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RING = np.pad(np.pad(np.zeros((3, 4), bool), 2, constant_values=True), 1)


def labels():
    sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))
    return st.builds(
        lambda size, seed, share: np.random.default_rng(seed).random(size) < share,
        sizes,
        st.integers(0, 2**32 - 1),
        st.floats(0.1, 0.95),
    )


def rasterised(polygons, shape):
    """As pycocotools fills polygons."""
    if not polygons:
        return np.zeros(shape, bool)
    return coco.decode(coco.merge(coco.frPyObjects([p.ravel().tolist() for p in polygons], *shape))) > 0


def filled(polygons, shape, whole):
    """As OpenCV fills them, once their points are made ``whole`` numbers."""
    canvas = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [whole(polygon).astype(np.int32)], 1)
    return canvas > 0


@settings(max_examples=300, deadline=None)
@given(labels())
def test_corners_give_back_every_pixel(label):
    for part in parts(label):
        alone = np.zeros_like(label)
        alone[part.y : part.y + part.label.shape[0], part.x : part.x + part.label.shape[1]] = part.label
        np.testing.assert_array_equal(rasterised([corners(part)], label.shape), alone)


@settings(max_examples=300, deadline=None)
@given(labels(), st.sampled_from([np.trunc, np.round]))
def test_points_give_back_every_pixel(label, whole):
    for part in parts(label):
        alone = np.zeros_like(label)
        alone[part.y : part.y + part.label.shape[0], part.x : part.x + part.label.shape[1]] = part.label
        np.testing.assert_array_equal(filled([points(part)], label.shape, whole), alone)


@settings(max_examples=100, deadline=None)
@given(labels())
def test_parts_are_the_label_and_apart(label):
    count = np.zeros(label.shape, int)
    for part in parts(label):
        left, top, width, height = part.box
        assert part.label.any(axis=0)[[0, -1]].all()
        assert part.label.any(axis=1)[[0, -1]].all()
        count[top : top + height, left : left + width] += part.label
    np.testing.assert_array_equal(count, label)
    assert len(list(parts(label))) == cv2.connectedComponents(label.astype(np.uint8), connectivity=8)[0] - 1


def test_a_ring_is_one_outline_with_its_hole():
    (part,) = parts(RING)
    assert part.box == (1, 1, 8, 7)
    outline = corners(part)
    assert len(outline) == 4 + 4 + 2
    assert rasterised([outline], RING.shape).sum() == RING.sum() == 8 * 7 - 3 * 4


def test_a_pixel_has_an_area_everywhere():
    label = np.zeros((3, 3), bool)
    label[1, 2] = True
    (part,) = parts(label)
    assert corners(part).tolist() == [[2, 1], [3, 1], [3, 2], [2, 2]]
    assert points(part) == pytest.approx(np.array([[2.1, 1.1], [2.4, 1.1], [2.4, 1.4], [2.1, 1.4]]))


def spliced(label):
    """The outline by its definition: every hole is put into the list, from the top, where its cut leaves it."""
    inside = np.pad(label, 1)
    loops = list(outlines._loops(outlines._edges(inside)))
    whole, *holes = sorted(loops, key=lambda loop: min(edge.corner[::-1] for edge in loop))
    for hole in holes:
        start = min(range(len(hole)), key=lambda n: hole[n].corner[::-1])
        x, low = hole[start].corner
        high = low
        while inside[high, x + 1]:
            high -= 1
        place = whole.index(Edge((x, high), (x, high)))
        down = [Edge((x, y), (x, y)) for y in range(high, low)]
        up = [Edge((x, y + 1), (x, y)) for y in reversed(range(high, low))]
        whole[place:place] = [*down, *hole[start:], *hole[:start], *up]
    return whole


@settings(max_examples=300, deadline=None)
@given(labels())
def test_holes_are_where_one_after_the_other_would_be_put(label):
    for part in parts(label):
        assert outline(part.label) == spliced(part.label)


def test_holes_are_found_without_going_through_the_outline(monkeypatch):
    """Of noise there is one for every few edges: with each looked for in all of them a picture took minutes."""
    compared = 0

    class Counted(Edge):
        __hash__ = Edge.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return super().__eq__(other)

    monkeypatch.setattr(outlines, "Edge", Counted)
    label = np.ones((41, 41), bool)
    label[1::2, 1::2] = False
    assert len(outline(label)) == 4 * 41 + 20 * 20 * (4 + 2)
    assert compared <= 2 * 20 * 20
