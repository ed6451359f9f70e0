import json
import re
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import PROMPT, FakeEngine, contents, manifest, opened, photographs
from PIL import Image
from scipy import ndimage

from stage_rt.errors import InputError, RunError
from stage_rt.images.labels import Figures
from stage_rt.run.fill import fill
from stage_rt.run.job import Job, resolve
from stage_rt.spec import PromptDefaults, RegionView
from stage_rt.strokes import Stroke, combined, refill

ATTEMPT, REGION = 1 << 28, 1 << 20


def stroke(fill: float) -> Stroke:
    return Stroke(np.zeros((1, 1, 3), np.uint8), Figures(fill, 0, 0, 8, 1))


def painter(table):
    """Fill of region k in attempt n: ``table[n][k]``; and what was asked for."""
    asked = []

    def paint(places, attempt):
        asked.append((attempt, list(places)))
        return [stroke(table[attempt][place]) for place in places]

    return paint, asked


def test_only_weak_regions_are_painted_again_and_the_best_attempt_stays():
    paint, asked = painter([[0.9, 0.1, 0.3], [None, 0.2, 0.8], [None, 0.15, None]])
    best = refill(paint, 3, min_fill=0.5, retries=2)
    assert asked == [(0, [0, 1, 2]), (1, [1, 2]), (2, [1])]
    assert [(one.fill, one.attempts) for one in best] == [(0.9, 1), (0.2, 3), (0.8, 2)]


def test_nothing_is_painted_again_without_retries_or_when_all_is_well():
    paint, asked = painter([[0.1]])
    assert refill(paint, 1, min_fill=0.5, retries=0)[0].attempts == 1
    paint, asked = painter([[0.5]])
    assert refill(paint, 1, min_fill=0.5, retries=9)[0].attempts == 1
    assert asked == [(0, [0])]


def test_a_region_that_is_not_finite_is_weaker_than_any():
    def paint(places, attempt):
        return [Stroke(None, None) if attempt == 0 else stroke(0.0)]

    (best,) = refill(paint, 1, min_fill=0.1, retries=1)
    assert (best.fill, best.attempts) == (0.0, 2)
    assert best.levels is not None


def test_figures_of_regions_are_means_over_labelled_pixels():
    both = combined([Figures(1.0, 0.0, -40, 8, 30), Figures(0.2, 0.1, 20, 12, 10)])
    assert both == Figures(pytest.approx(0.8), 0.1, pytest.approx(-25), pytest.approx(9), 40)


def weak_at_first(stream: int) -> bool:
    """Samples 2 and 5 show nothing before their third attempt, sample 8 never does."""
    sample, attempt = stream % REGION, stream // ATTEMPT
    return sample == 8 or (sample in (2, 5) and attempt < 2)


def test_weak_pairs_are_painted_again_from_other_streams(job, tmp_path):
    engine = FakeEngine(idle=weak_at_first)
    summary = fill(engine, replace(job, min_fill=0.5), tmp_path / "run")
    assert engine.batches[:4] == [[0, 1, 2, 3], [2 + ATTEMPT], [2 + 2 * ATTEMPT], [4, 5, 6, 7]]
    assert (summary.weak, summary.refilled, summary.left_out, summary.pairs) == ([8], 3, [], 10)
    lines = manifest(tmp_path / "run")
    assert {line["index"]: line.get("attempts") for line in lines if "attempts" in line} == {2: 3, 5: 3, 8: 6}
    assert [line["index"] for line in lines if line.get("weak")] == [8]
    page = (tmp_path / "run" / "report/index.html").read_text()
    assert "1 weak" in page
    assert "<dt>painted again</dt><dd>3</dd>" in page


