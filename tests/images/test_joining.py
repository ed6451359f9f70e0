import numpy as np
from PIL import Image, ImageFilter

from stage_rt.images.compose import composite, pasted
from stage_rt.images.joining import SEAM, joined
from stage_rt.images.regions import regions
from stage_rt.spec import RegionView


def line() -> tuple[np.ndarray, list]:
    """A line of 4 px across a flat photograph, and its pieces."""
    label = np.zeros((64, 200), dtype=bool)
    label[30:34, 20:180] = True
    return label, regions(label, RegionView(context=0.5, least=32, slender=4))


def painted(shades: list[int]) -> list[np.ndarray]:
    return [np.full((32, 32, 3), shade, dtype=np.uint8) for shade in shades]


def test_pieces_of_a_defect_turn_into_one_another_without_a_seam():
    label, pieces = line()
    photo = np.full((64, 200, 3), 120, dtype=np.uint8)
    shades = [20 + 30 * (n % 2) for n in range(len(pieces))]
    window, levels, kept = joined(photo, list(zip(pieces, painted(shades), strict=True)))
    assert (kept == label[window]).all()
    core = levels[32 - window[0].start, 22 - window[1].start : 178 - window[1].start, 0].astype(int)
    assert core.min() == 20
    assert core.max() == 50
    length = pieces[0].share[1].stop - pieces[0].share[1].start
    assert np.abs(np.diff(core)).max() <= -(-30 // length) + 1
    for region, shade in zip(pieces, shades, strict=True):
        middle = (region.share[1].start + region.share[1].stop) // 2
        assert abs(core[middle - 22] - shade) <= 1
    result = pasted(photo, pieces, painted(shades), exact=True)
    away = ~np.asarray(Image.fromarray(label).filter(ImageFilter.MaxFilter(3)))
    assert (result[away] == photo[away]).all()


def test_what_is_drawn_in_one_piece_is_not_seen_in_the_next():
    """Stripes in one piece of several: beyond the narrow seam the others have none of them."""
    _, pieces = line()
    photo = np.full((64, 200, 3), 120, dtype=np.uint8)
    stripes = np.where(np.arange(32) % 4 < 2, 40, 80).astype(np.uint8)
    pictures = painted([60] * len(pieces))
    pictures[1] = np.broadcast_to(stripes[None, :, None], (32, 32, 3)).copy()
    window, levels, _ = joined(photo, list(zip(pieces, pictures, strict=True)))
    core = levels[32 - window[0].start, :, 0].astype(int)
    start, stop = (edge - window[1].start for edge in (pieces[1].share[1].start, pieces[1].share[1].stop))
    assert np.ptp(core[start + SEAM : stop - SEAM]) >= 39
    assert np.ptp(core[: start - SEAM]) <= 2
    assert np.ptp(core[stop + SEAM :]) <= 2


def test_pieces_that_agree_are_as_one_picture():
    label, pieces = line()
    photo = np.full((64, 200, 3), 120, dtype=np.uint8)
    whole = composite(photo, np.full((32, 32, 3), 40, dtype=np.uint8), label, exact=True)
    alike = painted([40] * len(pieces))
    np.testing.assert_array_equal(pasted(photo, pieces, alike, exact=True), whole)
