"""Good photographs beside the pairs: the root of a run is a data set in MVTec AD's layout."""

import os
import shutil
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from fake_engine import FakeEngine, contents, labels, opened, photographs
from PIL import Image

from stage_rt.errors import ImageError
from stage_rt.images.inputs import read_image
from stage_rt.run import good
from stage_rt.run.fill import fill
from stage_rt.run.good import place_good
from stage_rt.run.night import follow_all, plans
from stage_rt.run.painters import Alone

SUFFIXES = {"jpeg": "jpg", "tiff": "tif"}


def where(run):
    return {side: sorted(path.name for path in run.glob(f"{side}/good/*")) for side in ("train", "test")}


def test_what_was_painted_into_is_not_learned_from(job, run):
    job = replace(job, normals=photographs(run.with_name("normals"), 8), count=3)
    fill(FakeEngine(), job, run)
    used = sorted({path.name for path in run.glob("test/good/*")})
    assert len(used) == 3
    assert len(where(run)["train"]) == 5
    fill(FakeEngine(), replace(job, count=5), run)
    assert [len(names) for names in where(run).values()] == [3, 5]
    assert set(used) < set(where(run)["test"])


def test_where_all_were_painted_into_some_are_for_tests(job, run):
    fill(FakeEngine(), job, run)
    assert where(run) == {"train": ["000.png", "002.png", "003.png", "004.png"], "test": ["001.png"]}


def test_a_single_photograph_is_learned_from(tmp_path):
    paths = photographs(tmp_path / "normals", 1)
    assert place_good(tmp_path / "run", paths, paths) == {paths[0]: "train/good/000.png"}


def test_png_is_linked_and_written_where_there_are_no_links(tmp_path, monkeypatch):
    paths = photographs(tmp_path / "normals", 3)
    places = place_good(tmp_path / "linked", paths, paths)
    assert all((tmp_path / "linked" / place).samefile(path) for path, place in places.items())

    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    places = place_good(tmp_path / "copied", paths, paths)
    for path, place in places.items():
        copy = tmp_path / "copied" / place
        assert copy.read_bytes() == path.read_bytes()
        assert not copy.samefile(path)


@pytest.mark.parametrize("kind", ["jpeg", "turned", "sixteen", "palette", "tiff"])
def test_what_readers_would_see_otherwise_is_written_as_the_pairs_are(tmp_path, kind):
    source = photographs(tmp_path / "source", 1, suffix=".png")[0]
    path = tmp_path / f"photo.{SUFFIXES.get(kind, 'png')}"
    image = Image.open(source)
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    elif kind == "sixteen":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    elif kind == "palette":
        image.quantize(16).save(path)
    else:
        image.save(path)
    places = place_good(tmp_path / "run", [path], [])
    copy = opened(tmp_path / "run" / places[path])
    assert (copy.format, copy.mode) == ("PNG", "L" if kind == "sixteen" else "RGB")
    assert np.array_equal(np.asarray(copy.convert("RGB")), read_image(path))


@pytest.mark.parametrize("before", ["nothing", "link", "copy"])
def test_colours_of_16_bits_become_those_of_8_that_pairs_have(tmp_path, before):
    path, place = tmp_path / "photo.png", tmp_path / "run/train/good/photo.png"
    pixels = np.random.default_rng(0).integers(0, 2**16, (30, 40, 3), dtype=np.uint16)
    cv2.imwrite(str(path), pixels)
    place.parent.mkdir(parents=True)
    if before == "link":
        os.link(path, place)
    elif before == "copy":
        shutil.copy(path, place)
    place_good(tmp_path / "run", [path], [])
    copy = cv2.imread(str(place), cv2.IMREAD_UNCHANGED)
    assert copy.dtype == np.uint8
    assert np.array_equal(copy[:, :, ::-1], read_image(path))
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    written = place.stat().st_mtime_ns
    place_good(tmp_path / "run", [path], [])
    assert place.stat().st_mtime_ns == written


def test_photographs_of_one_name_from_two_folders_are_both_there(tmp_path):
    paths = [*photographs(tmp_path / "a", 2), *photographs(tmp_path / "b", 2, seed=1)]
    places = place_good(tmp_path / "run", paths, paths)
    names = {place.rpartition("/")[2] for place in places.values()}
    assert names == {"000.png", "001.png", "000_2.png", "001_2.png"}
    assert all((tmp_path / "run" / place).samefile(path) for path, place in places.items())


def test_a_photograph_that_was_replaced_is_replaced(tmp_path):
    paths = photographs(tmp_path / "normals", 2)
    place_good(tmp_path / "run", paths, [])
    new = photographs(tmp_path / "new", 1, seed=3)[0]
    os.utime(new, ns=(time := paths[0].stat().st_mtime_ns + 10**9, time))
    new.replace(paths[0])
    places = place_good(tmp_path / "run", paths, [])
    assert (tmp_path / "run" / places[paths[0]]).samefile(paths[0])


