"""An evaluation from photographs to its page, with an engine that darkens what is under the mask."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import SOURCES, engine, evaluated, request, run_with
from fake_engine import manifest, opened
from PIL import Image, ImageFont

from stage_rt.errors import DatasetError, InputError, MaskError, StageError
from stage_rt.images.inputs import Header
from stage_rt.progress import Progress, silent
from stage_rt.quality import evaluate, protocol, report, sources, trials
from stage_rt.quality.learning import Found
from stage_rt.quality.pictures import Pictures
from stage_rt.quality.protocol import convincing
from stage_rt.quality.sizes import SIZES, lesson_of, side_of
from stage_rt.quality.split import Split, split
from stage_rt.quality.trials import Job, Opinion
from stage_rt.run import plan
from stage_rt.run.sample import Sample
from stage_rt.samplers import check_sampler


def test_the_best_source_alone_is_held_against_the_others_alone() -> None:
    def difference(row: str, other: str, told_apart: bool) -> dict:
        return {"row": row, "from": other, "points": 9.0, "low": 4.0, "high": 14.0, "told_apart": told_apart}

    rows = [
        {"row": name, "miou": miou} for name, miou in (("real only", 60), ("a alone", 40), ("b alone", 50))
    ]
    differences = [
        difference("b alone", "a alone", True),
        difference("b alone", "real only", True),
        difference("a alone", "b alone", True),
        difference("real only", "b alone", True),
    ]
    (one,) = report.best_alone({"rows": rows, "differences": differences})
    assert (one["row"], one["from"], one["word"]) == ("b alone", "a alone", "above")
    differences[0]["told_apart"] = False
    (one,) = report.best_alone({"rows": rows, "differences": differences})
    assert one["word"] == "no difference that can be told"
    assert report.best_alone({"rows": rows[:1], "differences": []}) == []


def test_of_a_single_defect_in_the_test_no_distance_is_told(data: Path, tmp_path: Path) -> None:
    asked = request(data, sources=["ours"], seeds=1)
    run_with(engine(range(5, 6)), asked, tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    kept = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert kept["agreement"]["ours"]["dent"]["distance"] is None
    assert "- (-)" in (tmp_path / report.PAGE).read_text()


def test_the_page_compares_every_source_with_real_pairs_alone(data: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    result = evaluated(data, tmp_path / "r", shares)
    names = [row["row"] for row in result["rows"]]
    assert names == [
        "real only",
        *(f"with {name}" for name in SOURCES),
        *(f"{name} alone" for name in SOURCES),
    ]
    assert {row["seeds"] for row in result["rows"]} == {2}
    assert set(result["rows"][0]["iou"]) == {"dent", "spot"}
    learned = [row["miou_learned"] for row in result["rows"]]
    assert all(0 <= value <= 100 for value in learned[: 1 + len(SOURCES)])
    assert learned[1 + len(SOURCES) :] == [None] * len(SOURCES)
    assert result["real_pairs"] == {"dent": 2, "spot": 2}
    assert result["test_pairs"] == {"dent": 4, "spot": 4}
    assert set(result["agreement"]) == set(SOURCES)
    compared = {(one["row"], one["from"]) for one in result["differences"]}
    assert len(compared) == len(result["differences"]) == 2 * 12
    assert ("ours alone", "cutpaste alone") in compared
    assert ("real only", "cutpaste alone") in compared
    assert ("with ours", "cutpaste alone") not in compared
    assert json.loads((tmp_path / "r" / "result.json").read_text()) == json.loads(json.dumps(result))
    page = (tmp_path / "r" / "report.html").read_text()
    for name in names:
        assert f"<td>{name}</td>" in page
    assert "<h2>Without real pairs</h2>" in page
    assert "stage-rt evaluate part" in page
    for picture in ("miou.png", "examples.png"):
        assert opened(tmp_path / "r" / picture).width > 300
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("found", "types"),
    [
        ({"dent": 0.3, "spot": 0.4}, ["dent", "spot"]),
        ({"dent": 0.24, "spot": 0.4}, ["spot"]),
        ({"dent": 0.0, "spot": float("nan")}, []),
    ],
)
def test_a_type_convinces_that_is_found_half_as_well_as_real_defects(found, types) -> None:
    opinions = [Opinion({kind: value + off for kind, value in found.items()}, {}) for off in (-0.01, 0.01)]
    assert convincing(opinions, {"dent": 0.5, "spot": 0.8}) == types


def test_a_type_that_nobody_learned_convinces_nobody() -> None:
    assert convincing([Opinion({"dent": 0.0, "spot": 0.3}, {})], {"dent": 0.0, "spot": 0.5}) == ["spot"]


def test_of_a_source_that_convinces_in_some_types_those_have_a_row(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"ours": ["spot"], "cutpaste": [], "draem": ["dent", "spot"]}
    answers = iter(told.values())
    monkeypatch.setattr(protocol, "convincing", lambda *_: next(answers))
    learned: list[Job] = []
    monkeypatch.setattr(trials.Trials, "learn", watched(trials.Trials.learn, learned))
    asked = request(data, sources=list(told))
    done = run_with(engine(), asked, tmp_path / "r")
    result = done.result
    beside = ["real only", "with ours", "with cutpaste", "with draem", "with ours (spot)"]
    assert [row["row"] for row in result["rows"]] == [*beside, *(f"{name} alone" for name in told)]
    assert [job.seed for job in learned[-2:]] == [0, 1]
    real, pairs = learned[-1].parts
    assert set(np.unique(real.classes)) == {0, 1, 2}
    assert set(np.unique(pairs.classes)) == {0, 2}
    assert len(pairs) == 4
    assert result["convincing"] == told
    assert "ours: segmenters of real defects do not know its dent\n" in done.text
    assert "cutpaste: segmenters of real defects do not know its dent, spot\n" in done.text
    assert "draem: segmenters of real defects" not in done.text
    page = (tmp_path / "r" / "report.html").read_text()
    assert "<td>with ours (spot)</td>" in page
    assert "<td>dent</td></tr>" in page


def watched(learn, learned: list[Job]):
    def told(self, job, progress) -> None:
        learned.append(job)
        learn(self, job, progress)

    return told


@pytest.mark.parametrize(("knows", "percent"), [(True, 100), (False, 0)])
def test_how_well_a_segmenter_fits_what_it_learned_is_told(
    knows: bool, percent: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_network, pictures, _device) -> Found:
        classes = pictures.classes * knows
        return Found(classes, (classes > 0).astype(np.float16))

    monkeypatch.setattr(trials, "find", answer)
    result = evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
    assert [row["miou_learned"] for row in result["rows"][:3]] == [percent, percent, None]
    assert result["rows"][0]["iou_learned"] == {"dent": percent, "spot": percent}


def test_on_defective_photographs_alone_false_alarms_on_good_ones_do_not_count(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_network, pictures, _device) -> Found:
        classes = pictures.classes.copy()
        classes[~classes.any(axis=(1, 2)), :4] = 1
        return Found(classes, (classes > 0).astype(np.float16))

    monkeypatch.setattr(trials, "find", answer)
    first = evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)["rows"][0]
    assert first["miou_defective"] == first["miou_learned"] == 100
    assert first["miou"] < 100


def test_every_source_paints_under_the_same_labels_of_the_same_photographs(
    data: Path, tmp_path: Path
) -> None:
    evaluated(data, tmp_path / "r", seeds=1)
    ours, other = (tmp_path / "r" / "engine" / "pairs" / name / "dent" for name in ("ours", "cutpaste"))
    for n in range(4):
        mask = f"ground_truth/dent/{n:06d}_mask.png"
        assert (ours / mask).read_bytes() == (other / mask).read_bytes()
        first, second = (
            np.asarray(opened(run / f"test/dent/{n:06d}.png").convert("L")) for run in (ours, other)
        )
        beyond = np.asarray(opened(ours / mask)) == 0
        assert (first != second).any()
        assert (first[beyond] == second[beyond]).mean() > 0.8


@pytest.mark.parametrize("name", ["ours", "cutpaste"])
def test_types_share_no_random_number(data: Path, tmp_path: Path, name: str) -> None:
    """Of types with the same masks neither the photographs, in their order, nor the labels are the same."""
    for n in range(6):
        mask = f"{n}_mask.png"
        shutil.copy(data / "ground_truth" / "dent" / mask, data / "ground_truth" / "spot" / mask)
    evaluated(data, tmp_path / "r", sources=[name], seeds=1)
    used, drawn = [], []
    for kind in ("dent", "spot"):
        run = tmp_path / "r" / "engine" / "pairs" / name / kind
        used.append([line["normal"] for line in manifest(run)])
        drawn.append([(run / line["mask"]).read_bytes() for line in manifest(run)])
    assert used[0] != used[1]
    assert not set(drawn[0]) & set(drawn[1])


def test_a_type_has_the_same_seed_everywhere() -> None:
    seeds = [sources.Order(1, 1, seed).seed_of(kind) for seed in (0, 1) for kind in ("dent", "spot")]
    assert seeds == [590603141, 675482009, 3845981801, 1199761819]


def test_shifted_labels_are_the_same_labels_elsewhere(data: Path, tmp_path: Path) -> None:
    evaluated(data, tmp_path / "r", sources=["ours-shifted"], seeds=1)
    place = tmp_path / "r" / "engine" / "pairs" / "ours-shifted"
    right = np.asarray(opened(place.with_name("ours") / "dent/ground_truth/dent/000000_mask.png"))
    wrong = np.asarray(opened(place / "dent-shifted/000000_mask.png"))
    assert 0 < (wrong > 0).sum() <= (right > 0).sum()
    rows, columns = (np.argwhere(label).mean(axis=0) for label in (right, wrong))
    assert np.abs(columns - rows) == pytest.approx([20, 20], abs=2)
    # The pictures are those of `ours`.
    assert not list((place / "dent-shifted").glob("*[0-9].png"))


@pytest.mark.parametrize(("side", "beside"), [(200, 20), (384, 20), (1920, 100)])
def test_shifted_labels_of_large_photographs_are_as_far_aside_to_whom_sees_them_small(
    side: int, beside: int
) -> None:
    label = np.zeros((side, side // 2), dtype=bool)
    label[5:20, 5:20] = True
    wrong = np.argwhere(sources._moved_inwards(label)).mean(axis=0)
    assert wrong - np.argwhere(label).mean(axis=0) == pytest.approx([beside, beside])


def test_a_finished_evaluation_learns_nothing_again_and_a_new_source_only_itself(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = evaluated(data, tmp_path / "r", sources=["ours"])
    learned: list[int] = []
    real = trials.learn

    def counted(*arguments):
        learned.append(1)
        return real(*arguments)

    monkeypatch.setattr(trials, "learn", counted)
    for kept in (tmp_path / "r" / "engine" / "cache").glob(f"*{trials.WHOLE}.json"):
        kept.unlink()
    assert evaluated(data, tmp_path / "r", sources=["ours"]) == result
    assert not learned
    assert all(0 <= share <= 100 for row in result["rows"] for share in row["defects_found"].values())
    evaluated(data, tmp_path / "r", sources=["ours", "draem"])
    # Two seeds beside real pairs and two alone.
    assert len(learned) == 4
    image = published(data, tmp_path / "theirs") / "dent" / "image" / "1.png"
    theirs = ["ours", f"dfmgan={tmp_path / 'theirs'}"]
    evaluated(data, tmp_path / "r", sources=theirs)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(image)
    learned.clear()
    evaluated(data, tmp_path / "r", sources=theirs)
    assert len(learned) == 4


def test_on_another_test_what_was_learned_is_only_tested_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluated(data, tmp_path / "r", sources=["ours"])
    monkeypatch.setattr(trials, "learn", refused)
    surface = np.random.default_rng(10).integers(90, 110, (40, 40)).astype(np.uint8)
    Image.fromarray(surface).save(data / "test" / "good" / "1.png")
    second = evaluated(data, tmp_path / "r", sources=["ours"])
    assert (first["test_good"], second["test_good"]) == (1, 2)
    assert [row["iou_learned"] for row in second["rows"]] == [row["iou_learned"] for row in first["rows"]]
    monkeypatch.setattr(trials.torch, "__version__", "another")
    with pytest.raises(AssertionError, match="learned again"):
        evaluated(data, tmp_path / "r", sources=["ours"])


def refused(*_) -> None:
    raise AssertionError("learned again")


def test_distances_follow_which_photographs_of_the_test_show_one_defect(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluated(data, tmp_path / "r", sources=["ours"], seeds=1)
    # Four photographs of each type, then the good one.
    monkeypatch.setattr(Split, "subjects", lambda parts: np.array([0, 0, 1, 1, 2, 2, 3, 3, 4]))
    anew = evaluated(data, tmp_path / "anew", sources=["ours"], seeds=1)
    monkeypatch.setattr(trials, "learn", refused)
    second = evaluated(data, tmp_path / "r", sources=["ours"], seeds=1)
    assert second["agreement"] == anew["agreement"] != first["agreement"]


def test_a_segmenter_is_trained_on_one_thread_wherever_that_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    real = trials.learn

    def counted(*arguments):
        threads.append(torch.get_num_threads())
        return real(*arguments)

    monkeypatch.setattr(trials, "learn", counted)
    torch.set_num_threads(2)
    try:
        evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert threads == [1, 1, 1]


def test_pictures_are_sent_to_processes_as_files_that_are_gone_in_the_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "r" / "engine" / "pictures" / "of-one-that-was-killed.npy"
    left.parent.mkdir(parents=True)
    left.touch()
    seen: list[Pictures] = []
    real = trials.learn

    def sent(parts, good, *others):
        seen.extend([*parts, good])
        assert not left.exists()
        for one in (*parts, good):
            content = pickle.dumps(one)
            again = pickle.loads(content)
            assert len(content) < 3000 < one.images.nbytes
            assert again.digest == one.digest
            assert again.names == one.names
        return real(parts, good, *others)

    monkeypatch.setattr(trials, "learn", sent)
    evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
    assert len(seen) == 3 + 2 + 2
    assert not left.parent.exists()


def test_two_evaluations_do_not_share_a_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = trials.learn, []

    def interrupted(*arguments):
        if not asked:
            asked.append(1)
            with pytest.raises(
                InputError, match=r"another evaluation is writing `.*r/engine`: wait for it to end"
            ):
                evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
        return real(*arguments)

    monkeypatch.setattr(trials, "learn", interrupted)
    assert len(evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)["rows"]) == 3
    assert asked


def test_segmenters_trained_side_by_side_are_those_trained_in_turn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn = evaluated(data, tmp_path / "1", sources=["cutpaste"])
    monkeypatch.setattr(trials, "cores", lambda: 2)
    side_by_side = evaluated(data, tmp_path / "2", sources=["cutpaste"])
    assert side_by_side["rows"] == in_turn["rows"]


def test_a_killed_trainer_is_told_and_what_was_computed_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "cores", lambda: 2)
    monkeypatch.setattr(trials, "_learn", killed)
    with pytest.raises(
        StageError, match="was killed, as happens when memory is short: give the same command"
    ):
        evaluated(data, tmp_path / "r", sources=["cutpaste"])


def killed(trials, job) -> None:
    os._exit(9)


def test_a_segmenter_that_is_not_finite_is_told_and_not_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trials.learn

    def broken(*arguments):
        network = real(*arguments)
        with torch.no_grad():
            next(network.parameters()).fill_(np.nan)
        return network

    monkeypatch.setattr(trials, "learn", broken)
    with pytest.raises(StageError, match=r"learned 'real only' \(seed 0\) came out non-finite: give another"):
        evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
    assert not list((tmp_path / "r" / "engine" / "cache").iterdir())
    monkeypatch.setattr(trials, "learn", real)
    assert evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)["rows"]


@pytest.mark.parametrize(
    ("size", "side"),
    [((222, 290), 192), ((500, 1260), 384), ((40, 40), 128), ((40, 500), 128), ((8000, 8000), 384)],
)
def test_pictures_are_not_much_smaller_than_photographs(tmp_path: Path, size, side: int) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path, shape in zip(paths, (size, size, (9, 9)), strict=True):
        Image.new("L", shape).save(path)
    assert side_of(paths) == side


def test_a_published_run_is_a_source(data: Path, tmp_path: Path) -> None:
    theirs = published(data, tmp_path / "theirs")
    result = evaluated(data, tmp_path / "r", sources=[f"dfmgan={theirs}"], seeds=1)
    assert "with dfmgan" in [row["row"] for row in result["rows"]]
    assert (
        "whether their generators saw photographs of the test is not known"
        in (tmp_path / "r" / report.PAGE).read_text()
    )
    with pytest.raises(InputError, match="asked for twice"):
        evaluate._named(["ours", "ours"])


def test_a_published_run_that_shows_the_test_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is to be learned from and is the test's .*2\.png"):
        evaluated(data, tmp_path / "r", sources=[f"mine={data}"])


def published(data: Path, folder: Path) -> Path:
    """Two pairs of each type in the layout of AnomalyDiffusion."""
    for kind in ("dent", "spot"):
        for name, source in (("image", data / "test"), ("mask", data / "ground_truth")):
            (folder / kind / name).mkdir(parents=True)
            for n in (0, 1):
                stem = f"{n}_mask.png" if name == "mask" else f"{n}.png"
                (folder / kind / name / f"{n}.png").write_bytes((source / kind / stem).read_bytes())
    return folder


def test_a_published_run_without_a_label_is_told_of_before_anything_is_painted(
    data: Path, tmp_path: Path
) -> None:
    theirs = published(data, tmp_path / "theirs")
    Image.new("L", (40, 40)).save(theirs / "spot" / "mask" / "1.png")
    with pytest.raises(MaskError, match=r"1\.png"):
        evaluated(data, tmp_path / "r", sources=["ours", f"dfmgan={theirs}"], seeds=1)
    assert not (tmp_path / "r" / "engine" / "pairs").exists()


def test_a_source_may_be_called_anything(data: Path, tmp_path: Path) -> None:
    theirs = published(data, tmp_path / "theirs")
    result = evaluated(data, tmp_path / "r", sources=[f"a$b_$c={theirs}"], seeds=1)
    assert "with a$b_$c" in [row["row"] for row in result["rows"]]


def test_pairs_of_a_model_for_another_system_are_painted_by_its_sampler(data: Path) -> None:
    fast = engine()
    model = fast.spec.model.model_copy(update={"system": "fast"})
    fast.spec = fast.spec.model_copy(update={"model": model})
    order = sources.Order(pairs=1, steps=100, seed=0)
    asked = sources.job(split(data, model), "dent", order, fast)
    assert asked.sampler == "fast"
    check_sampler(asked.sampler, model)


def test_a_baseline_is_painted_again_where_it_was_made_of_something_else(data: Path, tmp_path: Path) -> None:
    evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
    run = tmp_path / "r" / "engine" / "pairs" / "cutpaste" / "dent"
    files = [run / "test/dent/000000.png", run / "ground_truth/dent/000000_mask.png"]
    before, times = [path.read_bytes() for path in files], [path.stat().st_mtime_ns for path in files]
    evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
    assert [path.stat().st_mtime_ns for path in files] == times
    for n in (0, 1):
        path = data / "ground_truth" / "dent" / f"{n}_mask.png"
        mask = np.asarray(opened(path))
        Image.fromarray(np.maximum(mask, np.roll(mask, 4, axis=0))).save(path)
    evaluated(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
    assert files[1].read_bytes() != before[1]
    ours = tmp_path / "other" / "engine" / "pairs" / "cutpaste" / "dent"
    evaluated(data, tmp_path / "other", sources=["cutpaste"], seeds=1)
    assert [path.read_bytes() for path in files] == [
        (ours / path.relative_to(run)).read_bytes() for path in files
    ]


def test_a_baseline_that_another_order_left_half_painted_is_painted_again(data: Path, tmp_path: Path) -> None:
    """And so is a file that was changed or is gone: a line of the manifest tells the bytes that were written."""
    run = tmp_path / "cutpaste" / "dent"

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(run.rglob("*.png"))}

    paint(data, tmp_path, seed=0)
    whole = files()
    with pytest.raises(KeyboardInterrupt):
        paint(data, tmp_path, seed=1, progress=interrupt)
    assert files() != whole
    paint(data, tmp_path, seed=0)
    assert files() == whole
    (run / "test/dent/000001.png").write_bytes(whole["000000.png"])
    (run / "ground_truth/dent/000002_mask.png").unlink()
    paint(data, tmp_path, seed=0)
    assert files() == whole
    manifest = run / "manifest.jsonl"
    lines = manifest.read_bytes()
    manifest.write_bytes(lines[:-20])
    paint(data, tmp_path, seed=0)
    assert files() == whole
    assert manifest.read_bytes() == lines


def paint(data: Path, folder: Path, *, seed: int, pairs: int = 3, progress: Progress = silent) -> None:
    """A baseline's pairs, three of each type."""
    made = engine()
    order = sources.Order(pairs=pairs, steps=10, seed=seed)
    sources.Sources(split(data, made.spec.model), order, made, folder).make("cutpaste", progress)


