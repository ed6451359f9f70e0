import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import PROMPT, FakeEngine, contents, manifest, opened, photographs
from PIL import Image
from scipy import ndimage

from stage_rt.errors import InputError, MaskError
from stage_rt.run import supply
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.run.sample import Sight
from stage_rt.run.supply import (
    ASPECT,
    JOINED,
    LONGER,
    SCALES,
    TURN,
    Dice,
    ends,
    opposite,
    partners,
    placed,
)

BAR = np.zeros((60, 80), dtype=bool)
BAR[20:24, 10:40] = True
EVERYWHERE = np.ones((60, 80), dtype=bool)
JOINED_OF_40 = {19: 4, 22: 4, 27: 1, 30: 2}


def moved(sample, label=BAR, inside=EVERYWHERE):
    return placed(label, inside, Dice(3, sample))


def test_a_label_follows_from_seed_and_sample_alone():
    assert (moved(5) == moved(5)).all()
    assert (placed(BAR, EVERYWHERE, Dice(4, 5)) != moved(5)).any()


def test_five_hundred_labels_are_five_hundred():
    assert len({moved(n).tobytes() for n in range(500)}) == 500


def test_labels_keep_their_size_within_the_limits_and_lie_everywhere():
    labels = [moved(n) for n in range(300)]
    sizes = np.array([label.sum() for label in labels]) / BAR.sum()
    assert sizes.min() > (SCALES[0] / 2) ** 2 * 0.8
    assert sizes.max() < SCALES[1] ** 2 * 1.15
    assert (np.sum(labels, axis=0) > 0).mean() > 0.85
    assert all(ndimage.label(label, np.ones((3, 3)))[1] == 1 for label in labels)


def measured(label):
    """Length and mean breadth of a straight label, in pixels."""
    length = 4 * np.linalg.eigvalsh(np.cov(np.argwhere(label), rowvar=False))[1] ** 0.5
    return length, label.sum() / length


@pytest.mark.parametrize("turned", [False, True], ids=["along a row", "across the rows"])
def test_slender_labels_grow_longer_and_not_broader(turned):
    place = np.ones((300, 300), dtype=bool)
    scratch = np.zeros_like(place)
    scratch[140:144, 120:180] = True
    own = measured(scratch)
    rod = scratch.T if turned else scratch
    made = np.array([measured(moved(n, rod, place)) for n in range(200)]) / own
    assert made[:, 0].max() < SCALES[1] * LONGER * 1.05
    assert np.quantile(made[:, 0], 0.9) > 2
    assert made[:, 0].min() > SCALES[0] * 0.9
    assert (made[:, 1] > SCALES[0] / 2 * 0.85).all()
    assert (made[:, 1] < SCALES[1] * 1.15).all()


def test_broad_labels_change_their_shape_within_limits_and_not_their_area():
    place = np.ones((300, 300), dtype=bool)
    chip = np.zeros_like(place)
    chip[140:150, 120:180] = True
    length, breadth = measured(chip)
    made = np.array([measured(moved(n, chip, place)) for n in range(200)])
    shapes = made[:, 0] / made[:, 1] / (length / breadth)
    assert 1 / (ASPECT * 1.1) < shapes.min() < 1 / (ASPECT * 0.9)
    assert ASPECT * 0.9 < shapes.max() < ASPECT * 1.1
    areas = made.prod(axis=1) / (length * breadth)
    assert areas.max() < SCALES[1] ** 2 * 1.05
    # However long or short they came.
    assert abs(np.corrcoef(np.log(shapes), np.log(areas))[0, 1]) < 0.2


def test_two_holes_of_one_mask_are_no_scratch():
    place = np.ones((300, 300), dtype=bool)
    holes = np.zeros_like(place)
    holes[140:148, 100:108] = holes[140:148, 180:188] = True
    for n in range(100):
        for part in ndimage.find_objects(ndimage.label(moved(n, holes, place))[0]):
            height, width = (span.stop - span.start for span in part)
            assert max(height, width) < 1.6 * ASPECT * min(height, width) < LONGER * min(height, width)


