"""What a pack of runs holds, and what is refused."""

import fcntl
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_engine import FakeEngine, contents, labels, manifest, opened, photographs
from PIL import Image

from stage_rt.errors import DatasetError, InputError, MissingExtraError, RunError
from stage_rt.files import locked, sha256
from stage_rt.images.inputs import network_mask
from stage_rt.packs import FORMATS
from stage_rt.packs.pack import Request, pack
from stage_rt.progress import silent
from stage_rt.run.fill import fill, follow
from stage_rt.run.job import Job
from stage_rt.run.ledger import Place
from stage_rt.run.night import follow_all, plans
from stage_rt.run.painters import Alone
from stage_rt.run.plan import make_plan
from stage_rt.run.shards import take


def provenance(folder):
    return [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]


@pytest.fixture
def copied(runs, tmp_path):
    """Both runs, to be spoilt."""
    return [shutil.copytree(run, tmp_path / "spoilt" / run.name) for run in runs]


@pytest.fixture
def made(tmp_path):
    """``made(name, ...)`` fills a run of its own."""

    def run(name, *, engine=None, size=(40, 30), prompt="tile+hole", normals=5, **options):
        folder = tmp_path / name
        given = {"count": 6, "seed": 1, "composite": True, "batch": 4} | options
        job = Job(
            normals=photographs(folder / "normals", normals, size),
            masks=labels(folder / "masks", 4, size),
            prompt=prompt,
            **given,
        )
        fill(engine or FakeEngine(), job, folder / "run")
        return folder / "run"

    return run


def spoil_line(run, number, change):
    path = run / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[number : number + 1] = change(lines[number])
    path.write_text("".join(lines))


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_no_photograph_stands_on_both_sides(packed, form):
    folder, summary = packed(form)
    lines = provenance(folder)
    sides = {side: {line["normal"] for line in lines if line["side"] == side} for side in ("train", "val")}
    assert sides["train"]
    assert sides["val"]
    assert not sides["train"] & sides["val"]
    for side in ("train", "val"):
        for kind, number in summary.pictures[side].items():
            assert sum((line["side"], line["type"]) == (side, kind) for line in lines) == number


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """``normals`` holds every photograph under two names, three are painted into; read only."""
    folder = tmp_path_factory.mktemp("doubled")
    for path in photographs(folder / "normals", 5):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    normals = sorted((folder / "normals").iterdir())
    job = Job(normals, labels(folder / "masks", 4), "tile+hole", 8, 1, composite=True, batch=4)
    fill(FakeEngine(), job, folder / "run")
    return folder


@pytest.mark.parametrize("count", [1, 8])
def test_photographs_whose_names_become_one_text_are_told_apart(tmp_path, count):
    """Names on a disk need not be text, and those of a manifest are; one pair uses one of two, eight use both."""
    paths = photographs(tmp_path / "normals", 2)
    normals = [
        path.rename(os.fsdecode(os.fsencode(path.parent) + name))
        for path, name in zip(paths, (b"/gut_\xfc.png", b"/gut_\xfd.png"), strict=True)
    ]
    job = Job(normals, labels(tmp_path / "masks", 4), "tile+hole", count, 1, composite=True, batch=4)
    fill(FakeEngine(), job, tmp_path / "run")
    lines = manifest(tmp_path / "run")
    assert {line["normal"] for line in lines} == {"gut_\ufffd.png"}
    used = {line["normal_sha256"] for line in lines}
    assert len(used) == min(count, 2)
    request = Request([tmp_path / "run"], "coco", split=1, normals=[tmp_path / "normals"])
    assert pack(request, tmp_path / "pack").pictures["train"] == {"hole": count, "good": 2}
    [changed] = [path for path in normals if sha256(path) in used][:1]
    photograph = np.asarray(opened(changed)).copy()
    photograph[0, 0] ^= 255
    changed.unlink()  # The run may hold a link to it.
    Image.fromarray(photograph).save(changed)
    with pytest.raises(DatasetError, match=r"does not hold the photographs of `.*run` as they were"):
        pack(request, tmp_path / "other")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("form", ["yolo", "mvtec"])
def test_no_content_stands_on_both_sides(doubled, tmp_path, form, given):
    normals = [doubled / "normals"] if given else []
    for seed in range(5):
        folder = tmp_path / str(seed)
        pack(Request([doubled / "run"], form, split=0.5, seed=seed, normals=normals), folder)
        sides = {"train": set(), "val": set()}
        for line in provenance(folder):
            sides[line["side"]].add((doubled / "normals" / line["normal"]).read_bytes())
        assert not sides["train"] & sides["val"]
        assert sides["train"] or not (given or form == "yolo")
        assert sides["val"]


