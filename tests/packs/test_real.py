"""Packs of painted pairs and real photographs: the sides, what is left out, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, contents, labels, manifest, opened, photographs
from PIL import Image

from stage_rt.errors import DatasetError, EngineError, InputError, MaskError
from stage_rt.packs import FORMATS
from stage_rt.packs.pack import Request, pack
from stage_rt.packs.real import LABELLED, SHOWN
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.spec import ENGINE_FILE

NOT_MVTEC = sorted(set(FORMATS) - {"mvtec"})


def provenance(folder):
    return [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]


def sides(folder):
    """The places of real photographs in their data set, by side."""
    lines = provenance(folder)
    return {
        s: {line["real"] for line in lines if line["side"] == s and "real" in line} for s in ("train", "val")
    }


@pytest.fixture
def copied(data, tmp_path):
    """The data set, to be changed."""
    return shutil.copytree(data, tmp_path / "copy" / data.name)


@pytest.fixture
def engine(tmp_path):
    """``engine(held_out, learned)`` is the folder of one whose model has those in its provenance."""

    def made(fingerprint="0" * 64, **listed):
        spec = FakeEngine(fingerprint=fingerprint).spec
        model = spec.model.model_copy(update={"provenance": listed})
        (tmp_path / "engine").mkdir()
        sealed = spec.model_copy(update={"model": model}).sealed()
        (tmp_path / "engine" / ENGINE_FILE).write_text(sealed)
        return tmp_path / "engine"

    return made


def names(data: Path, *kinds: str) -> list[str]:
    """As a model's provenance lists them."""
    return [
        f"{data.name}/{kind}/{path.name}"
        for kind in kinds
        for path in sorted((data / "test" / kind).iterdir())
    ]


def add(data: Path, kind: str, name: str, photo, mask: Path) -> None:
    for folder in (data / "test" / kind, data / "ground_truth" / kind):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(data / "test" / kind / name)
    shutil.copy(mask, data / "ground_truth" / kind / f"{Path(name).stem}_mask.png")


@pytest.mark.parametrize("form", NOT_MVTEC)
def test_pairs_train_and_real_photographs_validate(packed, data, form):
    folder, summary = packed(form, real=data)
    lines = provenance(folder)
    assert {line["side"] for line in lines if "real" not in line} == {"train"}
    found = sides(folder)
    for side in ("train", "val"):
        assert {place.split("/")[1] for place in found[side]} >= {"crack", "hole"}
    assert sorted(found["train"] | found["val"]) == sorted(
        str(path.relative_to(data)) for path in (data / "test").rglob("*.png")
    )
    assert not found["train"] & found["val"]
    assert {place for place in found["val"] if "good" in place} == {f"test/good/00{n}.png" for n in range(3)}
    assert (summary.pairs("train"), summary.pairs("val")) == (22, 0)
    assert summary.painted("train") == {"hole": 13, "crack": 9}
    assert {kind: sum(summary.real[s][kind] for s in summary.real) for kind in ("hole", "crack")} == {
        "hole": 8,
        "crack": 5,
    }
    assert summary.pictures["val"] == summary.real["val"] | {"good": 3}
    assert json.loads((folder / "pack.json").read_text())["real"] == summary.real


@pytest.mark.parametrize("form", NOT_MVTEC)
def test_the_same_files_give_the_same_bytes(packed, data, form):
    folder, _ = packed(form, real=data)
    before = contents(folder)
    shutil.rmtree(folder)
    assert contents(packed(form, real=data)[0]) == before


def test_images_are_the_photographs_and_masks_their_labels(packed, data):
    folder, _ = packed("mmseg", real=data)
    for line in provenance(folder):
        if "real" in line:
            image = np.asarray(opened(folder / line["file"]))
            np.testing.assert_array_equal(image, np.asarray(opened(data / line["real"])))
            mask = np.asarray(opened(folder / line["file"].replace("img_dir", "ann_dir")))
            number = ["good", "crack", "hole"].index(line["type"])
            assert set(np.unique(mask)) <= {0, number}
            if number:
                label = opened(data / "ground_truth" / line["type"] / line["label"])
                np.testing.assert_array_equal(mask > 0, np.asarray(label) > 0)


