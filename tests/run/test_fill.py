import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import PROMPT, FakeEngine, contents, labels, manifest, opened, photographs
from PIL import Image, ImageFilter

from stage_rt.errors import DatasetError, ImageError, InputError, MaskError, PromptError, RunError, StageError
from stage_rt.images.compose import FEATHER
from stage_rt.run import workers
from stage_rt.run.fill import NON_FINITE, fill
from stage_rt.run.plan import make_plan

REPORT = ("contact_sheet.jpg", "index.html", "pairs-0.js", "report.css", "report.js")


def pair(folder, line):
    return (np.asarray(opened(folder / line[name])) for name in ("image", "mask"))


def test_every_sample_is_written_and_the_last_smaller_batch_is_not_lost(job, run):
    engine = FakeEngine()
    summary = fill(engine, job, run)
    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (summary.pairs, summary.written, summary.failed, summary.left_out) == (10, 10, [], [])
    digests = [line["image_sha256"][:8] for line in manifest(run)]
    assert sorted(contents(run)) == sorted(
        [
            ".lock",
            "manifest.jsonl",
            "run.json",
            *(f"report/{name}" for name in REPORT),
            *(f"report/thumbnails/hole/000/{n:06d}-{digest}.jpg" for n, digest in enumerate(digests)),
            *(f"train/good/{n:03d}.png" for n in (0, 2, 3, 4)),
            "test/good/001.png",
            *(f"test/hole/{n:06d}.png" for n in range(10)),
            *(f"ground_truth/hole/{n:06d}_mask.png" for n in range(10)),
        ]
    )
    assert [line["index"] for line in manifest(run)] == list(range(10))


def test_the_files_are_checked_in_view_and_a_stop_meanwhile_leaves_nothing(job, run):
    told = []
    fill(
        FakeEngine(),
        job,
        run.with_name("other"),
        checking=told.append,
        progress=lambda share: told.append(2 + share),
    )
    assert told == sorted(told)
    assert told[0] == 0
    assert 1.0 in told
    assert len(told) > len(job.normals) + len(job.masks)

    def stop(share):
        if share > 0.25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(FakeEngine(), job, run, checking=stop)
    assert not run.exists()


def test_a_pair_is_its_photograph_with_a_defect_in_its_label(job, run, tmp_path):
    fill(FakeEngine(), job, run)
    for line in manifest(run):
        image, mask = pair(run, line)
        photo = np.asarray(opened(tmp_path / "normals" / line["normal"]))
        label = np.asarray(opened(tmp_path / "masks" / line["label"]))
        np.testing.assert_array_equal(mask, label)
        beyond = np.asarray(Image.fromarray(label).filter(ImageFilter.MaxFilter(4 * FEATHER + 1))) == 0
        np.testing.assert_array_equal(image[beyond], photo[beyond])
        assert image[label > 0].mean() < 60


def test_without_compositing_the_decoded_image_and_its_mask_are_written(job, run):
    fill(FakeEngine(), replace(job, composite=False), run)
    image, mask = pair(run, manifest(run)[0])
    assert image.shape == (32, 32, 3)
    assert mask.shape == (32, 32)
    assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("composite", [True, False])
def test_the_manifest_counts_the_pixels_of_the_mask_that_is_written(job, run, composite):
    fill(FakeEngine(), replace(job, composite=composite), run)
    lines = manifest(run)
    assert len(lines) == 10
    for line in lines:
        _, mask = pair(run, line)
        assert line["label_pixels"] == np.count_nonzero(mask)


def test_a_label_too_thin_for_the_decoded_image_is_in_its_mask(job, run, tmp_path):
    side = 320
    dot = np.zeros((side, side), np.uint8)
    dot[45, 45] = 255
    file = tmp_path / "dot.png"
    Image.fromarray(dot).save(file)
    thin = replace(job, normals=photographs(tmp_path / "large", 2, (side, side)), masks=[file])
    fill(FakeEngine(), replace(thin, composite=False), run)
    _, mask = pair(run, manifest(run)[0])
    assert np.argwhere(mask).tolist() == [[4, 4]]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_photographs_stay_grey_to_the_byte(job, run, tmp_path, channels):
    normals = photographs(tmp_path / "grey", 5, mode="L", suffix=".jpg")
    fill(FakeEngine(channels=channels), replace(job, normals=normals), run)
    line = manifest(run)[0]
    image, mask = pair(run, line)
    beyond = np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(4 * FEATHER + 1))) == 0
    photo = np.asarray(opened(tmp_path / "grey" / line["normal"]))
    assert image.ndim == 2
    np.testing.assert_array_equal(image[beyond], photo[beyond])


