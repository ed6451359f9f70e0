import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from stage_rt.errors import ImageError, MaskError
from stage_rt.images import inputs
from stage_rt.images.inputs import (
    cover,
    decoded_label,
    fit_mask,
    latent_mask,
    network_image,
    network_mask,
    read_header,
    read_image,
    same_aspect,
    widened,
)
from stage_rt.images.masks import read_mask
from stage_rt.recipe import Recipe
from stage_rt.spec import ModelSpec

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def spec(*, size=32, latent=8, channels=3, rule="cover") -> ModelSpec:
    recipe = Recipe.authors().model_copy(update={"mask_rule": rule})
    return ModelSpec(
        image_size=size,
        latent_size=latent,
        image_channels=channels,
        latent_scale=1.0,
        tokens=1,
        context_dim=1,
        recipe=recipe,
        prompts={"p": "a"},
    )


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_lossless_formats_come_back_as_they_are(tmp_path, suffix):
    np.testing.assert_array_equal(read_image(saved(tmp_path / f"a{suffix}", COLOUR)), COLOUR)
    grey = read_image(saved(tmp_path / f"b{suffix}", GREY))
    np.testing.assert_array_equal(grey, np.repeat(GREY[..., None], 3, axis=2))


def test_the_header_tells_size_and_channels(tmp_path):
    assert read_header(saved(tmp_path / "a.png", COLOUR)) == (9, 6, False)
    assert read_header(saved(tmp_path / "b.jpg", GREY)) == (9, 6, True)
    Image.fromarray(COLOUR).quantize(8).save(tmp_path / "c.png")
    assert read_header(tmp_path / "c.png") == (9, 6, False)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_and_not_cut(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    read = read_image(saved(tmp_path / f"a{suffix}", values))
    assert read[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_integers_beyond_sixteen_bits_are_refused(tmp_path):
    with pytest.raises(
        ImageError, match=r"a\.tif` has grey values beyond 16 bits: save it as 8-bit or 16-bit grey"
    ):
        read_image(saved(tmp_path / "a.tif", np.array([[0, 70000]], dtype=np.int32)))


def test_a_palette_becomes_its_colours(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(4)
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path, mode):
    opaque = np.dstack([COLOUR, np.full((6, 9), 255, dtype=np.uint8)])
    transparent = opaque.copy()
    transparent[2, 3, 3] = 254
    for name, pixels in (("opaque", opaque), ("transparent", transparent)):
        image = Image.fromarray(pixels)
        (image.quantize(255) if mode == "P" else image.convert(mode)).save(tmp_path / f"{name}.png")
    assert read_image(tmp_path / "opaque.png").shape == (6, 9, 3)
    message = r"transparent\.png` has transparent pixels: flatten it onto its background"
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "transparent.png")
    with pytest.raises(MaskError, match=message):
        read_mask(tmp_path / "transparent.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_applied_to_header_image_and_mask(tmp_path, orientation, suffix):
    stored = np.zeros((4, 7, 3), dtype=np.uint8)
    stored[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a{suffix}", stored, exif=exif)
    turned = (4, 7) if orientation >= 5 else (7, 4)
    # Where the EXIF standard says the stored top left pixel belongs.
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert read_header(path)[:2] == turned
    assert read_image(path).shape == (turned[1], turned[0], 3)
    assert read_image(path)[corner[orientation]].tolist() == [255, 255, 255]
    assert np.argwhere(read_mask(path).label).tolist() == [
        [k % n for k, n in zip(corner[orientation], turned[::-1], strict=True)]
    ]


def test_a_picture_that_pillow_warns_of_is_refused_in_a_sentence_alone(tmp_path, recwarn):
    warnings.simplefilter("always")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="more than 64 million pixels"):
        read_header(tmp_path / "a.png")
    assert not recwarn.list


def test_pictures_that_are_read_at_once_leave_the_filters_of_warnings_as_they_were(tmp_path, monkeypatch):
    """The first one to be opened is closed first."""
    path, before = saved(tmp_path / "a.png", COLOUR), list(warnings.filters)
    inside, check, turns = [], inputs._check, [threading.Event() for _ in range(3)]

    def waiting(image, path, error):
        inside.append(None)
        number = len(inside)
        turns[number - 1].set()
        assert turns[number].wait(30)
        check(image, path, error)

    monkeypatch.setattr(inputs, "_check", waiting)
    threads = [threading.Thread(target=read_header, args=(path,)) for _ in range(2)]
    for thread, turn in zip(threads, turns, strict=False):
        thread.start()
        assert turn.wait(30)
    with pytest.warns(RuntimeWarning, match="the loop runs kernel by kernel"):
        warnings.warn("the loop runs kernel by kernel", RuntimeWarning, stacklevel=1)
    threads[0].join(30)
    turns[2].set()
    threads[1].join(30)
    assert list(warnings.filters) == before


def test_aspects_may_differ_by_five_percent():
    assert same_aspect((100, 100), (105, 100))
    assert same_aspect((105, 100), (100, 100))
    assert same_aspect((100, 100), (1000, 1050))
    assert not same_aspect((100, 100), (106, 100))
    assert not same_aspect((100, 100), (1000, 1060))


def test_a_mask_is_fitted_by_nearest_pixel_or_refused(tmp_path):
    label = np.eye(4, dtype=bool)
    assert fit_mask(label, (4, 4), tmp_path) is label
    np.testing.assert_array_equal(fit_mask(label, (8, 8), tmp_path), np.kron(label, np.ones((2, 2))) > 0)
    with pytest.raises(
        MaskError, match=r"m\.png` is 4x4 but its photograph is 8x9: draw the mask at that size"
    ):
        fit_mask(label, (8, 9), tmp_path / "m.png")
    dot = np.zeros((100, 100), dtype=bool)
    dot[0, 0] = True
    with pytest.raises(
        MaskError, match=r"m\.png` vanishes at its photograph's size 10x10: draw the defect larger"
    ):
        fit_mask(dot, (10, 10), tmp_path / "m.png")


def test_the_network_sees_the_whole_image_between_minus_one_and_one():
    photo = np.zeros((20, 50, 3), dtype=np.uint8)
    photo[..., 2] = 255
    image = network_image(photo, spec())
    assert image.dtype == np.float32
    assert image.shape == (3, 32, 32)
    np.testing.assert_array_equal(image[2], 1)
    np.testing.assert_array_equal(image[:2], -1)
    assert network_image(photo, spec(channels=1)).shape == (1, 32, 32)


def test_a_grey_model_sees_grey_values_unchanged():
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    image = network_image(ramp, spec(size=16, channels=1))
    np.testing.assert_allclose((image[0] + 1) * 127.5, ramp[..., 0], atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (31, 45), (8, 8), (5, 3), (97, 1)])
def test_cover_sets_exactly_the_cells_a_labelled_pixel_overlaps(shape):
    rng = np.random.default_rng(1)
    for _ in range(50):
        label = rng.random(shape) < 0.03
        label[tuple(rng.integers(0, shape))] = True
        expected = np.zeros((8, 8), dtype=bool)
        for r, c in np.argwhere(label):
            for i in range(8):
                for j in range(8):
                    rows = r * 8 < (i + 1) * shape[0] and i * shape[0] < (r + 1) * 8
                    columns = c * 8 < (j + 1) * shape[1] and j * shape[1] < (c + 1) * 8
                    expected[i, j] |= rows and columns
        np.testing.assert_array_equal(latent_mask(label, spec())[0], expected)


def test_a_latent_mask_is_one_float_channel_for_both_rules():
    for rule in ("cover", "authors"):
        mask = latent_mask(np.ones((10, 12), dtype=bool), spec(rule=rule))
        assert mask.dtype == np.float32
        assert mask.shape == (1, 8, 8)
        assert mask.all()


def test_the_authors_rule_agrees_with_their_code(golden):
    recorded = golden("tiny_end2end")
    for label, expected in zip(recorded["mask256"], recorded["mask32_no_antialias"], strict=True):
        mask = latent_mask(label > 0, spec(size=256, latent=32, rule="authors"))
        np.testing.assert_array_equal(mask, expected)


def test_the_authors_rule_needs_two_of_the_four_centre_pixels():
    label = np.zeros((32, 32), dtype=bool)
    label[1, 1] = True
    assert not latent_mask(label, spec(rule="authors")).any()
    label[2, 2] = True
    assert np.argwhere(latent_mask(label, spec(rule="authors"))[0]).tolist() == [[0, 0]]
    label[1, 1] = label[2, 2] = False
    label[0::4] = label[3::4] = True
    assert not latent_mask(label, spec(rule="authors")).any()
    for row in (1, 2):
        label[:] = False
        label[row::4] = True
        assert latent_mask(label, spec(rule="authors")).all()
        assert latent_mask(label.T, spec(rule="authors")).all()


def test_the_authors_rule_reads_the_one_centre_pixel_of_an_odd_cell():
    label = np.zeros((24, 24), dtype=bool)
    label[4, 7] = True
    assert np.argwhere(latent_mask(label, spec(size=24, rule="authors"))[0]).tolist() == [[1, 2]]


def test_the_network_mask_has_the_image_size():
    label = np.zeros((64, 128), dtype=bool)
    label[:32] = True
    np.testing.assert_array_equal(network_mask(label, spec()), np.arange(32)[:, None].repeat(32, 1) < 16)


def test_a_thin_part_of_a_label_that_is_painted_is_in_the_label_of_the_decoded_image():
    label = np.zeros((256, 256), dtype=bool)
    label[0:128, 0:128] = True
    label[200, 160:240] = True
    assert not network_mask(label, spec())[16:].any()
    wanted = network_mask(label, spec())
    wanted[25, 20:30] = True
    np.testing.assert_array_equal(decoded_label(label, spec()), wanted)
    np.testing.assert_array_equal(
        decoded_label(label, spec(rule="authors")), network_mask(label, spec(rule="authors"))
    )


def test_a_thin_part_that_is_joined_to_a_thick_one_is_in_the_label_of_the_decoded_image():
    label = np.zeros((256, 256), dtype=bool)
    label[120, 0:200] = True
    label[100:140, 200:240] = True
    small = network_mask(label, spec())
    assert not small[:, :24].any()
    wanted = small.copy()
    wanted[15, :25] = True
    np.testing.assert_array_equal(decoded_label(label, spec()), wanted)


def test_a_label_as_thick_as_pixels_of_the_decoded_image_is_no_thicker_there():
    rows, columns = np.mgrid[:256, :256]
    label = (rows - 120) ** 2 + (columns - 131) ** 2 < 60**2
    np.testing.assert_array_equal(decoded_label(label, spec()), network_mask(label, spec()))


def test_a_cell_is_covered_where_any_of_its_pixels_is_labelled():
    label = np.zeros((4, 4), dtype=bool)
    label[1, 3] = True
    assert cover(label, 2).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    ("pixels", "wanted"), [(0, 1), (0.5, 9), (1.0, 9), (1.2, 21), (1.5, 25), (2.0, 25), (2.1, 37)]
)
def test_a_label_is_widened_to_pixels_of_which_a_part_is_that_near(pixels: float, wanted: int):
    label = np.zeros((11, 11), dtype=bool)
    label[5, 5] = True
    wide = widened(label, pixels)
    assert wide.sum() == wanted
    assert wide[5, 5]
    assert (wide == wide[::-1]).all()
    assert (wide == wide.T).all()


def test_a_label_without_pixels_stays_so():
    assert not widened(np.zeros((4, 4), dtype=bool), 2.0).any()