def test_progress_rises_to_one(runs, data, tmp_path):
    told = []
    pack(Request(runs, "coco", real=data), tmp_path / "pack", told.append)
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_type_that_was_not_painted_goes_along(packed, copied):
    mask = copied / "ground_truth/hole/000_mask.png"
    for n, photo in enumerate(photographs(copied.parent / "more", 4, seed=40)):
        add(copied, "dent", f"{n}.png", np.asarray(opened(photo)), mask)
    _, summary = packed("yolo", real=copied)
    assert summary.classes == ["crack", "dent", "hole"]
    assert all(summary.real[side]["dent"] for side in ("train", "val"))


@pytest.mark.parametrize(("split", "side"), [(0, "val"), (1, "train")])
def test_a_split_of_all_or_nothing(packed, data, split, side):
    _, summary = packed("yolo", real=data, split=split)
    assert sum(summary.real[side].values()) == 13
    assert summary.pairs("train") == 22
    assert summary.pictures["val"]["good"] == 3


def test_photographs_of_one_defect_stand_on_one_side(packed, copied):
    """Of three defects there are three photographs each, lit otherwise, and one under another type as well."""
    for kind in ("hole", "crack"):
        shutil.rmtree(copied / "test" / kind)
    for part, photo in enumerate(photographs(copied.parent / "parts", 3, (96, 72), seed=50)):
        pixels = np.asarray(opened(photo)).astype(np.float64)
        drawn = np.zeros((72, 96), np.uint8)
        drawn[10 + 15 * part : 24 + 15 * part, 10 + 25 * part : 30 + 25 * part] = 255
        Image.fromarray(drawn).save(mask := copied.parent / f"{part}.png")
        for n, share in enumerate((1.0, 0.9, 0.8)):
            add(copied, "hole", f"{part}-{n}.png", (pixels * share).astype(np.uint8), mask)
        add(copied, "crack", f"{part}.png", pixels.astype(np.uint8), mask)
    for seed in range(4):
        folder, _ = packed("yolo", real=copied, split=0.5, seed=seed)
        of = {
            side: {place.split("/")[2][0] for place in each if "good" not in place}
            for side, each in sides(folder).items()
        }
        assert of["train"]
        assert of["val"]
        assert not of["train"] & of["val"]
        shutil.rmtree(folder)


def test_a_good_photograph_of_a_labelled_part_does_not_validate(packed, copied):
    """Lit otherwise: it shows what is learned from, or calls a defect good."""
    shutil.rmtree(copied / "test/crack")
    holes = photographs(copied / "test/hole", 8, (96, 72), seed=50)
    for mask in (copied / "ground_truth/hole").iterdir():
        opened(mask).resize((96, 72), Image.Resampling.NEAREST).save(mask)
    photographs(copied / "test/good", 3, (96, 72), seed=51)
    dark = (np.asarray(opened(holes[2])) * 0.8).astype(np.uint8)
    Image.fromarray(dark).save(copied / "test/good/dark.png")
    folder, summary = packed("yolo", real=copied)
    assert {place for place in sides(folder)["val"] if "good" in place} == {
        f"test/good/00{n}.png" for n in range(3)
    }
    assert summary.skipped[SHOWN] == 1