def test_all_that_had_one_name_stands_on_one_side(tmp_path):
    normals = [*photographs(tmp_path / "a", 4), *photographs(tmp_path / "b", 4, seed=1)]
    more = [shutil.copy(path, tmp_path / f"{n}{path.name}") for n, path in enumerate(normals)]
    job = Job(
        [*normals, *map(Path, more)],
        labels(tmp_path / "masks", 4),
        "tile+hole",
        16,
        1,
        composite=True,
        batch=4,
    )
    fill(FakeEngine(), job, tmp_path / "run")
    digests = {line["index"]: line["normal_sha256"] for line in manifest(tmp_path / "run")}
    assert len(digests) == 2 * len(set(digests.values())) == 16
    for seed in range(5):
        pack(Request([tmp_path / "run"], "yolo", split=0.5, seed=seed), tmp_path / str(seed))
        sides = {"train": set(), "val": set()}
        for line in provenance(tmp_path / str(seed)):
            sides[line["side"]].add(digests[line["index"]])
        assert sides["train"]
        assert not sides["train"] & sides["val"]


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"mvtec"}))
def test_every_pair_and_every_good_photograph_is_there_once(packed, runs, form):
    folder, summary = packed(form)
    lines = provenance(folder)
    expected = [
        (place, line["index"], line["normal"], line["label"], line["seed"], line["fill"])
        for place, run in enumerate(runs)
        for line in manifest(run)
        if line["status"] == "ok"
    ]
    painted = [line for line in lines if line["type"] != "good"]
    found = [tuple(line[k] for k in ("run", "index", "normal", "label", "seed", "fill")) for line in painted]
    assert found == expected
    assert sorted(line["normal"] for line in lines if line["type"] == "good") == [
        f"{n:03d}.png" for n in range(9)
    ]
    assert all((folder / line["file"]).is_file() for line in lines)
    assert summary.skipped == {"failed": 1}
    described = json.loads((folder / "pack.json").read_text())
    assert described["runs"][1] == {
        **{"engine": "0" * 64, "backend": "onnxruntime", "sampler": "stage", "prompt": "tile+crack"},
        **{"count": 9, "seed": 8, "composite": True, "recipe": "test"},
    }


def test_images_are_those_of_the_run_and_good_ones_the_photographs(packed, here, runs):
    folder, _ = packed("mmseg")
    for line in provenance(folder):
        image = folder / line["file"]
        if line["type"] == "good":
            expected = np.asarray(opened(here / "normals" / line["normal"]))
            np.testing.assert_array_equal(np.asarray(opened(image)), expected)
        else:
            original = runs[line["run"]] / f"test/{line['type']}/{line['index']:06d}.png"
            assert os.path.samefile(image, original)


def test_what_a_pack_that_was_killed_had_staged_is_removed(packed, tmp_path):
    left = tmp_path / ".yolo.0123abcd.tmp"
    (left / "images").mkdir(parents=True)
    packed("yolo")
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_where_links_are_refused_files_are_copied(packed, runs, monkeypatch):
    def refused(*_):
        raise OSError("no links here")

    linked, _ = packed("mvtec")
    before = contents(linked)
    shutil.rmtree(linked)
    monkeypatch.setattr(os, "link", refused)
    folder, _ = packed("mvtec")
    assert contents(folder) == before
    assert (folder / "test/hole/000000.png").stat().st_nlink == 1


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_the_same_runs_give_the_same_bytes(packed, form):
    folder, _ = packed(form)
    before = contents(folder)
    shutil.rmtree(folder)
    assert contents(packed(form)[0]) == before


def test_runs_are_left_as_they_are(packed, runs):
    before = [contents(run) for run in runs]
    packed("coco")
    assert [contents(run) for run in runs] == before


def test_a_mvtec_pack_without_photographs_tests_every_pair(packed):
    folder, summary = packed("mvtec", normals=[])
    assert summary.pictures == {"train": {}, "val": {"hole": 13, "crack": 9}}
    assert not (folder / "train").exists()