def test_photographs_keep_their_colour_under_networks_of_one_channel(job, run, tmp_path):
    folder, rng = tmp_path / "brown", np.random.default_rng(0)
    folder.mkdir()
    for n in range(5):
        shades = rng.integers(100, 140, (30, 40, 1)) + np.array([30, 0, -30])
        Image.fromarray(shades.astype(np.uint8)).save(folder / f"{n}.png")
    fill(FakeEngine(channels=1), replace(job, normals=sorted(folder.iterdir())), run)
    for line in manifest(run):
        image, mask = pair(run, line)
        photo, label = np.asarray(opened(folder / line["normal"])).astype(int), mask > 0
        difference = image[label].astype(int) - photo[label]
        # The paint is dark, so that blue often ends at black.
        free = image[label].min(axis=1) > 0
        assert free.any()
        assert (difference[free] == difference[free][:, :1]).all()
        assert difference[:, 0].mean() < -60
        assert line["contrast"] == pytest.approx(difference.mean(), abs=1)


def test_a_grey_photograph_has_the_same_pixels_however_it_was_saved(job, tmp_path):
    grey, colour = photographs(tmp_path / "grey", 5, mode="L"), tmp_path / "colour"
    colour.mkdir()
    for path in grey:
        opened(path).convert("RGB").save(colour / path.name)
    fill(FakeEngine(channels=1), replace(job, normals=grey), tmp_path / "a")
    fill(FakeEngine(channels=1), replace(job, normals=sorted(colour.iterdir())), tmp_path / "b")
    for one, other in zip(manifest(tmp_path / "a"), manifest(tmp_path / "b"), strict=True):
        (shades, _), (painted, _) = pair(tmp_path / "a", one), pair(tmp_path / "b", other)
        np.testing.assert_array_equal(np.repeat(shades[..., None], 3, axis=2), painted)
        assert [one[name] for name in ("fill", "leak", "contrast")] == [
            other[name] for name in ("fill", "leak", "contrast")
        ]


def test_the_same_job_makes_the_same_bytes_and_another_seed_others(job, tmp_path):
    fill(FakeEngine(), job, tmp_path / "a")
    fill(FakeEngine(), job, tmp_path / "b")
    fill(FakeEngine(), replace(job, seed=8), tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    one, other = (contents(tmp_path / name)["test/hole/000000.png"] for name in "ac")
    assert one != other


def test_a_finished_run_paints_nothing_again(job, run):
    fill(FakeEngine(), job, run)
    before = contents(run)
    engine = FakeEngine()
    summary = fill(engine, job, run)
    assert engine.batches == []
    assert (summary.pairs, summary.written) == (10, 0)
    assert contents(run) == before


def test_only_batches_with_a_missing_pair_are_painted_again_and_whole(job, run):
    fill(FakeEngine(), job, run)
    before = contents(run)
    (run / "test/hole/000005.png").unlink()
    (run / "ground_truth/hole/000009_mask.png").write_bytes(b"changed")
    kept = (run / "test/hole/000004.png").stat().st_mtime_ns
    engine = FakeEngine()
    summary = fill(engine, job, run)
    assert engine.batches == [[4, 5, 6, 7], [8, 9]]
    assert summary.written == 2
    assert contents(run) == before
    assert (run / "test/hole/000004.png").stat().st_mtime_ns == kept


def test_progress_that_raises_ends_the_run_and_the_same_job_goes_on(job, run, tmp_path):
    fill(FakeEngine(), job, tmp_path / "whole")

    class EnoughError(Exception):
        pass

    def until(limit):
        def progress(share):
            if share >= limit:
                raise EnoughError

        return progress

    for limit in (0, 0.2, 0.4, 0.55, 0.81):
        with pytest.raises(EnoughError):
            fill(FakeEngine(), job, run, progress=until(limit))
        assert not list(run.rglob("*.tmp"))
        assert len(list(run.rglob("test/*/*.png"))) == len(list(run.rglob("ground_truth/*/*.png")))
    fill(FakeEngine(), job, run)
    assert contents(run) == contents(tmp_path / "whole")


def test_progress_grows_from_what_was_done_to_all(job, run):
    told = []
    fill(FakeEngine(), job, run, progress=told.append)
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] == 1
    assert any(abs(share - 0.04) < 1e-9 for share in told)
    (run / "test/hole/000005.png").unlink()
    again = []
    fill(FakeEngine(), job, run, progress=again.append)
    assert again[0] == 0.9
    assert again[-1] == 1