@pytest.mark.parametrize("by_model", [False, True])
def test_what_was_painted_into_a_labelled_part_is_left_out_however_sides_are_decided(
    packed, copied, engine, tmp_path, by_model
):
    """It lies among the good ones to learn from, lit otherwise, and came after a training."""
    shutil.rmtree(copied / "test/crack")
    holes = photographs(copied / "test/hole", 8, (96, 72), seed=50)
    for mask in (copied / "ground_truth/hole").iterdir():
        opened(mask).resize((96, 72), Image.Resampling.NEAREST).save(mask)
    normals = photographs(copied / "train/good", 3, (96, 72), seed=52)
    normals.append(copied / "train/good/dark.png")
    Image.fromarray((np.asarray(opened(holes[2])) * 0.8).astype(np.uint8)).save(normals[-1])
    masks = labels(tmp_path / "masks", 4, (96, 72))
    job = Job(normals, masks, "tile+hole", count=8, seed=1, composite=True, batch=4)
    fill(FakeEngine(), job, tmp_path / "run")
    into = sum(line["normal"] == "dark.png" for line in manifest(tmp_path / "run"))
    split = {"engine": engine(held_out=names(copied, "hole")[2:5])} if by_model else {}
    folder, summary = packed(
        "yolo", real=copied, runs=[tmp_path / "run"], normals=[copied / "train/good"], **split
    )
    assert into
    assert summary.skipped == {SHOWN: 1 + into}
    assert "dark.png" not in {line.get("normal") for line in provenance(folder)}


class TestByTheModel:
    """What its training held out validates, whatever the split says."""

    def test_held_out_photographs_validate(self, packed, data, engine):
        held = names(data, "hole")[2:5] + names(data, "crack")[:1]
        every = names(data, "hole", "crack")
        made = engine(held_out=held, learned=[name for name in every if name not in held])
        folder, summary = packed("coco", real=data, engine=made, split=1)
        assert {f"{data.name}/{place[5:]}" for place in sides(folder)["val"] if "good" not in place} == set(
            held
        )
        assert summary.real["val"] == {"hole": 3, "crack": 1}
        assert json.loads((folder / "pack.json").read_text())["split"] == {"engine": "0" * 64}

    def test_a_model_of_before_does_not_list_what_it_learned(self, packed, data, engine):
        _, summary = packed("coco", real=data, engine=engine(held_out=names(data, "hole")[:2]))
        assert summary.real == {"train": {"hole": 6, "crack": 5}, "val": {"hole": 2}}

    def test_what_shows_a_part_that_validates_is_left_out(self, packed, copied, here, runs, engine):
        shutil.copytree(here / "normals", copied / "train/good")
        held = [*names(copied, "hole")[:2], f"{copied.name}/good/004.png", f"{copied.name}/good/005.png"]
        folder, summary = packed("yolo", real=copied, engine=engine(held_out=held))
        shown = [line for run in runs for line in manifest(run) if line["normal"] in ("004.png", "005.png")]
        assert summary.skipped[SHOWN] == 2 + sum(line["status"] == "ok" for line in shown) > 2
        assert not {"004.png", "005.png"} & {line.get("normal") for line in provenance(folder)}

    def test_a_model_that_saw_everything(self, refused, data, engine):
        match = "saw every labelled photograph, so that none is left to validate on: leave out `--engine`"
        refused(
            InputError, match, real=data, engine=engine(held_out=[], learned=names(data, "hole", "crack"))
        )

    def test_a_photograph_that_came_later(self, refused, data, engine):
        made = engine(held_out=names(data, "hole"), learned=names(data, "crack")[:4])
        refused(
            DatasetError,
            r"crack/004.png` was not there when the model was trained: take it",
            real=data,
            engine=made,
        )

    def test_another_data_set(self, refused, data, engine):
        made = engine(held_out=["bottle/hole/000.png"])
        refused(
            DatasetError, "holds no photograph that the engine's model held out: give", real=data, engine=made
        )

    def test_another_engine(self, refused, data, engine):
        made = engine(fingerprint="1" * 64, held_out=names(data, "hole"))
        refused(
            InputError,
            r"runs\d*/hole` was not painted by `.*engine`: give its engine",
            real=data,
            engine=made,
        )

    def test_no_engine(self, refused, data):
        refused(EngineError, "is not an engine folder", real=data, engine=data)

    def test_an_engine_without_real_photographs(self, refused, engine):
        refused(InputError, "none are given: give `--real DATA` too", engine=engine(held_out=["a"]))