def interrupt(share: float) -> None:
    raise KeyboardInterrupt


def test_what_paints_a_baseline_are_all_modules_it_may_call_and_their_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    monkeypatch.setattr(sources, "sha256", lambda path: read.append(path.name) or "same")
    before = sources._code_of("draem")
    assert {"draem.py", "textures.py"} <= set(read)
    monkeypatch.setattr(sources.cv2, "__version__", "another")
    assert sources._code_of("draem") != before
    before = sources._code_of("procedural")
    monkeypatch.setattr(sources.procedural, "release", lambda: "another")
    assert sources._code_of("procedural") != before


def test_a_label_is_made_once_for_all_baselines(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, label = [], Sample.label

    def counted(sample: Sample, photo: np.ndarray) -> np.ndarray:
        asked.append((sample.mask, sample.index))
        return label(sample, photo)

    monkeypatch.setattr(Sample, "label", counted)
    evaluated(data, tmp_path / "r", sources=["cutpaste", "draem"], seeds=1)
    assert len(asked) == len({index for _, index in asked}) * 2 == 8
    masks = [
        sorted((tmp_path / "r" / "engine" / "pairs" / name).rglob("*_mask.png"))
        for name in ("cutpaste", "draem")
    ]
    assert [path.read_bytes() for path in masks[0]] == [path.read_bytes() for path in masks[1]]


def test_a_photograph_is_decoded_for_its_check_once_for_all_baselines(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, look = [], plan.check_image

    def counted(path: Path) -> tuple[Header, str, int | None]:
        asked.append(path)
        return look(path)

    monkeypatch.setattr("stage_rt.run.checks.SETTLED", 0)
    monkeypatch.setattr(plan, "check_image", counted)
    evaluated(data, tmp_path / "r", sources=["cutpaste", "draem"], seeds=1)
    assert len(asked) == len(set(asked)) == 6


def test_fewer_pairs_than_are_there_are_refused_by_the_name_of_the_option(data: Path, tmp_path: Path) -> None:
    evaluated(data, tmp_path / "r", sources=["ours"], seeds=1, pairs=3)
    with pytest.raises(InputError, match=r"holds 3 pairs already: give `--pairs 3` or more, or another `-o`"):
        evaluated(data, tmp_path / "r", sources=["ours"], seeds=1, pairs=2)
    # Before any other source is made.
    with pytest.raises(InputError, match="holds 3 pairs already"):
        evaluated(data, tmp_path / "r", sources=["cutpaste", "ours"], seeds=1, pairs=2)
    assert not (tmp_path / "r" / "engine" / "pairs" / "cutpaste").exists()


def test_pairs_of_a_baseline_beyond_a_smaller_order_are_there_for_a_larger_one(
    data: Path, tmp_path: Path
) -> None:
    paint(data, tmp_path, seed=0)
    run = tmp_path / "cutpaste" / "dent"
    kept, last = (run / "manifest.jsonl").read_bytes(), run / "test/dent/000002.png"
    written = last.stat().st_mtime_ns
    paint(data, tmp_path, seed=0, pairs=1)
    paint(data, tmp_path, seed=0)
    assert (run / "manifest.jsonl").read_bytes() == kept
    assert last.stat().st_mtime_ns == written


def test_our_pairs_of_other_rules_are_painted_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else of the evaluation is kept, and however many there were."""
    evaluated(data, tmp_path / "r", sources=["ours", "cutpaste"], seeds=1, pairs=3)
    runs = [tmp_path / "r" / "engine" / "pairs" / name / "dent" for name in ("ours", "cutpaste")]
    told = json.loads((runs[0] / "run.json").read_text())
    assert told.pop("rules") == plan.RULES
    (runs[0] / "run.json").write_text(json.dumps(told | {"count": 4}))

    def seen() -> list[tuple[bytes, int]]:
        images = [run / "test/dent/000001.png" for run in runs]
        return [(image.read_bytes(), image.stat().st_mtime_ns) for image in images]

    before = seen()
    with monkeypatch.context() as cut:
        cut.setattr(sources, "fill", lambda *_, **__: interrupt(0.0))
        with pytest.raises(KeyboardInterrupt):
            evaluated(data, tmp_path / "r", sources=["ours"], seeds=1, pairs=3)
    assert not list(runs[0].iterdir())
    evaluated(data, tmp_path / "r", sources=["ours", "cutpaste"], seeds=1, pairs=3)
    (ours, theirs), (ours_before, theirs_before) = seen(), before
    assert theirs == theirs_before
    assert ours[0] == ours_before[0]
    assert ours[1] != ours_before[1]
    assert json.loads((runs[0] / "run.json").read_text())["rules"] == plan.RULES


@pytest.mark.parametrize("name", ["nothing", "procedurally"])
def test_an_unknown_source_is_named_with_those_there_are(data: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"unknown source '{name}': use ours, "):
        evaluated(data, tmp_path / "r", sources=[name])


def test_the_ablation_paints_with_another_recipe_in_runs_of_its_own(data: Path, tmp_path: Path) -> None:
    fake = engine()
    recipe = fake.spec.model.recipe.model_copy(update={"steps": 1000, "ema_stop": 200})
    fake.spec = fake.spec.model_copy(update={"model": fake.spec.model.model_copy(update={"recipe": recipe})})
    asked = request(data, sources=["ours"], seeds=1, recipe="+aif")
    run_with(fake, asked, tmp_path / "r")
    spec = json.loads((tmp_path / "r" / "engine" / "pairs" / "ours-+aif" / "dent" / "run.json").read_text())
    assert spec["recipe"]["name"] == "+aif"


@pytest.mark.parametrize(("types", "steps"), [(1, 4000), (2, 4000), (3, 6000), (5, 10000)])
def test_each_of_many_types_is_shown_as_often_as_each_of_two(types, steps):
    lesson = lesson_of(SIZES["cpu"], types)
    assert lesson.steps == steps
    assert lesson == replace(SIZES["cpu"].lesson, steps=steps)


def test_names_of_rows_are_broken_where_their_column_ends() -> None:
    font = ImageFont.load_default(11)
    assert report._wrapped("real only", font) == ["real only"]
    name = "with ours-shifted (blowhole, break, crack)"
    lines = report._wrapped(name, font)
    assert " ".join(lines) == name
    assert len(lines) > 1
    assert all(font.getlength(line) <= 122 for line in lines)
