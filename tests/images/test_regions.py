import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stage_rt.images.regions import MOST, regions, square
from stage_rt.noise import REGION_BITS
from stage_rt.spec import RegionView

VIEW = RegionView(context=0.5, least=32)


def drawn(shape, *boxes):
    label = np.zeros(shape, dtype=bool)
    for rows, columns in boxes:
        label[slice(*rows), slice(*columns)] = True
    return label


def sides(region):
    return tuple(part.stop - part.start for part in region.window)


def covered(label, found, part="label"):
    """How often each pixel is in that part of a region: all it shows, or its own."""
    count = np.zeros(label.shape, dtype=int)
    for region in found:
        assert region.label.shape == sides(region)
        assert not (region.own & ~region.label).any()
        count[region.window] += getattr(region, part)
    return count


def test_a_region_a_photograph_has_at_most_is_one_a_stream_can_name():
    assert MOST <= 1 << REGION_BITS


def test_without_a_view_it_is_the_whole_photograph():
    label = drawn((40, 60), ((3, 5), (3, 5)), ((30, 35), (50, 55)))
    (only,) = regions(label, None)
    assert sides(only) == (40, 60)
    assert (only.label == label).all()


def test_an_empty_label_is_the_whole_photograph():
    assert sides(regions(np.zeros((40, 60), bool), VIEW)[0]) == (40, 60)


def test_small_defects_get_squares_of_the_smallest_side_around_them():
    label = drawn((200, 300), ((100, 103), (50, 54)), ((20, 22), (250, 252)))
    first, second = regions(label, VIEW)
    assert sides(first) == sides(second) == (32, 32)
    rows, columns = second.window
    assert (rows.start + rows.stop) / 2 == pytest.approx(101.5, abs=1)
    assert (columns.start + columns.stop) / 2 == pytest.approx(52, abs=1)
    assert second.label.sum() == 12


def test_a_defect_takes_half_of_its_square_at_a_context_of_one_half():
    (only,) = regions(drawn((400, 400), ((100, 150), (100, 180))), VIEW)
    assert sides(only) == (160, 160)


@pytest.mark.parametrize("corner", [(0, 0), (0, 190), (190, 0), (190, 190)])
def test_a_square_at_the_border_is_moved_into_the_photograph(corner):
    rows, columns = ((start, start + 10) for start in corner)
    (only,) = regions(drawn((200, 200), (rows, columns)), VIEW)
    assert sides(only) == (32, 32)
    assert only.label.sum() == 100


def test_a_label_larger_than_the_photographs_short_side_ends_at_its_border():
    (only,) = regions(drawn((50, 400), ((10, 40), (20, 380))), VIEW)
    assert sides(only) == (50, 400)


def test_one_pixel_is_a_region():
    (only,) = regions(drawn((100, 100), ((99, 100), (0, 1))), VIEW)
    assert (sides(only), int(only.label.sum())) == ((32, 32), 1)


def test_defects_that_touch_or_nearly_touch_are_one():
    label = drawn((300, 300), ((100, 120), (100, 120)), ((121, 140), (118, 140)), ((143, 150), (120, 130)))
    assert len(regions(label, VIEW)) == 1


def test_overlapping_squares_become_one():
    assert len(regions(drawn((300, 300), ((100, 110), (100, 110)), ((100, 110), (118, 128))), VIEW)) == 1


def test_a_small_defect_beside_a_large_one_is_not_squeezed_with_it():
    label = drawn((1000, 1000), ((100, 104), (100, 104)), ((110, 510), (110, 510)))
    small, large = sorted(regions(label, VIEW), key=lambda region: sides(region)[0])
    assert (sides(small), sides(large)) == ((32, 32), (800, 800))


def test_no_photograph_has_more_regions_than_there_are_streams():
    label = np.zeros((1200, 1200), dtype=bool)
    label[::20, ::20] = True
    found = regions(label, RegionView(context=0, least=8))
    assert 1 <= len(found) <= MOST
    assert (covered(label, found) == label).all()


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        bool, st.tuples(st.integers(1, 90), st.integers(1, 90)), elements=st.booleans(), fill=st.just(False)
    ),
    st.floats(0, 2),
    st.integers(8, 64),
)
def test_every_labelled_pixel_is_in_exactly_one_region(label, context, least):
    view = RegionView(context=context, least=least)
    found = regions(label, view)
    assert (covered(label, found) == label).all()
    if label.any():
        assert all(region.label.any() for region in found)
        for region in found:
            rows, columns = (np.flatnonzero(region.label.any(axis=axis)) for axis in (1, 0))
            offset = [part.start for part in region.window]
            spans = [
                (int(s[0]) + o, int(s[-1]) + 1 + o) for s, o in zip((rows, columns), offset, strict=True)
            ]
            assert region.window == square(*spans, label.shape, view)


SLENDER = RegionView(context=0.5, least=32, slender=4)


@pytest.mark.parametrize("lying", [True, False])
def test_a_thin_line_is_cut_into_pieces_at_the_scale_of_its_width(lying):
    label = drawn((400, 400), ((200, 203), (40, 340)))
    label = label if lying else label.T
    found = regions(label, SLENDER)
    assert len(found) == 19
    assert {sides(region) for region in found} == {(32, 32)}
    assert {region.group for region in found} == {0}
    assert (covered(label, found, "own") == label).all()


def test_a_piece_is_shown_where_its_defect_goes_on():
    label = drawn((400, 400), ((200, 203), (40, 340)))
    for region in regions(label, SLENDER)[1:-1]:
        assert region.own.any(axis=0).sum() in (15, 16)
        assert (region.label == label[region.window]).all()
        assert region.label.any(axis=0).all()


def test_a_wider_line_gets_larger_pieces():
    (first, *_), _ = regions(drawn((400, 400), ((200, 212), (10, 390))), SLENDER), None
    assert sides(first) == (94, 94)


@pytest.mark.parametrize(
    "box", [((100, 140), (100, 240)), ((100, 103), (100, 110)), ((100, 101), (100, 101))]
)
def test_what_is_stout_or_small_stays_whole(box):
    (only,) = regions(drawn((400, 400), box), SLENDER)
    assert only.share is None
    assert (only.own == only.label).all()


def test_a_photograph_full_of_lines_has_no_more_pieces_than_streams():
    label = np.zeros((2000, 2000), dtype=bool)
    label[::40] = True
    found = regions(label, SLENDER)
    assert 1 < len(found) <= MOST
    assert (covered(label, found, "own") == label).all()


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        bool, st.tuples(st.integers(1, 90), st.integers(1, 90)), elements=st.booleans(), fill=st.just(False)
    ),
    st.floats(2, 8),
    st.integers(8, 32),
)
def test_every_labelled_pixel_is_the_own_of_exactly_one_piece(label, slender, least):
    found = regions(label, RegionView(context=0.5, least=least, slender=slender))
    assert (covered(label, found, "own") == label).all()
