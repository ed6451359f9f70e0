"""What grey values become labels, rule by rule."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from stage_rt.errors import MaskError
from stage_rt.images.masks import Reading, read_mask


def saved(path: Path, values: object, dtype: type = np.uint8) -> Path:
    Image.fromarray(np.array(values, dtype=dtype)).save(path)
    return path


@pytest.mark.parametrize("bright", [32, 60, 127, 128, 254, 255])
def test_a_mask_of_two_values_is_labelled_whatever_the_brighter_one(tmp_path: Path, bright: int) -> None:
    mask = read_mask(saved(tmp_path / "a.png", [[0, bright, 0]]))
    assert mask.label.tolist() == [[False, True, False]]
    assert not mask.shaded


@pytest.mark.parametrize("values", [(1, 2), (5, 30), (40, 255), (100, 200), (128, 255)])
def test_two_values_need_no_black_among_them(tmp_path: Path, values: tuple[int, int]) -> None:
    grey = np.full((8, 8), values[0], np.uint8)
    grey[2:4, 3:6] = values[1]
    mask = read_mask(saved(tmp_path / "a.png", grey))
    assert not mask.shaded
    assert (mask.label == (grey == values[1])).all()


@pytest.mark.parametrize(("values", "count"), [((254, 255), 64), ((1, 255), None), ((20, 255), None)])
def test_two_values_that_are_one_are_one_and_a_number_beside_a_bright_value_is_a_class(
    tmp_path: Path, values: tuple[int, int], count: int | None
) -> None:
    grey = np.full((8, 8), values[0], np.uint8)
    grey[2:4, 3:6] = values[1]
    path = saved(tmp_path / "a.png", grey)
    if count is None:
        with pytest.raises(MaskError, match="shows several classes"):
            read_mask(path)
    else:
        assert read_mask(path).label.sum() == count


def test_sixteen_bit_and_one_bit_masks_are_masks_of_two_values(tmp_path: Path) -> None:
    assert read_mask(saved(tmp_path / "a.png", [[0, 40000]], np.uint16)).label.tolist() == [[False, True]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png").label.tolist() == [[False, True]]


@pytest.mark.parametrize("grey", [90, 127, 128, 200, 255])
def test_what_jpeg_leaves_of_two_values_is_the_same_label(tmp_path: Path, grey: int) -> None:
    drawn = np.zeros((64, 64), np.uint8)
    drawn[16:48, 16:40] = grey
    Image.fromarray(drawn).save(tmp_path / "a.jpg", quality=90)
    mask = read_mask(tmp_path / "a.jpg")
    assert (mask.label == (drawn > 0)).all()


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).normal(120, 20, (40, 40)).clip(0, 255)
    path = saved(tmp_path / "part.png", photo)
    with pytest.raises(
        MaskError, match=r"part.png` is in shades of grey and would label 9\d% of the picture, as a"
    ):
        read_mask(path)
    assert read_mask(path, Reading(threshold=0.5)).label.any()


@pytest.mark.parametrize(
    ("side", "box", "blur", "least", "most"),
    [(40, (10, 10, 26, 26), 3, 0.1, 0.2), (100, (20, 20, 80, 80), 1, 0.35, 0.37)],
)
def test_a_label_with_soft_edges_is_a_mask(
    tmp_path: Path, side: int, box: tuple[int, ...], blur: int, least: float, most: float
) -> None:
    drawn = Image.new("L", (side, side))
    drawn.paste(255, box)
    drawn.filter(ImageFilter.GaussianBlur(blur)).save(tmp_path / "soft.png")
    mask = read_mask(tmp_path / "soft.png")
    assert mask.shaded
    assert least < mask.label.mean() < most


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("values", [[0, 1, 3], [0, 1, 20], [0, 31, 2]])
def test_class_numbers_are_labels(tmp_path: Path, values: list[int], dtype: type) -> None:
    assert read_mask(saved(tmp_path / "a.png", [values], dtype)).label.tolist() == [[False, True, True]]


@pytest.mark.parametrize("values", [[0, 60, 200], [0, 64, 128, 191, 255], [0, 127, 128, 255]])
def test_classes_of_which_none_was_chosen_are_refused(tmp_path: Path, values: list[int]) -> None:
    path = saved(tmp_path / "a.png", [values])
    listed = ", ".join(map(str, values[1:]))
    with pytest.raises(MaskError) as refused:
        read_mask(path)
    assert str(refused.value) == (
        f"`{path}` shows several classes ({listed}): save one alone, or choose with `--mask-class N` or "
        "`--mask-threshold 0.5` of `stage-rt synth`"
    )


@pytest.mark.parametrize("breadth", [40, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_numbers_beside_one_bright_value_are_classes(tmp_path: Path, breadth: int, dtype: type) -> None:
    """255 says "ignore" in many data sets: it is not the defect that the small number is."""
    drawn = np.zeros((120, 160), dtype)
    drawn[30:70, 20 : 20 + breadth] = 1
    drawn[80:95, 90:120] = np.iinfo(dtype).max
    path = saved(tmp_path / "a.png", drawn, dtype)
    with pytest.raises(
        MaskError, match=rf"a\.png` shows several classes \(1, {drawn.max()}\): save one alone"
    ):
        read_mask(path)
    assert read_mask(path, Reading(value=1)).label.sum() == 40 * breadth


def test_a_slip_of_the_pen_is_no_class(tmp_path: Path) -> None:
    drawn = np.zeros((64, 64), np.uint8)
    drawn[30:60, 30:60] = 255
    drawn[2:4, 2:5] = 1
    assert read_mask(saved(tmp_path / "a.png", drawn)).label.sum() == 900


@pytest.mark.parametrize("quality", [50, 75, 85, 90, 95, 98, 100])
def test_noise_of_jpeg_is_no_class(tmp_path: Path, quality: int) -> None:
    rng = np.random.default_rng(quality)
    for _ in range(40):
        drawn = np.zeros((64, 64), np.uint8)
        y, x = rng.integers(0, 60, 2)
        drawn[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = rng.choice([128, 200, 255])
        Image.fromarray(drawn).save(tmp_path / "a.jpg", quality=quality)
        values = np.asarray(Image.open(tmp_path / "a.jpg"))
        # What is left of a pixel or two may be several shades, which is another rule.
        if not ((values > 0.1 * values.max()) & (values < 0.9 * values.max())).any():
            assert (read_mask(tmp_path / "a.jpg").label == (drawn > 0)).all()


def test_a_chosen_class_alone_is_labelled(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", [[0, 60, 200, 61]])
    assert read_mask(path, Reading(value=60)).label.tolist() == [[False, True, False, False]]
    with pytest.raises(MaskError, match="has no pixel of the value 7: give another `--mask-class` or remove"):
        read_mask(path, Reading(value=7))


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
"""Colours of the first classes of PASCAL VOC, whose grey values are 0, 38, 75 and 113."""


def in_palette(path: Path, indices: object, colours: list[tuple[int, int, int]]) -> Path:
    image = Image.fromarray(np.array(indices, dtype=np.uint8), mode="P")
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_a_class_is_a_number_in_the_palette(tmp_path: Path, suffix: str) -> None:
    path = in_palette(tmp_path / f"a.{suffix}", [[0, 1, 2, 3, 1]], VOC)
    assert read_mask(path, Reading(value=1)).label.tolist() == [[False, True, False, False, True]]
    assert read_mask(path, Reading(value=3)).label.tolist() == [[False, False, False, True, False]]
    with pytest.raises(MaskError, match="has no pixel of the value 38"):
        read_mask(path, Reading(value=38))
    with pytest.raises(MaskError, match=r"shows several classes \(1, 2, 3\): .* `--mask-class N`"):
        read_mask(path)
    assert read_mask(path, Reading(threshold=0.4)).label.tolist() == [[False, False, False, True, False]]


def test_a_palette_turned_by_exif_is_turned_with_its_numbers(tmp_path: Path) -> None:
    image = Image.open(in_palette(tmp_path / "a.png", [[0, 1, 2], [0, 0, 0]], VOC))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "b.png", exif=exif)
    label = read_mask(tmp_path / "b.png", Reading(value=2)).label
    assert label.tolist() == [[False, False], [False, False], [False, True]]


@pytest.mark.parametrize("colours", [[(0, 0, 0), (255, 255, 255)], [(0, 0, 0), (0, 0, 200)]])
def test_a_palette_of_two_colours_is_labelled_where_it_is_brighter(
    tmp_path: Path, colours: list[tuple[int, int, int]]
) -> None:
    path = in_palette(tmp_path / "a.png", [[0, 1, 0]], colours)
    assert read_mask(path).label.tolist() == [[False, True, False]]
    inverted = in_palette(tmp_path / "b.png", [[0, 1, 0]], colours[::-1])
    assert read_mask(inverted).label.tolist() == [[True, False, True]]


def test_a_palette_that_is_a_ramp_of_grey_is_the_grey_it_shows(tmp_path: Path) -> None:
    ramp = [(value, value, value) for value in range(256)]
    path = in_palette(tmp_path / "a.png", [[0, 60, 200, 61]], ramp)
    assert read_mask(path, Reading(value=60)).label.tolist() == [[False, True, False, False]]
    with pytest.raises(MaskError, match=r"shows several classes \(60, 61, 200\)"):
        read_mask(path)


@pytest.mark.parametrize(("share", "count"), [(0.0, 3), (0.25, 2), (0.5, 1), (200 / 255, 1)])
def test_a_threshold_is_a_share_of_white(tmp_path: Path, share: float, count: int) -> None:
    path = saved(tmp_path / "a.png", [[0, 60, 200, 70]])
    assert read_mask(path, Reading(threshold=share)).label.sum() == count
    with pytest.raises(MaskError, match=r"has no pixel of 0\.9 of white: give another `--mask-threshold`"):
        read_mask(path, Reading(threshold=0.9))


def test_a_blurred_peak_is_labelled_from_half_of_its_own_brightest(tmp_path: Path) -> None:
    drawn = Image.fromarray(np.pad(np.full((20, 20), 100, np.uint8), 30))
    drawn.filter(ImageFilter.GaussianBlur(9)).save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png")
    assert mask.shaded
    assert 0.6 < mask.label.sum() / 400 < 1.8
    assert (np.asarray(Image.open(tmp_path / "a.png")) > 0).sum() > 7 * 400


def test_an_all_black_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"a\.png` is all black: paint the defect white or remove the mask"):
        read_mask(saved(tmp_path / "a.png", np.zeros((3, 3))))