def test_a_slender_label_at_a_border_grows_inwards_from_it():
    place = np.ones((200, 200), dtype=bool)
    crack = np.zeros_like(place)
    crack[:50, 100:103] = True
    labels = [moved(n, crack, place) for n in range(60)]
    assert all(label[0].any() for label in labels)
    lengths = [np.flatnonzero(label.any(axis=1))[-1] for label in labels]
    assert max(lengths) > 90
    assert np.quantile(lengths, 0.1) > 30


def test_labels_are_turned_a_little():
    rows, columns = np.nonzero(BAR)
    for degrees, label in ((0, BAR), *((TURN, moved(n)) for n in range(100))):
        rows, columns = np.nonzero(label)
        slope = np.degrees(np.arctan(np.polyfit(columns, rows, 1)[0]))
        assert abs(slope) < degrees + 3
    assert np.ptp([np.polyfit(*np.nonzero(moved(n))[::-1], 1)[0] for n in range(100)]) > np.tan(
        np.radians(TURN)
    )


def touched(label):
    return bool(label[0].any()), bool(label[-1].any()), bool(label[:, 0].any()), bool(label[:, -1].any())


def drawn(rows, columns):
    label = np.zeros_like(EVERYWHERE)
    label[slice(*rows), slice(*columns)] = True
    return label


