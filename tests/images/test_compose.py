import numpy as np
import pytest
from PIL import Image, ImageFilter

from stage_rt.images.compose import FEATHER, composite, grain_of, pasted, pixels
from stage_rt.images.regions import regions
from stage_rt.spec import RegionView

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


def textured(side: int, seed: int = 0) -> np.ndarray:
    """A surface with a grain of 12 grey levels that neighbours do not share."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(120, 12, (side, side, 1)), 0, 255).astype(np.uint8).repeat(3, axis=2)


def test_exact_paint_ends_at_the_labels_outline():
    photo, label = textured(96), np.zeros((96, 96), dtype=bool)
    label[40:60, 30:70] = True
    result = composite(photo, np.full((48, 48, 3), 30, dtype=np.uint8), label, exact=True)
    assert (result[~label] == photo[~label]).all()
    edge = np.zeros_like(label)
    edge[40:60, 30:70] = True
    edge[41:59, 31:69] = False
    assert abs(result[label].mean() - 30) < 5
    assert abs(result[edge].mean() - 30) < 5


def test_exact_paint_has_the_photographs_grain():
    """The painted picture is the surface without its grain, and a flat pit."""
    photo, label = textured(96), np.zeros((96, 96), dtype=bool)
    label[40:60, 30:70] = True
    painted = np.full((96, 96, 3), 120, dtype=np.uint8)
    painted[label] = 60
    result = composite(photo, painted, label, exact=True)[44:56, 34:66, 0].astype(float)
    assert result.std() == pytest.approx(photo[..., 0].std(), rel=0.25)
    assert result.mean() == pytest.approx(60, abs=3)
    plain = composite(photo, painted, label)[44:56, 34:66, 0]
    assert plain.std() < 1


def test_there_is_no_grain_where_the_label_leaves_no_surface():
    photo, label = textured(32), np.ones((32, 32), dtype=bool)
    assert (grain_of(photo, np.full_like(photo, 120), label, label) == 0).all()
    assert (
        composite(photo, np.full((16, 16, 3), 60, dtype=np.uint8), label, exact=True)[2:-2, 2:-2] == 60
    ).all()


def test_nothing_labelled_changes_nothing_exactly():
    photo = textured(32)
    assert (
        composite(photo, np.zeros((16, 16, 3), np.uint8), np.zeros((32, 32), bool), exact=True) == photo
    ).all()


def test_a_label_of_one_pixel_gets_all_of_its_paint():
    photo, label = np.full((32, 32, 3), 120, dtype=np.uint8), np.zeros((32, 32), dtype=bool)
    label[7, 9] = True
    result = composite(photo, np.full((16, 16, 3), 0, dtype=np.uint8), label, exact=True)
    assert result[7, 9, 0] == 0


@pytest.mark.parametrize("pixel", [1, 2])
def test_paint_fades_out_along_the_rim(pixel):
    """Pixels of the network are ``pixel`` of the photograph wide."""
    photo, label = np.full((96, 96, 3), 200, dtype=np.uint8), np.zeros((96, 96), dtype=bool)
    label[30:60, 30:70] = True
    painted = np.zeros((96 // pixel, 96 // pixel, 3), dtype=np.uint8)
    result = composite(photo, painted, label, exact=False, rim=(0.8, 0.5), pixel=pixel)
    assert (result[label] == 0).all()
    column = result[30 - 4 * pixel : 30, 50, 0][::-1].tolist()
    assert column[pixel - 1 :: pixel] == [40, 100, 200, 200]
    assert column == sorted(column)


def test_a_photograph_with_a_rim_keeps_its_bytes_where_the_rim_ends():
    photo, label = textured(96), np.zeros((96, 96), dtype=bool)
    label[40:60, 30:70] = True
    result = composite(photo, np.full((96, 96, 3), 30, dtype=np.uint8), label, exact=True, rim=(0.6,))
    away = ~np.asarray(Image.fromarray(label).filter(ImageFilter.MaxFilter(5)))
    assert (result[away] == photo[away]).all()
    assert (result[39, 31:69] != photo[39, 31:69]).any()


def test_grain_beside_another_label_is_the_photographs_and_no_ghost_of_that_paint() -> None:
    """A photograph without grain: a small label 12 px from a large one is painted as it is alone."""
    photo, label = np.full((400, 400, 3), 128, np.uint8), np.zeros((400, 400), bool)
    label[100:250, 100:250] = label[120:126, 82:88] = True
    both = regions(label, RegionView(context=0.5, least=64, slender=4.0))
    assert len(both) == 2
    painted = []
    for region in both:
        picture = photo[region.window].copy()
        picture[region.own] = np.random.default_rng(1).integers(40, 90, (int(region.own.sum()), 1))
        painted.append(np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC)))
    small = next(n for n, region in enumerate(both) if region.own.sum() == 36)
    alone = pasted(photo, [both[small]], [painted[small]], exact=True)
    there = slice(120, 126), slice(82, 88)
    for order in (both, both[::-1]):
        pictures = painted if order is both else painted[::-1]
        np.testing.assert_array_equal(pasted(photo, order, pictures, exact=True)[there], alone[there])


def coloured(side: int) -> np.ndarray:
    """A grained surface of a brown that is far from black and white."""
    return np.clip(textured(side).astype(int) + np.array([40, 0, -40]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("exact", [False, True])
def test_paint_of_one_channel_leaves_a_photograph_its_colour(exact):
    photo, label = coloured(96), np.zeros((96, 96), dtype=bool)
    label[40:60, 30:70] = True
    [region] = regions(label, None)
    painted = [np.full((48, 48, 3), 90, dtype=np.uint8)]
    result = pasted(photo, [region], painted, exact=exact, channels=1).astype(int)
    for one, other in ((0, 1), (1, 2)):
        np.testing.assert_array_equal(
            result[..., one] - result[..., other], photo[..., one].astype(int) - photo[..., other]
        )
    grey = np.asarray(Image.fromarray(result.astype(np.uint8)).convert("L"))
    assert grey[label].mean() == pytest.approx(90, abs=5)


@pytest.mark.parametrize("exact", [False, True])
def test_a_photograph_without_colour_gets_the_same_bytes_whatever_the_channels(exact):
    photo = RNG.integers(0, 256, (60, 80, 1), dtype=np.uint8).repeat(3, axis=2)
    label = np.zeros((60, 80), dtype=bool)
    label[20:30, 25:45] = label[50:53, 70:75] = True
    own = regions(label, RegionView(least=16, context=0.5, slender=4.0))
    painted = [RNG.integers(0, 256, (32, 32, 1), dtype=np.uint8).repeat(3, axis=2) for _ in own]
    one, three = (pasted(photo, own, painted, exact=exact, channels=channels) for channels in (1, 3))
    np.testing.assert_array_equal(one, three)
    assert (one != photo).any()


def test_paint_of_one_channel_ends_at_black_and_white():
    photo = np.full((32, 32, 3), (250, 128, 10), dtype=np.uint8)
    [region] = regions(np.ones((32, 32), dtype=bool), None)
    seen = int(np.asarray(Image.fromarray(photo).convert("L"))[0, 0])
    for change, expected in ((60, [255, 188, 70]), (-60, [190, 68, 0])):
        painted = [np.full((16, 16, 3), seen + change, dtype=np.uint8)]
        assert pasted(photo, [region], painted, exact=False, channels=1)[16, 16].tolist() == expected