def test_a_sample_that_is_not_finite_is_marked_and_the_others_go_on(job, run, tmp_path):
    summary = fill(FakeEngine(poisoned=[2, 9]), job, run)
    assert summary.failed == [2, 9]
    assert summary.pairs == 8
    line = manifest(run)[2]
    assert (line["status"], line["reason"]) == ("failed", NON_FINITE)
    assert "image" not in line
    assert not (run / "test/hole/000002.png").exists()
    assert not (run / "ground_truth/hole/000002_mask.png").exists()

    summary = fill(FakeEngine(), job, run)
    assert (summary.failed, summary.written) == ([], 2)
    fill(FakeEngine(), job, tmp_path / "healthy")
    assert contents(run) == contents(tmp_path / "healthy")


def test_a_mask_that_vanishes_in_the_latent_is_left_out_and_told(job, run, tmp_path):
    dot = np.zeros((30, 40), dtype=np.uint8)
    dot[3, 3] = 255
    Image.fromarray(dot).save(tmp_path / "dot.png")
    told = []
    lost = replace(job, masks=[*job.masks, tmp_path / "dot.png"])
    summary = fill(FakeEngine(mask_rule="authors"), lost, run, notify=told.append)
    assert told == ["masks left out, as nothing of some defect would be seen by the networks: `dot.png`"]
    assert summary.pairs == 10
    assert all(line["latent_mask_cells"] and line["label"] != "dot.png" for line in manifest(run))
    with pytest.raises(DatasetError, match="every mask is so small that the networks would see nothing"):
        fill(FakeEngine(mask_rule="authors"), replace(job, masks=[tmp_path / "dot.png"]), tmp_path / "none")


def test_a_mask_that_vanishes_at_a_smaller_photographs_size_gets_a_larger_photograph(job, run, tmp_path):
    small = photographs(tmp_path / "small", 3, size=(8, 6))
    dot = np.zeros((30, 40), dtype=np.uint8)
    dot[0, 1] = 255
    Image.fromarray(dot).save(tmp_path / "dot.png")
    summary = fill(
        FakeEngine(), replace(job, normals=[*small, *job.normals], masks=[tmp_path / "dot.png"]), run
    )
    assert summary.pairs == 10
    assert all(opened(run / line["image"]).size == (40, 30) for line in manifest(run))


def test_masks_of_another_size_are_fitted_with_a_notice(job, run, tmp_path):
    told = []
    large = labels(tmp_path / "large", 2, size=(80, 60))
    fill(FakeEngine(), replace(job, masks=large), run, notify=told.append)
    assert told == ["masks resized to the size of their photograph: `000_mask.png`, `001_mask.png`"]
    assert next(iter(pair(run, manifest(run)[0]))).shape == (30, 40, 3)


def test_masks_of_another_shape_are_left_out_with_a_notice(job, run, tmp_path):
    told = []
    narrow = labels(tmp_path / "narrow", 5, size=(60, 30))
    fill(FakeEngine(), replace(job, masks=[*job.masks, *narrow]), run, notify=told.append)
    assert told == [
        "masks left out, as no photograph has their shape: "
        "`000_mask.png`, `001_mask.png`, `002_mask.png` and 2 more"
    ]
    assert {line["label"] for line in manifest(run)} == {path.name for path in job.masks}


def test_an_unknown_prompt_is_refused_with_the_known_ones(job, run):
    with pytest.raises(PromptError, match=r"unknown prompt 'hole': did you mean `tile\+hole`"):
        fill(FakeEngine(), replace(job, prompt="hole"), run)
    assert not run.exists()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "tile+good",
            "'tile\\+good' would be painted into `test/good`, where good photographs are: rename it",
        ),
        ("tile+.x", "'tile\\+.x' does not end in a name a folder can have: rename it"),
    ],
)
def test_a_prompt_whose_pairs_have_no_place_is_refused_before_a_file_is_read(job, prompt, message):
    spec = FakeEngine().spec
    model = spec.model.model_copy(update={"prompts": {prompt: "a"}})
    job.normals[0].unlink()
    with pytest.raises(PromptError, match=message):
        make_plan(spec.model_copy(update={"model": model}), replace(job, prompt=prompt), lambda notice: None)