def test_pairs_of_learned_photographs_are_left_out_of_a_mvtec_pack(packed):
    folder, summary = packed("mvtec")
    assert summary.pictures["train"] == {"good": 5}
    assert summary.pictures["val"]["good"] == 4
    assert summary.pairs("val") + summary.skipped["painted into train/good"] == 22
    assert summary.pairs("val") > 0
    numbers = sorted(path.name for path in (folder / "ground_truth/hole").iterdir())
    assert numbers == [f"{n:06d}_mask.png" for n in range(summary.pictures["val"]["hole"])]


def test_coco_tells_where_an_image_comes_from(packed):
    folder, _ = packed("coco")
    told = {}
    for side in ("train", "val"):
        for image in json.loads((folder / f"annotations/instances_{side}.json").read_text())["images"]:
            told[f"{side}/{image['file_name']}"] = image["extra"]
    lines = {line.pop("file"): line for line in provenance(folder)}
    assert told == {
        file: {k: v for k, v in line.items() if k not in ("side", "type")} for file, line in lines.items()
    }


def never_painted(stream):
    return stream % 2**20 == 2


def test_weak_pairs_can_be_left_out(made, tmp_path):
    run = made("weak", engine=FakeEngine(idle=never_painted), min_fill=0.5, retries=1)
    with_weak = pack(Request([run], "yolo"), tmp_path / "all")
    without = pack(Request([run], "yolo", weak=False), tmp_path / "some")
    assert (with_weak.skipped, without.skipped) == ({}, {"weak": 1})
    assert [line["index"] for line in provenance(tmp_path / "some")] == [0, 1, 3, 4, 5]
    assert [line.get("weak") for line in provenance(tmp_path / "all")] == [None, None, True, None, None, None]


def test_grey_photographs_and_other_files_become_what_the_pairs_are(tmp_path):
    normals = photographs(tmp_path / "normals", 4, mode="L", suffix=".jpg")
    job = Job(normals, labels(tmp_path / "masks", 4), "tile+hole", 4, 1, composite=True, batch=4)
    fill(FakeEngine(), job, tmp_path / "run")
    pack(Request([tmp_path / "run"], "mmseg", normals=[tmp_path / "normals"]), tmp_path / "pack")
    written = list((tmp_path / "pack").glob("img_dir/*/*.png"))
    assert len(written) == 8
    assert {opened(image).mode for image in written} == {"L"}
    assert {image.read_bytes()[:4] for image in written} == {b"\x89PNG"}


@pytest.mark.parametrize(("mode", "depth"), [("L", "1"), ("RGB", "3")])
def test_voc_tells_of_as_many_channels_as_there_are(tmp_path, mode, depth):
    normals = photographs(tmp_path / "normals", 4, mode=mode)
    job = Job(normals, labels(tmp_path / "masks", 4), "tile+hole", 4, 1, composite=True, batch=4)
    fill(FakeEngine(), job, tmp_path / "run")
    pack(Request([tmp_path / "run"], "voc", normals=[tmp_path / "normals"]), tmp_path / "pack")
    told = [ElementTree.parse(path) for path in (tmp_path / "pack/Annotations").iterdir()]
    assert len(told) == 8
    assert {one.findtext("size/depth") for one in told} == {depth}