@pytest.fixture
def from_masks(copied, tmp_path):
    """``from_masks(masks, ...)`` fills a run from masks of the data set."""

    def run(masks, **options):
        normals = photographs(tmp_path / "normals", 6, seed=60)
        given = {"count": 16, "seed": 1, "composite": True, "batch": 4} | options
        fill(FakeEngine(), Job(normals, masks, "tile+hole", **given), tmp_path / "run")
        return tmp_path / "run"

    return run


class TestLabels:
    """A pair whose label is that of a photograph that validates tells where its defect is."""

    def test_they_are_known_by_what_the_masks_hold(self, packed, copied, from_masks):
        """Masks of other names count, those of the same names that hold something else do not."""
        masks = labels(copied / "ground_truth/hole", 8)
        moved = [Path(shutil.copy(path, copied.parent / f"own-{path.name}")) for path in masks[:7]]
        (copied.parent / "own").mkdir()
        other = copied.parent / "own" / masks[7].name
        label = np.zeros((30, 40), np.uint8)
        label[20:25, 3:9] = 255
        Image.fromarray(label).save(other)
        run = from_masks([*moved, other])
        folder, summary = packed("yolo", real=copied, runs=[run], normals=[])
        out = {f"own-{Path(place).stem}_mask.png" for place in sides(folder)["val"] if "hole" in place}
        kept = {line["label"] for line in provenance(folder) if "real" not in line}
        alike = {
            path.name
            for path in moved
            if any(
                (copied.parent / name).read_bytes() == path.read_bytes()
                for name in out - {"own-007_mask.png"}
            )
        }
        assert alike
        assert kept == {path.name for path in (*moved, other)} - alike
        assert summary.skipped == {LABELLED: 2 * len(alike)}

    def test_those_that_were_joined_by_their_names(self, packed, copied, from_masks):
        masks = sorted((copied / "ground_truth/hole").iterdir())
        run = from_masks(masks, augment=True, count=32)
        assert any(" + " in line["label"] for line in manifest(run))
        folder, summary = packed("yolo", real=copied, runs=[run], normals=[])
        out = {f"{Path(place).stem}_mask.png" for place in sides(folder)["val"] if "hole" in place}
        lines = [line for line in provenance(folder) if "real" not in line]
        assert out
        assert lines
        joined = [line["label"].split(" + ") for line in manifest(run)]
        assert len(lines) + summary.skipped[LABELLED] == 32
        assert not any(out & set(line["label"].split(" + ")) for line in lines)
        assert summary.skipped[LABELLED] >= sum(bool(out & set(each)) for each in joined)

    def test_nothing_is_left(self, refused, copied, from_masks):
        run = from_masks(sorted((copied / "ground_truth/hole").iterdir()))
        match = f"no pair to pack: of the samples 16 are {LABELLED}: paint with the masks of"
        refused(InputError, match, runs=[run], real=copied, split=0)


@pytest.fixture
def refused(runs, tmp_path):
    """One sentence, and nothing on the disk."""

    def run(error, match, form="yolo", **options):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(error, match=match) as raised:
            pack(Request(**({"runs": runs, "format": form} | options)), tmp_path / "pack")
        assert str(raised.value).isprintable()
        assert sorted(tmp_path.iterdir()) == before

    return run


