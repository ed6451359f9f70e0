"""Several splits of one data set as one result."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluations import SOURCES, engine, request
from fake_engine import opened

from stage_rt.errors import InputError
from stage_rt.quality import report, splits, trials
from stage_rt.quality.evaluate import Done, run
from stage_rt.quality.result import Measured
from stage_rt.quality.splits import Evaluated


def both(data: Path, folder: Path, shares: list[float] | None = None, **changes) -> Done:
    engines = {"first": engine(range(2, 6)), "second": engine(range(4))}
    told = [] if shares is None else shares
    return run(engines, request(data, **changes), folder, say=lambda line: None, progress=told.append)


def test_each_split_has_its_page_and_all_have_one(data: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    done = both(data, tmp_path / "r", shares)
    whole = json.loads((tmp_path / "r" / "result.json").read_text())
    assert whole == json.loads(json.dumps(done.result))
    each = [json.loads((tmp_path / "r" / name / "result.json").read_text()) for name in ("first", "second")]
    for number, row in enumerate(whole["rows"]):
        parts = [one["rows"][number] for one in each]
        assert [part["row"] for part in parts] == [row["row"]] * 2
        assert row["miou"] == pytest.approx(np.mean([part["miou"] for part in parts]), abs=0.01)
        assert row["miou_by_seed"] == [*parts[0]["miou_by_seed"], *parts[1]["miou_by_seed"]]
        assert row["seeds"] == 4
        assert set(row["iou"]) == {"dent", "spot"}
        assert [one["miou"][row["row"]] for one in whole["splits"]] == [part["miou"] for part in parts]
    assert len(whole["rows"]) == 1 + 2 * len(SOURCES)
    assert [one["engine"] for one in whole["splits"]] == ["first", "second"]
    (points,) = (
        one["points"]
        for one in whole["differences"]
        if (one["row"], one["from"]) == ("with ours", "real only")
    )
    miou = {row["row"]: row["miou"] for row in whole["rows"]}
    assert points == pytest.approx(miou["with ours"] - miou["real only"], abs=0.02)
    assert whole["how"]["command"] == "stage-rt evaluate part"
    assert each[0]["how"]["backend"] == whole["how"]["backend"] == "onnxruntime 0, fp32"
    page = (tmp_path / "r" / report.PAGE).read_text()
    assert '<a href="second/report.html">second</a>' in page
    assert "mean of 2 splits" in page
    assert "examples.png" not in page
    unlike = "segmenters did not have the same lesson"
    assert unlike not in page
    whole["splits"][1]["segmenter"] += ", turned by quarters"
    report.write(tmp_path / "unlike", whole)
    assert unlike in (tmp_path / "unlike" / report.PAGE).read_text()
    assert opened(tmp_path / "r" / report.PLOT).width > 300
    assert done.text.splitlines()[-1] == f"page `{tmp_path / 'r' / report.PAGE}`"
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_defect_that_both_splits_test_is_one_thing(data: Path, tmp_path: Path, monkeypatch) -> None:
    seen: list[Measured] = []
    monkeypatch.setattr(splits, "differences", lambda measured: seen.extend(measured) or [])
    both(data, tmp_path / "r", sources=["cutpaste"], seeds=1)
    first, second = (one.things for one in seen)
    assert first == [*(f"{kind}/{n}.png" for kind in ("dent", "spot") for n in range(2, 6)), "good/0.png"]
    assert set(first) & set(second) == {
        *(f"{kind}/{n}.png" for kind in ("dent", "spot") for n in (2, 3)),
        "good/0.png",
    }


def test_rows_that_one_split_lacks_are_left_out() -> None:
    def one(name: str, rows: dict[str, float], convincing: list[str]) -> Evaluated:
        counts = np.ones((2, 3, 2, 2), dtype=np.int64)
        result = {
            "object": "part",
            "types": ["dent"],
            "rows": [
                {
                    "row": row,
                    "seeds": 2,
                    "miou": miou,
                    "miou_by_seed": [miou] * 2,
                    "miou_learned": None if "alone" in row else 7.0,
                }
                for row, miou in rows.items()
            ],
            "agreement": {"ours": {"dent": {"iou": 40.0, "distance": None if name == "a" else 1.0}}},
            "convincing": {"ours": convincing},
            "how": {"engine": name, "seeds": 2, "segmenter": f"that of {name}"},
            **dict.fromkeys(splits.OF_A_SPLIT, 1),
        }
        return Evaluated(name, result, Measured(dict.fromkeys(rows, counts), ["x", "y", "z"]))

    shared = {"real only": 50.0, "with ours": 60.0, "ours alone": 30.0}
    pooled = splits.pooled(
        [
            one("a", shared | {"with ours (dent)": 1.0}, ["dent"]),
            one("b", {row: miou + 4 for row, miou in shared.items()}, []),
        ]
    )
    assert pooled["how"] == {"seeds": 2}
    assert [one["segmenter"] for one in pooled["splits"]] == ["that of a", "that of b"]
    assert {row["row"]: row["miou"] for row in pooled["rows"]} == {
        "real only": 52,
        "with ours": 62,
        "ours alone": 32,
    }
    assert [row["miou_learned"] for row in pooled["rows"]] == [7, 7, None]
    assert pooled["agreement"]["ours"]["dent"] == {"iou": 40, "distance": None}
    assert pooled["convincing"] == {"ours": []}
    assert {one["row"] for one in pooled["differences"]} == set(shared)


def test_a_split_that_was_evaluated_alone_is_not_learned_again_beside_another(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, place = request(data, sources=["cutpaste"], seeds=1), tmp_path / "r"
    run({"first": engine(range(2, 6))}, asked, place, say=lambda line: None, progress=lambda _: None)
    alone = json.loads((place / "result.json").read_text())
    learned: list[None] = []
    real = trials.learn
    monkeypatch.setattr(trials, "learn", lambda *given: learned.append(None) or real(*given))
    whole = both(data, place, sources=["cutpaste"], seeds=1).result
    assert len(learned) == 3
    assert whole["splits"][0]["miou"] == {row["row"]: row["miou"] for row in alone["rows"]}
    assert not (place / report.EXAMPLES).exists()
    assert (place / "first" / report.EXAMPLES).is_file()


def test_splits_of_other_types_have_no_mean(data: Path, tmp_path: Path) -> None:
    other = engine(range(4))
    model = other.spec.model.model_copy(update={"prompts": {"part+dent": "a"}})
    other.spec = other.spec.model_copy(update={"model": model})
    engines = {"first": engine(), "second": other}

    def asked(**changes) -> None:
        run(engines, request(data, **changes), tmp_path / "r", say=lambda line: None, progress=lambda _: None)

    with pytest.raises(
        InputError, match=r"`first` was trained on dent, spot and `second` on dent: name types"
    ):
        asked()
    assert not (tmp_path / "r").exists()
    asked(types=["dent"], sources=["cutpaste"], seeds=1)
    assert (tmp_path / "r" / "second" / report.PAGE).is_file()


def test_one_split_given_twice_is_no_two(data: Path, tmp_path: Path) -> None:
    engines = {"first": engine(), "second": engine()}
    with pytest.raises(InputError, match="`first` and `second` hold out the same photographs"):
        run(engines, request(data), tmp_path / "r", say=lambda line: None, progress=lambda _: None)