@pytest.mark.parametrize("other", ["spelling", "copy"])
@pytest.mark.parametrize("unused", [True, False])
def test_one_photograph_by_two_names_stands_on_one_side(job, run, tmp_path, other, unused):
    normals = tmp_path / "normals"
    again = normals / ".." / "normals"
    if other == "copy":
        again = shutil.copytree(normals, tmp_path / "copies")
        for path in sorted(again.iterdir(), reverse=True):
            path.rename(again / f"a{path.name}")
    if unused:
        photographs(normals, 14)
    jobs = [
        replace(job, normals=sorted(normals.iterdir()), count=5 if unused else 10),
        replace(job, prompt="tile+crack", normals=sorted(again.iterdir())[:5], count=5),
    ]
    made = plans(FakeEngine().spec, jobs, notify=lambda notice: None)
    follow_all(Alone(FakeEngine()), made, run, notify=lambda notice: None, progress=lambda share: None)
    shown = {side: {path.read_bytes() for path in run.glob(f"{side}/good/*")} for side in ("train", "test")}
    assert shown["train"]
    assert not shown["train"] & shown["test"]
    painted = {sample.normal.read_bytes() for plan in made for sample in plan.samples}
    if unused:
        assert shown["test"] == painted


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_name_with_no_room_to_be_staged_is_cut(tmp_path, monkeypatch, suffix):
    folder = tmp_path / "normals"
    names = ["é" * 120 + "a" * 5, "é" * 120 + "b" * 5, "c" * 237]
    paths = []
    for path, name in zip(photographs(folder, 3, suffix=suffix), names, strict=True):
        paths.append(path.rename(folder / f"{name}{suffix}"))
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError()))
    places = place_good(tmp_path / "run", paths, [])
    assert [places[path].removeprefix("train/good/") for path in paths] == [
        "é" * 100 + ".png",
        "é" * 100 + "_2.png",
        "c" * 237 + ".png",
    ]
    for path, place in places.items():
        assert np.array_equal(read_image(tmp_path / "run" / place), read_image(path))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("damage", ["gone", "empty"])
@pytest.mark.parametrize("placed", [False, True])
def test_a_photograph_that_went_in_the_night_is_named(job, run, suffix, damage, placed):
    job = replace(job, normals=photographs(run.with_name("new"), 5, suffix=suffix))
    if placed:
        fill(FakeEngine(), replace(job, count=6), run)
    first = job.normals[0]

    def end(share):
        if share == 1 and first.exists():
            first.unlink()
            if damage == "empty":
                first.touch()

    with pytest.raises(ImageError, match=r"new/000\.\w+` cannot be read any more \(.*\): put it back"):
        fill(FakeEngine(), job, run, progress=end)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_name_that_another_photograph_has_now_shows_that_one(tmp_path, monkeypatch, suffix):
    """A type is added whose folder sorts before that of the first, with photographs of the same names."""
    first = photographs(tmp_path / "b", 1, suffix=suffix)
    added = photographs(tmp_path / "a", 1, seed=1, suffix=suffix)
    os.utime(added[0], (10, 10))
    if suffix == ".png":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError()))
    place_good(tmp_path / "run", first, first)
    for _ in range(2):
        places = place_good(tmp_path / "run", [*first, *added], first)
        assert sorted(places.values()) == ["test/good/000_2.png", "train/good/000.png"]
        for path, place in places.items():
            assert np.array_equal(read_image(tmp_path / "run" / place), read_image(path))


def test_a_copy_is_held_to_its_photograph_once(tmp_path, monkeypatch):
    paths = photographs(tmp_path / "normals", 2, suffix=".jpg")
    places = place_good(tmp_path / "run", paths, [])
    before = contents(tmp_path / "run")
    for place in places.values():
        os.utime(tmp_path / "run" / place, (10, 10))
    reads = []
    monkeypatch.setattr(good, "read_image", lambda path: reads.append(path) or read_image(path))
    for _ in range(3):
        place_good(tmp_path / "run", paths, [])
    assert len(reads) == 4
    assert contents(tmp_path / "run") == before


def test_what_a_crash_left_staged_is_swept_out_and_nothing_else(job, run):
    fill(FakeEngine(), job, run)
    before = contents(run)
    names = [
        f"{side}/good/.{name}.png.0123abcd.tmp" for side in ("train", "test") for name in ("000", "mine")
    ]
    for name in names:
        (run / name).write_bytes(b"half")
    fill(FakeEngine(), job, run)
    assert contents(run) == before | {name: b"half" for name in names if "mine" in name}


def test_files_of_others_stay(job, run):
    fill(FakeEngine(), job, run)
    before = contents(run)
    (run / "train/good/mine.png").write_bytes(b"mine")
    fill(FakeEngine(), job, run)
    assert contents(run) == before | {"train/good/mine.png": b"mine"}


def test_every_png_of_a_run_is_a_sample_as_readers_of_the_layout_pair_them(job, run, tmp_path):
    """anomalib takes every PNG below the root as (split, label, name), and pairs masks with defects in order."""
    jobs = [job, replace(job, prompt="tile+crack", masks=labels(tmp_path / "cracks", 3), count=5)]
    made = plans(FakeEngine().spec, jobs, notify=lambda notice: None)
    follow_all(Alone(FakeEngine()), made, run, notify=lambda notice: None, progress=lambda share: None)
    found = sorted(path.parts[-3:] for path in run.rglob("*.[pP][nN][gG]"))
    assert all(len(path.relative_to(run).parts) == 3 for path in run.rglob("*.png"))
    assert Counter(parts[:2] for parts in found) == {
        ("train", "good"): 4,
        ("test", "good"): 1,
        ("test", "hole"): 10,
        ("test", "crack"): 5,
        ("ground_truth", "hole"): 10,
        ("ground_truth", "crack"): 5,
    }
    masks = [parts for parts in found if parts[0] == "ground_truth"]
    defects = [parts for parts in found if parts[0] == "test" and parts[1] != "good"]
    for mask, defect in zip(masks, defects, strict=True):
        assert mask[1:] == (defect[1], defect[2].replace(".png", "_mask.png"))