@pytest.mark.parametrize("damage", ["photograph", "mask", "black"])
def test_a_bad_file_is_found_before_anything_is_written(job, run, damage):
    path = job.normals[3] if damage == "photograph" else job.masks[2]
    if damage == "black":
        Image.new("L", (40, 30)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:60])
    engine = FakeEngine()
    with pytest.raises(ImageError if damage == "photograph" else MaskError, match=path.name):
        fill(engine, job, run)
    assert engine.batches == []
    assert not run.exists()


@pytest.mark.parametrize("damage", ["cut", "clear"])
def test_a_bad_photograph_that_no_pair_uses_is_found_before_anything_is_painted(job, run, damage):
    job = replace(job, count=2)
    used = {sample.normal for sample in make_plan(FakeEngine().spec, job, lambda notice: None).samples}
    unused = next(path for path in job.normals if path not in used)
    if damage == "cut":
        unused.write_bytes(unused.read_bytes()[:-200])
    else:
        with_alpha = opened(unused).convert("RGBA")
        with_alpha.putpixel((0, 0), (1, 2, 3, 0))
        with_alpha.save(unused)
    engine = FakeEngine()
    with pytest.raises(ImageError, match=unused.name):
        fill(engine, job, run)
    assert engine.batches == []
    assert not run.exists()