def test_without_a_least_fill_the_bytes_are_what_they_were(job, tmp_path):
    fill(FakeEngine(idle=weak_at_first), job, tmp_path / "one")
    fill(FakeEngine(idle=weak_at_first), replace(job, min_fill=0.0, retries=3), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    fill(FakeEngine(idle=weak_at_first), replace(job, min_fill=0.5), tmp_path / "three")
    same = [line["image"] for line in manifest(tmp_path / "three") if "attempts" not in line]
    assert len(same) == 7
    assert all(
        (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes() for name in same
    )


def test_a_strict_run_leaves_weak_pairs_out_and_does_not_paint_them_again(job, tmp_path):
    strict = replace(job, min_fill=0.5, strict=True)
    summary = fill(FakeEngine(idle=weak_at_first), strict, tmp_path / "run")
    assert (summary.left_out, summary.pairs, summary.failed, summary.refilled) == ([8], 9, [], 3)
    assert "<dt>painted again</dt><dd>3</dd>" in (tmp_path / "run/report/index.html").read_text()
    assert not (tmp_path / "run" / "test" / "hole" / "000008.png").exists()
    again = FakeEngine(idle=weak_at_first)
    assert fill(again, strict, tmp_path / "run").written == 0
    assert again.batches == []
    assert "left out" in (tmp_path / "run" / "report/index.html").read_text()


def test_what_was_left_out_for_a_little_is_told_to_be_less(job, tmp_path):
    fill(FakeEngine(), job, tmp_path / "all")
    most = max(line["fill"] for line in manifest(tmp_path / "all"))
    strict = replace(job, min_fill=round(most + 0.0001, 4), strict=True, retries=0)
    assert fill(FakeEngine(), strict, tmp_path / "run").pairs == 0
    for line in manifest(tmp_path / "run"):
        painted, least = re.fullmatch(
            r"(.+)% of a label was painted, less than (.+)%", line["reason"]
        ).groups()
        assert float(painted) < float(least) == pytest.approx(100 * strict.min_fill)


def test_a_run_with_refill_is_resumed_to_the_same_bytes(job, tmp_path):
    job = replace(job, min_fill=0.5)
    fill(FakeEngine(idle=weak_at_first), job, tmp_path / "whole")
    fill(FakeEngine(idle=weak_at_first), job, tmp_path / "cut")
    lines = (tmp_path / "cut" / "manifest.jsonl").read_text().splitlines(keepends=True)
    for line in lines[3:7]:
        (tmp_path / "cut" / json.loads(line)["image"]).unlink()
    (tmp_path / "cut" / "manifest.jsonl").write_text("".join(lines[:3] + lines[7:]))
    fill(FakeEngine(idle=weak_at_first), job, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"min_fill": 0.4}, {"retries": 3}, {"strict": True}, {"view": "region"}])
