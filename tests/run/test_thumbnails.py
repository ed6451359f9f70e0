"""Small pictures of pairs: what they show, that one is made once, and that what is gone leaves none."""

import numpy as np
import pytest
from fake_engine import FakeEngine, contents, manifest, opened
from PIL import Image

from stage_rt.errors import StageError
from stage_rt.run import thumbnails
from stage_rt.run.fill import fill
from stage_rt.run.thumbnails import CONTEXT, LEAST_SIDE, SIDE, square_around
from stage_rt.spec import PairRecord


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


RECORD = PairRecord(
    index=1234,
    status="ok",
    image_sha256="ab" * 32,
    normal="a",
    label="b",
    prompt="p",
    seed=0,
    latent_mask_cells=1,
)


def strip(tmp_path, photo, result, label, box):
    thumbnails.put(tmp_path, "hole", RECORD, thumbnails.draw(photo, result, label, box))
    return opened(tmp_path / "report/thumbnails/hole/001/001234-abababab.jpg")


def test_before_after_and_label_are_side_by_side_at_their_own_scale(tmp_path):
    photo = np.full((60, 80, 3), 40, np.uint8)
    label = np.zeros((60, 80), bool)
    label[20:30, 30:40] = True
    result = Image.fromarray(np.where(label, 220, 40).astype(np.uint8))
    shown = np.asarray(strip(tmp_path, photo, result, label, (20, 10, 50, 40)).convert("L"), int)
    assert shown.shape == (30, 90)
    wanted = np.hstack(
        [
            np.full((30, 30), 40),
            *(np.where(label, high, low)[10:40, 20:50] for high, low in ((220, 40), (255, 0))),
        ]
    )
    assert np.abs(shown - wanted).max() < 30


def test_a_hairline_is_seen_however_much_smaller_it_is_shown(tmp_path):
    label = np.zeros((2000, 2000), bool)
    label[700, 100:1900] = True
    photo = np.zeros((2000, 2000, 3), np.uint8)
    shown = np.asarray(strip(tmp_path, photo, Image.fromarray(photo), label, (0, 0, 2000, 2000)).convert("L"))
    assert shown.shape == (SIDE, 3 * SIDE)
    assert (shown[:, -SIDE:].max(axis=0)[10:-10] > 128).all()


def test_a_line_scan_is_shown_on_black(tmp_path):
    photo = np.full((100, 14000, 3), 90, np.uint8)
    label = np.zeros((100, 14000), bool)
    label[40:60, 2000:12000] = True
    shown = np.asarray(strip(tmp_path, photo, Image.fromarray(photo), label, square_around(label)), int)
    assert shown.shape == (SIDE, 3 * SIDE, 3)
    before, after, mask = np.hsplit(shown.mean(axis=2), 3)
    for picture in (before, after):
        assert np.abs(picture[0] - 90).max() < 30
    assert mask[0, 30:110].min() > 128
    assert shown[8:].max() < 30


def test_one_is_made_for_each_pair_and_only_once(job, run):
    fill(FakeEngine(), job, run)
    names = sorted(path.name for path in (run / "report/thumbnails/hole/000").iterdir())
    assert names == [f"{line['index']:06d}-{line['image_sha256'][:8]}.jpg" for line in manifest(run)]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.jpg") if "thumbnails" in str(path)}
    fill(FakeEngine(), job, run)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_missing_is_made_from_the_files_to_the_same_bytes_and_what_is_too_much_goes(job, run):
    fill(FakeEngine(), job, run)
    whole = contents(run)
    folder = run / "report/thumbnails/hole/000"
    first, second, *_ = sorted(folder.iterdir())
    first.unlink()
    # As a machine that lost power leaves it, a crash, and a picture of an image that was painted again.
    second.write_bytes(b"")
    (folder / f".{second.name}.01234567.tmp").touch()
    (folder / f"{second.name[:7]}{'0' * 8}.jpg").touch()
    (folder / "mine.jpg").touch()
    (folder.parent / ".DS_Store").touch()
    fill(FakeEngine(), job, run)
    others = dict.fromkeys(("000/mine.jpg", ".DS_Store"), b"")
    assert contents(run) == whole | {
        f"report/thumbnails/hole/{name}": empty for name, empty in others.items()
    }


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "grown": lambda content: content + b"\0",
    "blanked": lambda content: bytes(len(content)),
    "a bit of its pixels flipped": lambda content: content[:-30] + bytes([content[-30] ^ 1]) + content[-29:],
    "a bit of its seal flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "of a release that sealed none": lambda content: content[: content.rindex(b"\xff\xd9") + 2],
}


def test_what_is_not_as_it_was_written_is_made_again_to_the_same_bytes_and_nothing_else(job, run):
    fill(FakeEngine(), job, run)
    whole = contents(run)
    paths = sorted((run / "report/thumbnails/hole/000").iterdir())
    for path, damage in zip(paths, DAMAGES.values(), strict=False):
        path.write_bytes(damage(path.read_bytes()))
    sound, linked, exchanged = paths[len(DAMAGES) :]
    linked.unlink()
    linked.symlink_to("/dev/null")
    exchanged.write_bytes(sound.read_bytes())
    before = sound.stat().st_mtime_ns
    fill(FakeEngine(), job, run)
    assert contents(run) == whole
    assert not linked.is_symlink()
    assert sound.stat().st_mtime_ns == before


def test_no_flipped_bit_is_taken_for_whole(tmp_path):
    thumbnails.put(tmp_path, "hole", RECORD, b"picture")
    assert thumbnails.whole(tmp_path, "hole", RECORD)
    path = tmp_path / thumbnails.path("hole", RECORD)
    content = bytearray(path.read_bytes())
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert not thumbnails.whole(tmp_path, "hole", RECORD)
        content[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("source", ["normal_sha256", "image_sha256", "mask_sha256"])
def test_one_that_was_drawn_from_another_file_is_not_this_pairs(tmp_path, source):
    """Two pairs have the same image where an engine paints nothing into one photograph."""
    thumbnails.put(tmp_path, "hole", RECORD, b"picture")
    other = RECORD.model_copy(update={source: RECORD.image_sha256[:8] + "cd" * 28})
    assert thumbnails.path("hole", other) == thumbnails.path("hole", RECORD)
    assert not thumbnails.whole(tmp_path, "hole", other)


def test_those_that_are_whole_are_read_and_not_drawn(job, run, monkeypatch):
    fill(FakeEngine(), job, run)
    drawn = []
    monkeypatch.setattr("stage_rt.run.report._make_thumbnail", lambda *arguments: drawn.append(arguments))
    fill(FakeEngine(), job, run)
    assert not drawn


def test_a_folder_in_the_place_of_one_is_told_of_in_a_sentence(job, run):
    fill(FakeEngine(), job, run)
    path = next((run / "report/thumbnails/hole/000").iterdir())
    path.unlink()
    path.mkdir()
    with pytest.raises(StageError, match=rf"^writing to `{path}` failed \(Is a directory\): mend that"):
        fill(FakeEngine(), job, run)


def test_the_manifest_says_what_is_shown(job, run):
    fill(FakeEngine(), job, run)
    for line in manifest(run):
        label = np.asarray(opened(run / line["mask"])) > 0
        assert tuple(line["box"]) == square_around(label)