@pytest.mark.parametrize("white", [1023, 4095, 4096, 65535])
def test_photographs_of_twelve_bits_are_told_of(job, run, white):
    notices = []
    for path in job.normals:
        grey = np.asarray(opened(path).convert("L")).astype(np.uint16)
        path.unlink()
        Image.fromarray(grey.astype(np.uint32) * white // grey.max()).convert("I;16").save(path)
    for _ in range(2):
        fill(FakeEngine(), job, run, notify=notices.append)
    told = (
        f"the photographs of 16 bits are nearly black, as none has a value above {white} of 65535: multiply what a "
        "camera of 12 bits wrote by 16"
    )
    assert notices == [told] * 2 * (white < 4096)


@pytest.mark.parametrize("size", [(40, 30), (80, 60)])
@pytest.mark.parametrize("kind", ["normals", "masks"])
def test_a_file_that_is_replaced_in_the_night_is_not_painted(job, run, tmp_path, kind, size):
    fill(FakeEngine(), job, tmp_path / "whole")
    before = {path: path.read_bytes() for path in getattr(job, kind)}

    def replaced(share):
        if 0 < share < 0.2:
            for path in before:
                path.unlink()
            photographs(tmp_path / kind, 5, size, seed=1) if kind == "normals" else labels(
                tmp_path / kind, 4, (size[0] + 4, size[1] + 3)
            )

    error = {"normals": ImageError, "masks": MaskError}[kind]
    told = rf"{kind}/00\d\w*.png` changed since it was checked: put it back and run the same command again$"
    with pytest.raises(error, match=told):
        fill(FakeEngine(), job, run, progress=replaced)
    assert len(manifest(run)) == 4
    for path, content in before.items():
        path.unlink()
        path.write_bytes(content)
    fill(FakeEngine(), job, run)
    assert contents(run) == contents(tmp_path / "whole")


@pytest.mark.parametrize("changed", ["prompt", "seed", "composite", "normals", "masks", "engine"])
def test_a_changed_job_is_refused_with_the_field_named(job, run, changed):
    fill(FakeEngine(), job, run)
    before = contents(run)
    engine = FakeEngine(fingerprint=("1" if changed == "engine" else "0") * 64)
    if changed in ("normals", "masks"):
        image = opened(getattr(job, changed)[0])
        image.putpixel((12, 10), 255 if changed == "masks" else (1, 2, 3))
        image.putpixel((0, 0), 255 if changed == "masks" else (1, 2, 3))
        # As a new file, since the run links to the old one.
        getattr(job, changed)[0].unlink()
        image.save(getattr(job, changed)[0])
    other = {"prompt": "tile+crack", "seed": 8, "composite": False}
    if changed in other:
        job = replace(job, **{changed: other[changed]})
    way_back = {
        "prompt": "add `--prompt tile.hole`",
        "seed": "add `--seed 7`",
        "composite": "leave `--no-composite` out",
    }
    what = (
        "which was made from another `000.*` .*give the files it was"
        if changed in ("normals", "masks")
        else f"whose {changed} is .*: {way_back.get(changed, 'give the engine it was started with')}"
    )
    with pytest.raises(RunError, match=f"holds another run, {what}"):
        fill(engine, job, run)
    assert contents(run) == before
    assert engine.batches == []


def test_a_run_grows_to_the_bytes_it_would_have_had(job, run):
    fill(FakeEngine(), job, run)
    engine, larger = FakeEngine(), replace(job, count=14)
    assert fill(engine, larger, run).written == 4
    assert engine.batches == [[8, 9, 10, 11], [12, 13]]
    fill(FakeEngine(), larger, run.with_name("whole"))
    assert contents(run) == contents(run.with_name("whole"))


def test_a_run_goes_on_in_another_batch_and_on_another_backend(job, run):
    fill(FakeEngine(), replace(job, count=5), run)
    other = FakeEngine()
    other.spec = other.spec.model_copy(update={"backend": "tensorrt"})
    fill(other, replace(job, batch=2), run)
    assert other.batches == [[4, 5], [6, 7], [8, 9]]
    whole = FakeEngine()
    whole.spec = other.spec
    fill(whole, replace(job, batch=2), run.with_name("whole"))
    assert contents(run) == contents(run.with_name("whole"))


def test_a_run_does_not_shrink(job, run):
    fill(FakeEngine(), job, run)
    before = contents(run)
    with pytest.raises(RunError, match="holds a run of 10 pairs: give `--count 10` or more"):
        fill(FakeEngine(), replace(job, count=9), run)
    assert contents(run) == before


def test_renaming_a_photograph_is_a_change(job, run):
    fill(FakeEngine(), job, run)
    renamed = job.normals[0].rename(job.normals[0].with_name("zzz.png"))
    with pytest.raises(RunError, match=r"are others \(`000.png` removed or renamed; `zzz.png` added"):
        fill(FakeEngine(), replace(job, normals=[*job.normals[1:], renamed]), run)


def test_a_file_name_that_is_no_text_can_be_used(job, run, tmp_path):
    strange = job.normals[0].rename(os.fsdecode(os.fsencode(tmp_path) + b"/normals/\xff.png"))
    fill(FakeEngine(), replace(job, normals=[strange]), run)
    assert {line["normal"] for line in manifest(run)} == {"\ufffd.png"}


def test_the_noise_of_a_sample_is_its_number_under_the_seed_of_the_run(job, run):
    seen = []

    class Listening(FakeEngine):
        def paint(self, images, masks, *, noise, **rest):
            seen.append(
                (noise.seeds.tolist(), noise.samples.tolist(), rest["prompt"], images.shape, masks.shape)
            )
            return super().paint(images, masks, noise=noise, **rest)

    fill(Listening(), job, run)
    assert seen[0] == ([7] * 4, [0, 1, 2, 3], PROMPT, (4, 3, 32, 32), (4, 1, 8, 8))
    assert seen[2] == ([7] * 2, [8, 9], PROMPT, (2, 3, 32, 32), (2, 1, 8, 8))


def test_a_batch_is_written_while_the_next_one_is_painted(job, run):
    """Results that are only there once the next batch is begun: written in turn, this would wait for ever."""
    begun = [threading.Event() for _ in range(3)]

    class Lazy:
        def __init__(self, painted, ready):
            self._painted, self._ready, self.finite = painted, ready, painted.finite

        @property
        def images(self):
            assert self._ready.wait(60)
            return self._painted.images

    class Overlapping(FakeEngine):
        def paint(self, *arguments, **options):
            number = len(self.batches)
            begun[number].set()
            following = begun[min(number + 1, 2)]
            return Lazy(super().paint(*arguments, **options), following)

    fill(Overlapping(), job, run)
    assert [line["index"] for line in manifest(run)] == list(range(10))


def test_a_batch_that_cannot_be_written_stops_the_painting_of_the_next(job, run, monkeypatch):
    engine = FakeEngine(delay=0.02)
    failed = threading.Event()

    def full(*arguments):
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stage_rt.run.fill.write_pair", full)
    with pytest.raises(StageError, match="No space left on device"):
        fill(engine, job, run)
    assert failed.is_set()
    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_run_that_is_stopped_still_writes_the_batch_that_was_painted(job, run):
    class EnoughError(Exception):
        pass

    def progress(share):
        if share > 0.4:
            raise EnoughError

    with pytest.raises(EnoughError):
        fill(FakeEngine(), job, run, progress=progress)
    assert [line["index"] for line in manifest(run)] == [0, 1, 2, 3]


def test_steps_are_recorded_where_they_are_not_the_samplers_own(job, run, tmp_path):
    fill(FakeEngine(steps=40), job, tmp_path / "plain")
    fill(FakeEngine(steps=40), replace(job, steps=40), tmp_path / "all")
    assert contents(tmp_path / "plain") == contents(tmp_path / "all")
    assert "steps" not in json.loads((tmp_path / "all" / "run.json").read_text())
    assert all("steps" not in line for line in manifest(tmp_path / "all"))
    told = []
    assert fill(FakeEngine(steps=40), replace(job, steps=20), run, progress=told.append).steps == 20
    assert json.loads((run / "run.json").read_text())["steps"] == 20
    assert {line["steps"] for line in manifest(run)} == {20}
    assert "<th>steps</th><td>20</td>" in (run / "report/index.html").read_text()
    assert any(abs(share - 0.4 / 20) < 1e-9 for share in told)


def test_a_run_is_not_resumed_with_other_steps(job, run):
    fill(FakeEngine(steps=40), job, run)
    before = contents(run)
    with pytest.raises(
        RunError,
        match="holds another run, whose steps is 40 and not 20: add `--steps 40` or give another `-o`",
    ):
        fill(FakeEngine(steps=40), replace(job, steps=20), run)
    assert contents(run) == before
    fill(FakeEngine(steps=40), replace(job, steps=40), run)


def test_the_photograph_that_came_to_a_run_is_named(job, run):
    fill(FakeEngine(), job, run)
    before = contents(run)
    [extra] = photographs(run.parent / "more", 1)
    added = extra.rename(job.normals[0].with_name("new.png"))
    told = r"whose photographs are others \(`new.png` added, or in no pair so far\): give the files"
    with pytest.raises(RunError, match=told):
        fill(FakeEngine(), replace(job, normals=[*job.normals, added]), run)
    with pytest.raises(RunError, match=r"whose masks are others \(`003_mask.png` removed or renamed\)"):
        fill(FakeEngine(), replace(job, masks=job.masks[:3]), run)
    assert contents(run) == before


def test_a_run_of_fewer_steps_is_not_resumed_with_all(job, run):
    fill(FakeEngine(steps=40), replace(job, steps=20), run)
    with pytest.raises(RunError, match="whose steps is 20 and not 40"):
        fill(FakeEngine(steps=40), job, run)


@pytest.mark.parametrize("steps", [0, 1, 41, -3])
def test_steps_out_of_range_are_refused_before_anything_is_written(job, run, steps):
    with pytest.raises(InputError, match=rf"^sampler `.*` takes from 10 to 40 steps, not {steps}$"):
        fill(FakeEngine(steps=40), replace(job, steps=steps), run)
    assert not run.exists()


def test_a_run_file_with_impossible_steps_is_damaged(job, run):
    fill(FakeEngine(steps=40), job, run)
    held = json.loads((run / "run.json").read_text())
    for steps in (0, 5, 4000, "many"):
        (run / "run.json").write_text(json.dumps(held | {"steps": steps}))
        with pytest.raises(RunError, match="is damaged: start again in an empty folder"):
            fill(FakeEngine(steps=40), job, run)


@pytest.mark.parametrize("normals", [1, 3])
def test_a_photograph_is_opened_as_often_as_it_must_be(job, run, tmp_path, monkeypatch, normals):
    """To be checked, used or not, and to be painted; and for the data set and the contact sheet."""
    opened_files = []
    real, read = Image.open, Path.read_bytes

    def counting(file, *arguments, **options):
        if isinstance(file, Path):
            opened_files.append(file)
        return real(file, *arguments, **options)

    def reading(path):
        opened_files.append(path)
        return read(path)

    monkeypatch.setattr(Image, "open", counting)
    monkeypatch.setattr(Path, "read_bytes", reading)
    monkeypatch.setattr("stage_rt.run.fill.publish", lambda *arguments: None)
    few = replace(job, normals=photographs(tmp_path / "few", normals), count=1)
    fill(FakeEngine(), few, run)
    counts = {path: opened_files.count(path) for path in few.normals}
    assert sorted(counts.values()) == [1] * (normals - 1) + [2]


def test_who_runs_on_which_thread(job, run, monkeypatch):
    threads = {}
    for name in ("prepare", "paint", "finish"):
        real = getattr(workers, name)

        def noted(*arguments, real=real, name=name, **options):
            threads.setdefault(name, set()).add(threading.current_thread().name.rpartition("_")[0])
            return real(*arguments, **options)

        monkeypatch.setattr(workers, name, noted)
    fill(FakeEngine(), job, run)
    assert threads == {"prepare": {""}, "paint": {""}, "finish": {"stage-rt-writer"}}


def test_guidance_is_part_of_the_recipe_and_of_what_a_run_was_started_with(job, run):
    fill(FakeEngine(), replace(job, guidance=2.5), run)
    assert json.loads((run / "run.json").read_text())["recipe"]["guidance"] == 2.5
    with pytest.raises(RunError, match=r"whose recipe.guidance is 2.5 and not 1.0: add `--guidance 2.5`"):
        fill(FakeEngine(), job, run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": -1}, "`guidance` must be between 0 and 20, not -1"),
        ({"guidance": float("nan")}, "`guidance` must be between 0 and 20, not nan"),
        ({"prompt_guidance": 30}, "`prompt_guidance` must be between 0 and 20, not 30"),
        (
            {"prompt_guidance": 2},
            "has no context of good surface, .*: train it again, or leave the option out",
        ),
        (
            {"guidance": 2, "sampler": "sdas"},
            "`guidance` weighs adapters, of which sampler `sdas` .* leave it out",
        ),
    ],
)
def test_guidance_that_cannot_be_is_refused(job, run, change, message):
    with pytest.raises(InputError, match=message):
        fill(FakeEngine(), replace(job, **change), run)
    assert not run.exists()