class TestRefused:
    def test_a_format_that_learns_from_good_ones(self, refused, data):
        refused(
            InputError,
            "readers of `mvtec` learn from good photographs alone.*: leave out",
            "mvtec",
            real=data,
        )

    def test_a_photograph_on_both_sides(self, refused, copied, engine):
        """By the model's split, under another name, type and format."""
        photo = np.asarray(opened(copied / "test/hole/000.png"))
        add(copied, "crack", "twin.bmp", photo, copied / "ground_truth/hole/000_mask.png")
        made = engine(held_out=names(copied, "hole"))
        match = (
            r"hole/000.png` is to validate and is `.*crack/twin.bmp`, which is .*: take `.*hole/000.png` out"
        )
        refused(DatasetError, match, real=copied, engine=made)

    def test_a_good_photograph_that_is_a_labelled_one(self, refused, copied):
        opened(copied / "test/hole/000.png").save(copied / "test/good/again.tif")
        match = "good/again.tif` is to validate and is `.*hole/000.png`, which is to be learned from: take `.*tif`"
        refused(DatasetError, match, real=copied, split=1)

    def test_a_photograph_that_was_painted_into(self, refused, copied, here):
        shutil.copy(here / "normals/003.png", copied / "test/good/again.png")
        refused(DatasetError, "good/again.png` is to validate and was painted into: take `", real=copied)

    def test_all_that_stand_on_both_sides_are_told_at_once(self, refused, copied, here):
        """What is to go are those that validate: without one of the others nobody could pack the runs."""
        shutil.copy(here / "normals/000.png", copied / "test/good/again.png")
        for n in range(1, 7):
            opened(here / f"normals/00{n}.png").save(copied / f"test/good/again{n}.bmp")
        match = (
            r"7 photographs are to validate and may not \(`.*good/again.png` was painted into; "
            r"`.*good/again1.bmp` is `.*normals/001.png`, which is to be learned from; .*; and so on with 2 more\): "
            "take them out of the data set, and leave those that are learned from$"
        )
        refused(DatasetError, match, real=copied, normals=[here / "normals"])

    @pytest.mark.parametrize("given", [True, False])
    def test_one_that_was_painted_into_and_saved_again(self, refused, copied, here, given):
        opened(here / "normals/003.png").save(copied / "test/good/again.bmp")
        if not given:
            shutil.copytree(here / "normals", copied / "train/good")
        normals = [here / "normals"] if given else []
        match = (
            "good/again.bmp` is to validate and is `.*003.png`, which is to be learned from: take `.*bmp` out"
        )
        refused(DatasetError, match, real=copied, normals=normals)

    def test_one_defect(self, refused, copied):
        shutil.rmtree(copied / "test/crack")
        for path in sorted((copied / "test/hole").iterdir())[1:]:
            path.unlink()
        refused(
            InputError, "show one defect, which a split would put on both sides: label another", real=copied
        )

    def test_no_such_types(self, refused, copied):
        for kind in ("hole", "crack"):
            for folder in ("test", "ground_truth"):
                (copied / folder / kind).rename(copied / folder / f"{kind}s")
        match = r"no labelled photographs of what the runs painted \(crack, hole\): give the data set"
        refused(DatasetError, match, real=copied)

    def test_another_object(self, refused, copied):
        other = copied.rename(copied.with_name("bottle"))
        match = "bottle` is called 'bottle', and the runs painted 'tile\\+crack': give the data set of that"
        refused(DatasetError, match, real=other)

    def test_several_objects(self, refused, copied):
        shutil.copytree(copied, copied.parent / "other")
        refused(
            DatasetError, r"holds several objects \(other, tile\): give the folder of one", real=copied.parent
        )

    def test_a_type_that_is_no_name(self, refused, copied):
        for folder in ("test", "ground_truth"):
            (copied / folder / "crack").rename(copied / folder / "a\nb")
        refused(DatasetError, r"'a\\nb' cannot be the name of a class: rename", real=copied)

    def test_painted_defects(self, refused, runs):
        refused(
            DatasetError, "are painted, as its `run.json` tells: give a data set of real ones", real=runs[0]
        )

    def test_no_layout(self, refused, here):
        refused(DatasetError, "is in no known layout: arrange it", real=here / "normals")

    def test_a_black_mask(self, refused, copied):
        Image.new("L", (40, 30)).save(copied / "ground_truth/crack/002_mask.png")
        refused(MaskError, "crack/002_mask.png` is all black: paint", real=copied)
        refused(MaskError, "crack/002_mask.png` is all black: paint", real=copied, split=1)