def test_a_stop_leaves_nothing(runs, tmp_path):
    def stop(share):
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(Request(runs, "coco"), tmp_path / "pack", stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_rises_to_one(runs, tmp_path):
    told = []
    pack(Request(runs, "voc"), tmp_path / "pack", told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 1)


def test_runs_of_an_object_of_many_sizes_go_together(made, tmp_path):
    normals = [
        *photographs(tmp_path / "normals", 2, (48, 32)),
        *photographs(tmp_path / "more", 2, (60, 40)),
    ]
    job = Job(normals, labels(tmp_path / "masks", 4, (48, 32)), "tile+crack", 8, 1, composite=True, batch=4)
    fill(FakeEngine(), job, tmp_path / "mixed")
    summary = pack(Request([made("plain"), tmp_path / "mixed"], "voc"), tmp_path / "pack")
    assert summary.pairs("train") + summary.pairs("val") == 6 + 8


class TestRefused:
    """One sentence that names the thing and the fix, and nothing on the disk."""

    @pytest.fixture
    def refused(self, tmp_path):
        def run(error, match, runs, form="yolo", **options):
            before = sorted(tmp_path.iterdir())
            with pytest.raises(error, match=match) as raised:
                pack(Request(runs, form, **options), tmp_path / "pack")
            assert str(raised.value).isprintable()
            assert raised.value.remedy or ":" in str(raised.value) or "," in str(raised.value)
            assert sorted(tmp_path.iterdir()) == before

        return run

    def test_no_run(self, refused, here):
        refused(RunError, r"normals` is not a run \(no run.json\): make one", [here / "normals"])

    def test_a_run_that_is_not_there(self, refused, here):
        refused(RunError, "nowhere` is not a run", [here / "nowhere"])

    def test_an_unfinished_run(self, refused, copied):
        spoil_line(copied[0], 13, lambda line: [])
        refused(RunError, r"hole` is not finished \(13 of 14 samples\): run its", copied)

    def test_a_run_that_was_just_begun(self, refused, copied):
        (copied[0] / "manifest.jsonl").unlink()
        refused(RunError, r"hole` is not finished \(0 of 14 samples\)", copied)

    def test_a_folder_in_what_is_read(self, copied, data, tmp_path):
        real = shutil.copytree(data, tmp_path / "real" / data.name)
        for output in (copied[1] / "test/pack", real / "test/pack"):
            with pytest.raises(InputError, match=r"test/pack` would lie in `.*: choose another `-o`"):
                pack(Request(copied, "coco", real=real), output)
            assert not output.exists()

    def test_a_pack_that_another_process_writes(self, copied, tmp_path):
        with (
            locked(tmp_path / "pack", lambda: None),
            pytest.raises(InputError, match=r"pack` is being written by another process: wait for it to end"),
        ):
            pack(Request(copied, "coco"), tmp_path / "pack")

    def test_a_run_that_crashed_in_a_line(self, refused, copied):
        spoil_line(copied[0], 13, lambda line: [line[:50]])
        refused(RunError, r"hole` is not finished \(13 of 14 samples\)", copied)

    def test_a_run_that_paints_something_again(self, refused, copied):
        spoil_line(copied[0], 5, lambda line: [line, line])
        refused(RunError, r"hole` is not finished \(6 of 14 samples\)", copied)

    def test_a_changed_line(self, refused, copied):
        spoil_line(copied[0], 5, lambda line: [line.replace('"seed":7', '"seed":8')])
        refused(RunError, "manifest.jsonl` is damaged in line 6: delete that line", copied)

    def test_a_run_that_is_being_filled(self, refused, copied):
        with (copied[1] / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            refused(RunError, "crack` is being filled: wait", copied)

    @pytest.mark.parametrize("file", ["test/crack/000004.png", "ground_truth/crack/000004_mask.png"])
    def test_a_changed_file(self, refused, copied, file):
        path = copied[1] / file
        image = np.asarray(opened(path)).copy()
        image[0, 0] ^= 255
        Image.fromarray(image).save(path)
        refused(RunError, f"{file}` was changed after it was written: run its", copied)

    def test_a_file_that_is_no_image_any_more(self, refused, copied):
        (copied[1] / "test/crack/000004.png").write_bytes(b"nothing")
        refused(RunError, "000004.png` was changed after it was written: run its", copied)

    def test_a_missing_file(self, refused, copied):
        (copied[1] / "ground_truth/crack/000004_mask.png").unlink()
        refused(RunError, "000004_mask.png` is missing: run its", copied)

    def test_a_damaged_description(self, refused, copied):
        (copied[1] / "run.json").write_text("{}")
        refused(RunError, "run.json` is not valid at engine", copied)

    def test_objects_of_other_sizes(self, refused, runs, made):
        other = made("other", size=(48, 32))
        refused(
            RunError, r"hole` are 40x30 and those of `.*other/run` 48x32.*: pack them apart", [*runs, other]
        )

    def test_a_run_twice(self, refused, runs):
        refused(InputError, "hole` is given 2 times: name every run once", [runs[0], runs[0]])

    @pytest.mark.parametrize("shards", [(None, None), (None, 1), (1, 1), (1, 2)])
    def test_two_runs_of_one_job(self, refused, tmp_path, shards):
        normals, masks = photographs(tmp_path / "normals", 5), labels(tmp_path / "masks", 4)
        runs = [tmp_path / f"run{n}" for n in range(2)]
        for run, number, count in zip(runs, shards, (8, 12), strict=True):
            job = Job(normals, masks, "tile+hole", count, 1, composite=True, batch=2)
            plan = make_plan(FakeEngine().spec, job, lambda notice: None)
            plan = take(plan, number, 2) if number else plan
            follow(Alone(FakeEngine()), plan, Place.of(run), notify=lambda notice: None, progress=silent)
        if shards == (1, 2):
            assert pack(Request(runs, "yolo"), tmp_path / "pack").pairs("train")
        else:
            refused(
                InputError, "run0` and `.*run1` are runs of one job and have the same pairs: leave one", runs
            )

    def test_a_link_to_itself(self, refused, runs, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        refused(RunError, "run.json` cannot be read", [tmp_path / "loop"])
        with pytest.raises(InputError, match="loop` is a file, choose another `-o`"):
            pack(Request(runs, "yolo"), tmp_path / "loop")

    @pytest.mark.parametrize("name", ["000004_mask.png", "run.json", ".lock"])
    def test_a_file_that_may_not_be_read(self, refused, copied, monkeypatch, name):
        opened_by = Path.open

        def denied(path, *arguments, **options):
            if path.name == name:
                raise PermissionError(13, os.strerror(13))
            return opened_by(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", denied)
        refused(
            RunError,
            rf"{name}` may not be read: give yourself permission and run the same command again",
            copied,
        )

    def test_a_folder_where_a_disk_is_mounted(self, refused, runs, tmp_path, monkeypatch):
        (tmp_path / "pack").mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "pack")
        refused(InputError, "mounted at `.*pack`: give a folder inside it as `-o`", runs)

    @pytest.mark.parametrize("split", [-0.1, 1.1, float("nan")])
    def test_a_split_that_is_no_share(self, refused, runs, split):
        refused(InputError, "from 0 to 1, not", runs, split=split)

    def test_a_split_of_one_photograph(self, refused, made):
        run = made("single", normals=1)
        refused(InputError, "into the same photograph.*: take `--split 1`", [run])

    def test_a_split_of_one_photograph_of_two_names(self, refused, tmp_path):
        [path] = photographs(tmp_path / "normals", 1)
        shutil.copy(path, path.with_name("copy.png"))
        normals = sorted((tmp_path / "normals").iterdir())
        job = Job(normals, labels(tmp_path / "masks", 4), "tile+hole", 6, 1, composite=True, batch=4)
        fill(FakeEngine(), job, tmp_path / "run")
        refused(InputError, "into the same photograph.*: take `--split 1`", [tmp_path / "run"])

    def test_nothing_to_pack(self, refused, made):
        run = made("poisoned", engine=FakeEngine(poisoned=range(6)))
        refused(InputError, "no pair to pack: of the samples 6 are failed", [run])

    def test_a_night_without_a_type(self, refused, tmp_path):
        (tmp_path / "night/types").mkdir(parents=True)
        refused(RunError, r"night` is not a run \(its `types` is empty\): make one", [tmp_path / "night"])

    def test_runs_of_no_samples(self, refused, runs, copied):
        (copied[0] / "manifest.jsonl").write_bytes(b"")
        description = json.loads((copied[0] / "run.json").read_text())
        shard = {"number": 9, "of": 9, "together": 4}
        (copied[0] / "run.json").write_text(json.dumps(description | {"shard": shard}))
        refused(InputError, "there is no pair to pack: the runs have no samples", [copied[0]])

    def test_nothing_left_to_test(self, refused, runs, here):
        match = r"no pair to pack: of the samples 1 are failed, 22 are painted into train/good"
        refused(InputError, match, runs, "mvtec", split=1, normals=[here / "normals"])

    def test_other_photographs(self, refused, runs, here, tmp_path):
        photographs(tmp_path / "normals", 9, seed=1)
        match = "normals` does not hold the photographs of `.*hole` as they were.*: give the folder"
        refused(DatasetError, match, runs, normals=[tmp_path / "normals"])

    def test_a_photograph_that_was_changed(self, refused, runs, here, tmp_path):
        folder = shutil.copytree(here / "normals", tmp_path / "normals")
        photograph = np.asarray(opened(folder / "004.png")).copy()
        photograph[0, 0] ^= 255
        Image.fromarray(photograph).save(folder / "004.png")
        match = "normals` does not hold the photographs of `.*hole` as they were.*: give the folder"
        refused(DatasetError, match, runs, normals=[folder])

    def test_photographs_of_no_run(self, refused, runs, here, tmp_path):
        photographs(tmp_path / "more", 2)
        match = "no run was painted into the photographs of `.*more`: leave it out"
        refused(DatasetError, match, runs, normals=[here / "normals", tmp_path / "more"])

    def test_photographs_of_a_run_of_decoded_pictures(self, refused, made, tmp_path):
        run = made("decoded", composite=False)
        refused(
            InputError, "--no-composite.*: leave out `--normals`", [run], normals=[run.parent / "normals"]
        )

    def test_defects_called_good(self, refused, copied):
        path = copied[0] / "run.json"
        path.write_text(path.read_text().replace("tile+hole", "tile+good"))
        refused(RunError, "hole` are called `good`, as good parts are: rename the prompt", copied)

    @pytest.mark.parametrize(("form", "module"), [("coco", "pycocotools.mask"), ("parquet", "pyarrow")])
    def test_a_library_that_is_not_installed(self, refused, runs, monkeypatch, form, module):
        monkeypatch.setitem(sys.modules, module, None)
        refused(MissingExtraError, r"pip install 'stage-rt\[pack\]'", runs, form)

    def test_an_output_that_exists(self, runs, tmp_path):
        (tmp_path / "pack").mkdir()
        (tmp_path / "pack" / "mine.txt").touch()
        with pytest.raises(InputError, match="pack` exists already, remove it or choose another `-o`"):
            pack(Request(runs, "yolo"), tmp_path / "pack")
        assert [path.name for path in (tmp_path / "pack").iterdir()] == ["mine.txt"]


def test_other_photographs_of_the_same_names_are_another_job(tmp_path):
    masks = labels(tmp_path / "masks", 4)
    for seed in range(2):
        normals = photographs(tmp_path / f"normals{seed}", 4, seed=seed)
        fill(FakeEngine(), Job(normals, masks, "tile+hole", 4, 1, True, 4), tmp_path / f"run{seed}")
    assert pack(Request([tmp_path / "run0", tmp_path / "run1"], "yolo"), tmp_path / "pack").pairs("train")


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_nothing_is_written_beside_the_pack(packed, monkeypatch, form):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    packed(form)


def test_labels_of_which_nothing_is_left_are_left_out(tmp_path, made, monkeypatch):
    # Runs of before wrote one pixel of 320 as none of 32.
    monkeypatch.setattr("stage_rt.run.workers.decoded_label", network_mask)
    folder = tmp_path / "vanishing"
    normals, masks = photographs(folder / "normals", 4, (320, 320)), labels(folder / "masks", 3, (320, 320))
    for mask in masks[:2]:
        label = np.zeros((320, 320), np.uint8)
        label[40, 40] = 255
        Image.fromarray(label).save(mask)
    big = np.zeros((320, 320), np.uint8)
    big[40:120, 40:120] = 255
    Image.fromarray(big).save(masks[2])
    fill(FakeEngine(), Job(normals, masks, "tile+hole", 6, 1, composite=False, batch=4), folder / "run")
    summary = pack(Request([folder / "run"], "coco"), tmp_path / "pack")
    assert summary.skipped == {"without a label": 4}
    assert [line["index"] for line in provenance(tmp_path / "pack")] == [
        line["index"] for line in manifest(folder / "run") if line["label"] == masks[2].name
    ]


def test_the_types_of_a_night_are_packed_as_runs_of_their_own(here, runs, packed, tmp_path):
    asked = [
        Job(
            normals=sorted((here / "normals").iterdir()),
            masks=sorted((here / "masks").iterdir()),
            prompt=prompt,
            count=count,
            seed=seed,
            composite=True,
            batch=4,
        )
        for prompt, count, seed in (("tile+crack", 9, 8), ("tile+hole", 14, 7))
    ]
    engine = FakeEngine()

    def ignore(notice):
        return None

    follow_all(
        Alone(engine),
        plans(engine.spec, asked, notify=ignore),
        tmp_path / "night",
        notify=ignore,
        progress=silent,
    )
    whole, summary = packed("coco", runs=[tmp_path / "night"])
    assert {kind: n for side in summary.pictures.values() for kind, n in side.items()}.keys() == {
        "crack",
        "hole",
        "good",
    }
    assert sum(map(summary.pairs, summary.pictures)) == 23
    assert {one["type"] for one in provenance(whole)} >= {"crack", "hole"}
    alone, _ = packed("yolo", runs=[tmp_path / "night/types/crack"])
    assert {one["type"] for one in provenance(alone)} == {"crack", "good"}
    with pytest.raises(InputError, match="are runs of one job"):
        packed("voc", runs=[tmp_path / "night", tmp_path / "night/types/crack"])