def test_how_much_of_a_label_was_painted_is_recorded(job, run):
    summary = fill(FakeEngine(), job, run)
    lines = manifest(run)
    assert all(0 < line["fill"] <= 1 and line["label_pixels"] > 0 and line["contrast"] < 0 for line in lines)
    assert summary.fill == sorted(line["fill"] for line in lines)


def test_an_engine_that_paints_nothing_fills_no_label(job, run):
    class Idle(FakeEngine):
        def paint(self, images, masks, **options):
            painted = super().paint(images, masks, **options)
            return painted._replace(images=images)

    assert fill(Idle(), job, run).fill[-1] < 0.2


def test_a_run_of_the_last_release_has_no_figures_and_a_report_all_the_same(job, run):
    fill(FakeEngine(), job, run)
    lines = [
        {
            name: value
            for name, value in line.items()
            if name not in ("fill", "leak", "contrast", "label_pixels", "round_trip", "check")
        }
        for line in manifest(run)
    ]
    (run / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = fill(FakeEngine(), job, run)
    assert (summary.written, summary.fill) == (0, [])
    assert "weakest tenth" not in (run / "report/index.html").read_text()


class Lossy(FakeEngine):
    """An engine whose pictures are the photographs upside down."""

    def paint(self, images, masks, **options):
        painted = super().paint(images, masks, **options)
        return painted._replace(images=np.ascontiguousarray(painted.images[:, :, ::-1]))


@pytest.mark.parametrize(
    ("engine", "familiar", "told"),
    [(Lossy, None, 0), (Lossy, 250.0, 0), (FakeEngine, 8.0, 0), (Lossy, 8.0, 1)],
)
def test_photographs_unlike_those_of_the_training_are_told_of_once(job, run, engine, familiar, told):
    notices = []
    fill(engine(round_trip=familiar), job, run, notify=notices.append)
    assert len(notices) == told
    if told:
        assert notices[0].startswith(
            "the photographs look unlike those the model was trained on: where nothing"
        )
        fill(engine(round_trip=familiar), job, run, notify=notices.append)
        assert len(notices) == 2