def test_labels_that_fit_are_the_same_whether_larger_ones_are_bounded_or_not(monkeypatch):
    shapes = [((20, 24), (10, 40)), ((20, 30), (0, 12)), ((50, 60), (60, 80)), ((0, 20), (40, 42))]
    labels = [drawn(rows, columns) for rows, columns in shapes]
    bounded = [moved(n, label) for label in labels for n in range(20)]
    monkeypatch.setattr(supply, "LONGEST", 1e9)
    assert np.array_equal(bounded, [moved(n, label) for label in labels for n in range(20)])


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("shape", [(1500, 200), (600, 600)])
def test_a_label_from_border_to_border_costs_no_more_than_its_photograph(shape, across):
    place = np.ones(shape, dtype=bool)
    crack = np.zeros_like(place)
    crack[:, 100:104] = True
    if across:
        place, crack = place.T, crack.T
    tracemalloc.start()
    try:
        labels = [moved(n, crack, place) for n in range(4)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * place.size
    lying = [touched(label.T if across else label) for label in labels]
    assert all(top for top, *_ in lying)
    assert sum(bottom for _, bottom, *_ in lying) >= 2


@pytest.mark.parametrize(
    ("rows", "columns", "borders"),
    [
        ((20, 30), (0, 12), (False, False, True, False)),
        ((20, 30), (68, 80), (False, False, False, True)),
        ((0, 6), (30, 60), (True, False, False, False)),
        ((0, 60), (40, 44), (True, True, False, False)),
        ((50, 60), (60, 80), (False, True, False, True)),
    ],
    ids=["at the left", "at the right", "at the top", "from top to bottom", "in a corner"],
)
def test_what_lies_at_a_border_stays_there(rows, columns, borders):
    labels = [moved(n, drawn(rows, columns)) for n in range(60)]
    assert np.mean([touched(label) == borders for label in labels]) > 0.9
    assert len({label.tobytes() for label in labels}) > 55


def test_labels_are_mirrored_to_a_border_where_others_lie_and_to_no_other_one():
    left, right, corner = drawn((20, 30), (0, 12)), drawn((40, 50), (68, 80)), drawn((0, 9), (70, 80))
    assert opposite([]) == opposite([ends(BAR)]) == opposite([ends(left)]) == (False, False)
    assert opposite([ends(left), ends(right)]) == opposite([ends(left), ends(corner)]) == (False, True)
    labels = [placed(left, EVERYWHERE, Dice(3, n), (False, True)) for n in range(60)]
    at = [touched(label)[2:] for label in labels]
    assert 15 < at.count((False, True)) < 45
    assert at.count((False, True)) + at.count((True, False)) > 54


def test_a_label_is_mirrored_along_a_border_and_not_across_it():
    hook = drawn((20, 23), (60, 80)) | drawn((23, 34), (60, 63))
    upward = [np.nonzero(moved(n, hook))[0] for n in range(60)]
    middle = np.array([(rows.min() + rows.max()) / 2 - rows.mean() for rows in upward])
    assert 15 < (middle > 0).sum() < 45
    assert all(moved(n, hook)[:, -1].any() for n in range(60))


def test_what_lies_close_to_a_border_keeps_its_distance():
    for n in range(60):
        label = moved(n, drawn((20, 40), (1, 5)))
        assert np.flatnonzero(label.any(axis=0))[0] <= 2


def test_what_lies_at_no_border_is_not_cut_off_by_one():
    assert all(moved(n).sum() > 0.8 * (SCALES[0] / 2) ** 2 * BAR.sum() for n in range(100))
    whole = [moved(n) for n in range(100)]
    assert np.mean([not any(touched(label)) for label in whole]) > 0.85


def test_of_two_chips_at_opposite_borders_the_larger_one_does_not_fall_off():
    chips = np.zeros((60, 80), dtype=bool)
    chips[:3, 60:64] = chips[52:, 6:18] = True
    sizes = np.array([moved(n, chips).sum() for n in range(100)]) / chips.sum()
    assert sizes.min() > SCALES[0] ** 2 / 2
    assert np.median(sizes) > 0.9


@pytest.mark.parametrize("breadth", [12, 20, 40])
@pytest.mark.parametrize("upright", [False, True])
def test_what_goes_through_the_photograph_goes_through_it_again(breadth, upright):
    band, place = drawn((10, 10 + breadth), (0, 80)), EVERYWHERE
    if upright:
        band, place = band.T, place.T
    labels = [moved(n, band, place) for n in range(300)]
    assert all(label.any(axis=int(upright))[[0, -1]].all() for label in labels)


def test_what_goes_through_but_for_a_pixel_at_the_far_border_goes_on_there():
    assert ends(drawn((10, 30), (0, 79)))[1] == (True, True)
    labels = [moved(n, drawn((10, 30), (0, 79))) for n in range(100)]
    assert all(ends(label)[1] == (True, True) for label in labels)


def test_only_what_goes_through_is_longer_than_its_mask_says(monkeypatch):
    shapes = [((20, 24), (10, 40)), ((20, 30), (0, 12)), ((0, 20), (40, 42)), ((50, 60), (60, 80))]
    labels = [drawn(rows, columns) for rows, columns in shapes]
    through = drawn((10, 30), (0, 80))
    now = [[moved(n, label) for n in range(60)] for label in (*labels, through)]
    monkeypatch.setattr(supply._Cut, "_to_the_far_border", lambda cut, *_: cut.label)
    before = [[moved(n, label) for n in range(60)] for label in (*labels, through)]
    assert np.array_equal(now[:-1], before[:-1])
    assert not np.array_equal(now[-1], before[-1])


@pytest.mark.parametrize("size", [(20, 20), (8, 50), (3, 3), (1, 1)])
def test_labels_stay_inside_the_object(size):
    inside = np.zeros((60, 80), dtype=bool)
    inside[5 : 5 + size[0], 7 : 7 + size[1]] = True
    for n in range(60):
        label = moved(n, inside=inside)
        assert label.any()
        assert not (label & ~inside).any()


def test_a_label_that_fits_is_not_cut_off():
    inside = np.zeros((60, 80), dtype=bool)
    inside[5:55, 5:75] = True
    chip = drawn((20, 28), (10, 22))
    areas = [moved(n, chip, inside).sum() for n in range(600)]
    assert np.median(areas) > 0.8 * chip.sum()


def test_one_pixel_is_a_label():
    dot = np.zeros((60, 80), dtype=bool)
    dot[4, 4] = True
    assert all(moved(n, label=dot).any() for n in range(50))


def test_a_share_of_labels_is_joined_with_a_mask_of_all():
    chosen = partners(0, np.arange(2000, dtype=np.uint32), np.full(2000, 7))
    # Recorded: a change of these means that no older run can be resumed.
    assert {n: mask for n, mask in enumerate(chosen[:40].tolist()) if mask >= 0} == JOINED_OF_40
    joined = chosen[chosen >= 0].tolist()
    assert abs(len(joined) / 2000 - JOINED) < 0.03
    assert set(joined) == set(range(7))


@pytest.fixture
def job(tmp_path) -> Job:
    (tmp_path / "masks").mkdir()
    paths = []
    for n in range(2):
        label = np.zeros((30, 40), dtype=np.uint8)
        label[8:12, 4 : 9 + 3 * n] = 255
        paths.append(tmp_path / "masks" / f"{n}.png")
        Image.fromarray(label).save(paths[-1])
    return Job(
        normals=photographs(tmp_path / "normals", 3),
        masks=paths,
        prompt=PROMPT,
        count=40,
        seed=7,
        composite=True,
        batch=4,
        augment=True,
    )


def written(folder):
    lines = manifest(folder)
    return lines, [np.asarray(opened(folder / line["mask"])) > 0 for line in lines]


def object_mask(folder, name, rows, columns):
    folder.mkdir(exist_ok=True)
    label = np.zeros((30, 40), dtype=np.uint8)
    label[slice(*rows), slice(*columns)] = 255
    Image.fromarray(label).save(folder / name)
    return folder / name


def test_two_masks_make_forty_labels(job, tmp_path):
    summary = fill(FakeEngine(), job, tmp_path / "run")
    lines, labels = written(tmp_path / "run")
    assert summary.pairs == 40
    assert len({label.tobytes() for label in labels}) == 40
    assert {line["label"] for line in lines} > {"0.png", "1.png"}
    assert any(" + " in line["label"] for line in lines)


@pytest.mark.parametrize("other", [0, 34])
def test_a_run_mirrors_labels_to_borders_where_one_of_its_masks_lies(job, tmp_path, other):
    for path, first in zip(job.masks, (0, other), strict=True):
        label = np.zeros((30, 40), dtype=np.uint8)
        label[10:14, first : first + 6] = 255
        Image.fromarray(label).save(path)
    fill(FakeEngine(), job, tmp_path / "run")
    lines, labels = written(tmp_path / "run")
    far = [label[:, -1].any() for line, label in zip(lines, labels, strict=True) if line["label"] == "0.png"]
    assert len(far) > 10
    assert any(far) == (other > 0)


def test_labels_stay_inside_the_object_of_their_photograph(job, tmp_path):
    boxes = [((2, 20), (3, 30)), ((10, 28), (20, 39)), ((0, 30), (0, 12))]
    paths = [object_mask(tmp_path / "o", f"{n:03d}_mask.png", *box) for n, box in enumerate(boxes)]
    fill(FakeEngine(), replace(job, objects=paths), tmp_path / "run")
    lines, labels = written(tmp_path / "run")
    for line, label in zip(lines, labels, strict=True):
        rows, columns = boxes[int(line["normal"][:3])]
        rest = label.copy()
        rest[slice(*rows), slice(*columns)] = False
        assert label.any()
        assert not rest.any()


def test_one_mask_of_the_object_serves_all_photographs(job, tmp_path):
    path = object_mask(tmp_path / "o", "any.png", (5, 25), (5, 35))
    fill(FakeEngine(), replace(job, objects=[path]), tmp_path / "run")
    assert not any(label[:5].any() or label[25:].any() for label in written(tmp_path / "run")[1])


def test_no_label_is_joined_with_a_mask_that_vanishes(job, tmp_path):
    """A speck of one pixel in a mask of four times the photograph's size."""
    speck = np.zeros((120, 160), dtype=np.uint8)
    speck[1, 1] = 255
    Image.fromarray(speck).save(tmp_path / "masks" / "speck.png")
    notices = []
    job = replace(job, masks=[*job.masks, tmp_path / "masks" / "speck.png"])
    summary = fill(FakeEngine(), job, tmp_path / "run", notify=notices.append)
    assert summary.pairs == 40
    assert any("masks left out" in notice and "speck.png" in notice for notice in notices)
    used = " ".join(line["label"] for line in manifest(tmp_path / "run"))
    assert " + " in used
    assert "speck" not in used


def small_masks(job):
    """As few pixels as the networks are told of where they are, by the authors' rule."""
    label = np.zeros((30, 40), dtype=np.uint8)
    label[11:16, 11:17] = 255
    for path in job.masks:
        Image.fromarray(label).save(path)
    return job


def test_every_label_shows_something_to_the_networks(job, tmp_path):
    fill(FakeEngine(mask_rule="authors"), small_masks(job), tmp_path / "run")
    lines, labels = written(tmp_path / "run")
    assert len({label.tobytes() for label in labels}) == 40
    assert all(line["latent_mask_cells"] for line in lines)
    # By the other rule every label shows, and the first that is made is taken.
    fill(FakeEngine(), job, tmp_path / "cover")
    same = [np.array_equal(*pair) for pair in zip(labels, written(tmp_path / "cover")[1], strict=True)]
    assert 10 < sum(same) < 40


def test_a_mask_that_shows_nowhere_else_stays_where_it_is(job, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Sight, "shows", lambda sight, label: bool(label[11:16, 11:17].all() and label.sum() == 30)
    )
    fill(FakeEngine(), replace(small_masks(job), count=4), tmp_path / "run")
    assert all(label[11:16, 11:17].all() and label.sum() == 30 for label in written(tmp_path / "run")[1])


def test_a_longer_or_resumed_run_has_the_same_labels(job, tmp_path):
    fill(FakeEngine(), job, tmp_path / "long")
    fill(FakeEngine(), replace(job, count=8), tmp_path / "short")
    assert all(
        (a == b).all()
        for a, b in zip(written(tmp_path / "short")[1], written(tmp_path / "long")[1][:8], strict=True)
    )
    (tmp_path / "long" / "test" / "hole" / "000005.png").unlink()
    before = contents(tmp_path / "long")
    fill(FakeEngine(), job, tmp_path / "long")
    after = contents(tmp_path / "long")
    assert after.pop("test/hole/000005.png")
    assert after == before


def test_an_object_that_leaves_no_place_is_told_with_its_photograph(job, tmp_path):
    paths = [object_mask(tmp_path / "o", f"{n:03d}.png", (0, 30 * (n != 1)), (0, 40)) for n in range(3)]
    with pytest.raises(MaskError, match=r"leaves no place in photograph `001\.png`: .*is all black"):
        fill(FakeEngine(), replace(job, objects=paths), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_photograph_without_a_mask_of_its_object_is_told(job, tmp_path):
    paths = [object_mask(tmp_path / "o", f"{n:03d}.png", (0, 30), (0, 40)) for n in range(2)]
    with pytest.raises(MaskError, match=r"`002\.png` has no mask of its object: add `002\.png`"):
        fill(FakeEngine(), replace(job, objects=paths), tmp_path / "run")


def test_masks_of_the_object_need_labels_that_move(job, tmp_path):
    path = object_mask(tmp_path / "o", "any.png", (5, 25), (5, 35))
    with pytest.raises(InputError, match="add `--augment-masks`"):
        fill(FakeEngine(), replace(job, objects=[path], augment=False), tmp_path / "run")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("far", [False, True])
def test_a_label_at_a_border_goes_to_the_objects_own(axis, far):
    label = np.zeros((100, 100), dtype=bool)
    label[:12, 40:60] = True
    inside = np.ones((100, 100), dtype=bool)
    inside[:9] = inside[91:] = False
    label, inside = (np.flip(one, 0) if far else one for one in (label, inside))
    if axis:
        label, inside = label.T, inside.T
    for seed in range(20):
        found = placed(label, inside, Dice(seed, 0))
        assert not (found & ~inside).any()
        assert found.sum() > 60
        lines = np.flatnonzero(found.any(axis=1 - axis))
        assert 9 in (lines.min(), 99 - lines.max())