def test_a_run_is_not_resumed_with_another_demand(job, tmp_path, change):
    fill(FakeEngine(), replace(job, min_fill=0.5), tmp_path / "run")
    with pytest.raises(RunError, match="holds another run, whose"):
        fill(FakeEngine(), replace(job, **{"min_fill": 0.5} | change), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_fill": 2.0}, "`min_fill` must be a share of the label from 0 to 1, not 2"),
        ({"min_fill": float("nan")}, "`min_fill` must be a share"),
        ({"min_fill": 0.5, "retries": 16}, "`retries` must be from 0 to 15, not 16"),
        ({"view": "region", "composite": False}, "add `--view whole`"),
    ],
)
def test_demands_that_cannot_be_are_refused(job, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        fill(FakeEngine(), replace(job, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_models_own_demand_and_guidance_are_the_defaults_of_its_prompt(job, tmp_path):
    defaults = {PROMPT: PromptDefaults(guidance=3.0, min_fill=0.5)}
    fill(FakeEngine(defaults=defaults), job, tmp_path / "run")
    spec = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (spec["recipe"]["guidance"], spec["min_fill"], spec["retries"]) == (3.0, 0.5, 5)
    fill(FakeEngine(defaults=defaults), replace(job, min_fill=0.0, guidance=1.0), tmp_path / "other")
    spec = json.loads((tmp_path / "other" / "run.json").read_text())
    assert "min_fill" not in spec
    assert "guidance" not in spec["recipe"]


@pytest.fixture
def large(tmp_path) -> Job:
    """A photograph of 300x200 with three defects: two small ones apart and one at the border."""
    label = np.zeros((200, 300), dtype=np.uint8)
    label[20:23, 30:33] = label[150:160, 200:220] = label[195:, 290:] = 255
    (tmp_path / "m").mkdir()
    Image.fromarray(label).save(tmp_path / "m" / "0.png")
    return Job(
        normals=photographs(tmp_path / "n", 2, size=(300, 200)),
        masks=[tmp_path / "m" / "0.png"],
        prompt=PROMPT,
        count=3,
        seed=1,
        composite=True,
        batch=4,
    )


def test_every_defect_is_painted_in_a_square_of_its_own(large, tmp_path):
    engine = FakeEngine(region=RegionView(least=32))
    fill(engine, large, tmp_path / "run")
    streams = [n + k * REGION for n in range(3) for k in range(3)]
    assert engine.batches == [streams[:4], streams[4:8], streams[8:]]
    for line in manifest(tmp_path / "run"):
        image, label = (np.asarray(opened(tmp_path / "run" / line[name])) for name in ("image", "mask"))
        photo = np.asarray(opened(tmp_path / "n" / line["normal"]))
        changed = np.abs(image.astype(int) - photo).max(axis=2) > 0
        near = np.asarray(Image.fromarray(label).resize((300, 200))) > 0
        assert line["regions"] == 3
        assert changed[near].mean() > 0.9
        assert not changed[60:140].any()


def test_a_defect_fades_out_beyond_its_label_where_the_models_do(large, tmp_path):
    """Paint reaches two pixels of the network beyond a label, adapters hear of the label alone."""
    engine = FakeEngine(region=RegionView(least=32))
    model = engine.spec.model.model_copy(update={"defaults": {PROMPT: PromptDefaults(rim=(0.9, 0.5))}})
    engine.spec = engine.spec.model_copy(update={"model": model})
    told: list[tuple[float, float]] = []
    paint = engine.paint

    def watched(images, masks, *, labels, **rest):
        assert ((labels == 0) | (masks == 1)).all()
        told.append((masks.sum(), labels.sum()))
        return paint(images, masks, labels=labels, **rest)

    engine.paint = watched
    fill(engine, large, tmp_path / "rim")
    assert all(masks > labels for masks, labels in told)
    fill(FakeEngine(region=RegionView(least=32)), large, tmp_path / "plain")
    assert json.loads((tmp_path / "rim" / "run.json").read_text())["rim"] == [0.9, 0.5]
    assert "rim" not in json.loads((tmp_path / "plain" / "run.json").read_text())
    for line in manifest(tmp_path / "rim"):
        photo = np.asarray(opened(tmp_path / "n" / line["normal"])).astype(int)
        label = np.asarray(opened(tmp_path / "rim" / line["mask"])) > 0
        counts = []
        for run in ("rim", "plain"):
            image = np.asarray(opened(tmp_path / run / line["image"])).astype(int)
            counts.append(int((np.abs(image - photo).max(axis=2) > 0)[~label].sum()))
        assert counts[0] > counts[1]
    engine.paint = paint
    fill(engine, replace(large, rim=False), tmp_path / "none")
    assert contents(tmp_path / "none") == contents(tmp_path / "plain")


def test_networks_are_told_of_wider_labels_where_the_prompt_asks_and_no_more_is_painted(large, tmp_path):
    plain = FakeEngine(region=RegionView(least=32))
    engine = FakeEngine(region=RegionView(least=32))
    model = engine.spec.model.model_copy(update={"defaults": {PROMPT: PromptDefaults(outset=1.5)}})
    engine.spec = engine.spec.model_copy(update={"model": model})
    told: dict[str, list[float]] = {"plain": [], "wider": []}
    for name, one in (("plain", plain), ("wider", engine)):

        def watched(images, masks, *, paint=one.paint, cells=told[name], **rest):
            cells += masks.sum(axis=(1, 2, 3)).tolist()
            return paint(images, masks, **rest)

        one.paint = watched
        fill(one, large, tmp_path / name)
    assert all(wide >= own for wide, own in zip(told["wider"], told["plain"], strict=True))
    assert sum(told["wider"]) > sum(told["plain"])
    assert json.loads((tmp_path / "wider" / "run.json").read_text())["outset"] == 1.5
    assert "outset" not in json.loads((tmp_path / "plain" / "run.json").read_text())
    for line in manifest(tmp_path / "wider"):
        photo = np.asarray(opened(tmp_path / "n" / line["normal"])).astype(int)
        image, label = (np.asarray(opened(tmp_path / "wider" / line[name])) for name in ("image", "mask"))
        beyond = ndimage.distance_transform_edt(label == 0) > 4
        assert not np.abs(image.astype(int) - photo)[beyond].any()
    for name, one in (("p", plain), ("w", engine)):
        fill(one, replace(large, view="whole"), tmp_path / name)
    assert contents(tmp_path / "w") == contents(tmp_path / "p")


@pytest.mark.parametrize("other", [{"view": "whole"}, {"recipe": "authors"}, {"sampler": "sdas"}])
def test_an_outset_is_of_the_view_recipe_and_sampler_that_it_was_measured_with(large, other):
    engine = FakeEngine(
        steps=1000, region=RegionView(least=32), defaults={PROMPT: PromptDefaults(outset=1.5)}
    )
    assert resolve(large, engine.spec.model).outset == 1.5
    assert resolve(replace(large, **other), engine.spec.model).outset == 0


def test_whole_view_of_a_region_model_is_one_square_and_told(large, tmp_path):
    told = []
    engine = FakeEngine(region=RegionView(least=32))
    fill(engine, replace(large, view="whole"), tmp_path / "run", notify=told.append)
    assert engine.batches == [[0, 1, 2]]
    assert told == ["the model was trained on squares around defects, so `--view whole` may paint worse"]


def test_a_resumed_run_of_regions_has_the_bytes_of_a_whole_one(large, tmp_path):
    engine = FakeEngine(region=RegionView(least=32))
    fill(engine, large, tmp_path / "whole")
    fill(engine, large, tmp_path / "cut")
    (tmp_path / "cut" / "test" / "hole" / "000001.png").unlink()
    fill(engine, large, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
