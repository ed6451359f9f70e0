import json

import numpy as np
import pytest
from fake_engine import FakeEngine, contents

from stage_rt.errors import RunError
from stage_rt.recipe import Recipe
from stage_rt.run.fill import fill
from stage_rt.run.ledger import Manifest, Place, open_run, same_job
from stage_rt.run.writer import pair_paths, write_pair
from stage_rt.spec import PairRecord, RunSpec

RNG = np.random.default_rng(0)
PROMPT = "tile+hole"


def run_spec(**changes) -> RunSpec:
    fields = {
        "engine": "a" * 64,
        "backend": "onnxruntime",
        "recipe": Recipe.authors(),
        "prompt": PROMPT,
        "count": 3,
        "seed": 0,
        "composite": True,
        "batch": 2,
        "normals": "b" * 64,
        "masks": "c" * 64,
    }
    return RunSpec.model_validate(fields | changes)


def record(index: int, **changes) -> PairRecord:
    image, mask = pair_paths(PROMPT, index)
    fields = {
        "index": index,
        "status": "ok",
        "image": image,
        "mask": mask,
        "image_sha256": "d" * 64,
        "mask_sha256": "e" * 64,
        "normal": "n.png",
        "label": "m.png",
        "prompt": PROMPT,
        "seed": 0,
        "latent_mask_cells": 1,
    }
    return PairRecord.model_validate(fields | changes)


def test_a_manifest_is_read_back_and_the_last_line_of_an_index_counts(tmp_path):
    path = tmp_path / "manifest.jsonl"
    manifest = Manifest(path, PROMPT)
    failed = record(
        1, status="failed", reason="x", image=None, mask=None, image_sha256=None, mask_sha256=None
    )
    for line in (record(0), failed, record(1)):
        manifest.append(line)
    assert path.read_bytes().count(b"\n") == 3
    again = Manifest(path, PROMPT)
    assert again.records == {0: record(0), 1: record(1)}
    again.tidy(sorted(again.records))
    assert path.read_bytes().count(b"\n") == 2
    assert Manifest(path, PROMPT).records == again.records


def test_a_line_that_could_not_be_synced_is_not_there_and_the_next_is(tmp_path, monkeypatch):
    manifest = Manifest(tmp_path / "manifest.jsonl", PROMPT)
    manifest.append(record(0))

    def full(handle):
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full)
        with pytest.raises(OSError, match="full"):
            manifest.append(record(1))
    manifest.append(record(2))
    assert manifest.records[2] == record(2)
    assert set(Manifest(tmp_path / "manifest.jsonl", PROMPT).records) == {0, 2}


def test_tidying_puts_lines_in_the_order_of_their_index(tmp_path):
    for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
        manifest = Manifest(tmp_path / name, PROMPT)
        for index in order:
            manifest.append(record(index))
        manifest.tidy(sorted(manifest.records))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path):
    path = tmp_path / "manifest.jsonl"
    manifest = Manifest(path, PROMPT)
    manifest.append(record(0))
    whole = path.read_bytes()
    manifest.append(record(1))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        found = Manifest(path, PROMPT).records
        assert found == ({0: record(0)} if length >= len(whole) else {})
        assert path.read_bytes() == (whole if length >= len(whole) else b"")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"nonsense",
        b"\0" * 40,
        b"[]",
        b"{}",
        record(1).model_dump_json().replace("test/hole/000001.png", "../outside.png").encode(),
        record(1).model_dump_json().replace("test/hole/000001.png", "test/hole/000009.png").encode(),
        record(1).model_dump_json().replace('"seed":0', '"seed":0,"more":1').encode(),
    ],
)
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "manifest.jsonl"
    lines = [record(0).model_dump_json().encode(), damage, record(2).model_dump_json().encode()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(RunError) as refused:
        Manifest(path, PROMPT)
    assert str(refused.value) == (
        f"`{path}` is damaged in line 2: delete that line and run the same command again"
    )


def test_an_edited_figure_of_a_line_is_damage(tmp_path):
    path = tmp_path / "manifest.jsonl"
    Manifest(path, PROMPT).append(record(0))
    path.write_bytes(path.read_bytes().replace(b'"seed":0', b'"seed":1'))
    with pytest.raises(RunError, match="is damaged in line 1"):
        Manifest(path, PROMPT)


def test_a_record_is_not_believed_that_is_not_as_planned(job, run):
    fill(FakeEngine(), job, run)
    before, path = contents(run), run / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["normal"], lines[2]["label"], lines[3]["seed"] = "other.png", "other.png", 7
    lines[4] |= {
        "status": "left out",
        "reason": "so I say",
        "prompt": "tile+crack",
        "image": None,
        "mask": None,
    }
    stray = lines[0] | {
        "index": 77,
        "image": "test/hole/000077.png",
        "mask": "ground_truth/hole/000077_mask.png",
    }
    for line in (*lines, stray):
        line.pop("check", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in (*lines, stray)))
    engine = FakeEngine()
    fill(engine, job, run)
    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert contents(run) == before


def test_a_pair_is_done_only_while_both_files_have_their_bytes(tmp_path):
    paths = pair_paths(PROMPT, 0)
    digests = write_pair(tmp_path, paths, b"an image", b"a mask")
    manifest = Manifest(tmp_path / "manifest.jsonl", PROMPT)
    assert not manifest.done(0, tmp_path, {})
    manifest.append(record(0, image_sha256=digests[0], mask_sha256=digests[1]))
    assert manifest.done(0, tmp_path, {})
    for path in paths:
        content = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(content[:-1] + b"!")
        assert not manifest.done(0, tmp_path, {})
        (tmp_path / path).unlink()
        assert not manifest.done(0, tmp_path, {})
        (tmp_path / path).write_bytes(content)
    assert manifest.done(0, tmp_path, {})


def test_a_run_opens_again_with_the_same_job_only(tmp_path):
    folder = tmp_path / "new" / "run"
    with open_run(Place.of(folder), run_spec()):
        assert RunSpec.model_validate_json((folder / "run.json").read_bytes()) == run_spec()
    with open_run(Place.of(folder), run_spec()):
        pass


@pytest.mark.parametrize(
    ("begun", "change", "message"),
    [
        ({}, {"seed": 1}, "whose seed is 0 and not 1: add `--seed 0`"),
        ({"steps": 20}, {"steps": 50}, "whose steps is 20 and not 50: add `--steps 20`"),
        ({}, {"steps": 50}, "whose steps is 1000 and not 50: add `--steps 1000`"),
        ({}, {"min_fill": 0.5}, "whose min_fill is 0.0 and not 0.5: add `--min-fill 0`"),
        ({}, {"mask_class": 3}, "whose mask_class is None and not 3: leave `--mask-class` out"),
        (
            {},
            {"prompt": "tile+crack"},
            "whose prompt is 'tile+hole' and not 'tile+crack': add `--prompt tile+hole`",
        ),
        ({}, {"composite": False}, "whose composite is True and not False: leave `--no-composite` out"),
        ({"strict": True}, {}, "whose strict is True and not False: add `--strict`"),
        (
            {},
            {"region": {"least": 32, "slender": 4}},
            "whose view is whole and not region: add `--view whole`",
        ),
        ({}, {"masks": "f" * 64}, "whose masks are others (0 are given): give the files it was started with"),
        (
            {},
            {"engine": "f" * 64},
            "whose engine is of other graphs (aaaaaaaaaaaa... and not ffffffffffff...): "
            "give the engine it was started with",
        ),
        (
            {"dtype": "bf16"},
            {"engine": "f" * 64, "dtype": "fp32"},
            "whose engine is bf16 and not fp32: give an engine that was built with `--dtype bf16`",
        ),
        (
            {},
            {"recipe": Recipe.authors().model_copy(update={"mask_rule": "authors"})},
            "whose recipe.mask_rule is 'cover' and not 'authors': give the job it was started with",
        ),
        (
            {},
            {"recipe": Recipe.paper()},
            "whose recipe.name is 'authors' and not 'paper': add `--recipe authors`",
        ),
        (
            {"recipe": Recipe.authors().guided(2)},
            {},
            "whose recipe.guidance is 2.0 and not 1.0: add `--guidance 2`",
        ),
        ({"rim": (0.5,)}, {}, "whose rim is (0.5,) and not (): leave `--no-rim` out"),
        ({}, {"rim": (0.5,)}, "whose rim is () and not (0.5,): add `--no-rim`"),
        ({}, {"objects": "f" * 64}, "whose masks of the object are others: leave `--object` out"),
        (
            {"objects": "f" * 64},
            {},
            "whose masks of the object are others: give the `--object` it was started with",
        ),
    ],
)
def test_another_job_is_refused_with_the_difference(tmp_path, begun, change, message):
    with open_run(Place.of(tmp_path), run_spec(**begun)):
        pass
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunError) as refused, open_run(Place.of(tmp_path), run_spec(**change)):
        pass
    assert str(refused.value) == f"`{tmp_path}` holds another run, {message} or give another `-o`"
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_run_of_an_older_release_learns_its_dtype(tmp_path):
    with open_run(Place.of(tmp_path), run_spec()):
        assert "dtype" not in json.loads((tmp_path / "run.json").read_text())
    with open_run(Place.of(tmp_path), run_spec(dtype="bf16")):
        assert json.loads((tmp_path / "run.json").read_text())["dtype"] == "bf16"


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"new.png": None}, "`new.png` added, or in no pair so far"),
        ({"b.png": None}, "`b.png` removed or renamed"),
        (
            {"b.png": None, "new.png": None},
            "`b.png` removed or renamed; `new.png` added, or in no pair so far",
        ),
        ({"b.png": "f" * 64}, "`b.png` changed"),
        (
            {f"{n}.png": None for n in range(5)},
            "`0.png`, `1.png`, `2.png` and 2 more added, or in no pair so far",
        ),
    ],
)
def test_files_that_are_not_those_of_before_are_named(tmp_path, others, message):
    names = {"a.png": "1" * 64, "b.png": "2" * 64}
    with open_run(Place.of(tmp_path), run_spec()) as manifest:
        for number, (name, digest) in enumerate(names.items()):
            manifest.append(
                record(number, normal=name, normal_sha256=digest, label=name, label_sha256=digest)
            )
    given = {name: digest for name, digest in (names | others).items() if names.get(name) is None or digest}
    names = {"normals": given, "masks": given}
    for field, what in [("normals", "photographs"), ("masks", "masks")]:
        with (
            pytest.raises(RunError) as refused,
            open_run(Place.of(tmp_path), run_spec(**{field: "f" * 64}), lambda: names),
        ):
            pass
        assert str(refused.value) == (
            f"`{tmp_path}` holds another run, whose {what} are others ({message}): "
            "give the files it was started with or give another `-o`"
        )


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(
        RunError, match="holds files that are no run of stage-rt: give an empty folder as `-o`"
    ):
        open_run(Place.of(tmp_path), run_spec()).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("x")
    for folder in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(RunError, match="cannot be made a folder: give another `-o`"):
            open_run(Place.of(folder), run_spec()).__enter__()


def test_a_run_of_a_later_release_is_told_apart(tmp_path):
    (tmp_path / "run.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match=r"run.json` was made by a newer stage-rt: update this one$"):
        open_run(Place.of(tmp_path), run_spec()).__enter__()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"format": 0}'])
def test_a_damaged_run_file_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json` is damaged: start again in an empty folder"):
        open_run(Place.of(tmp_path), run_spec()).__enter__()


def test_a_run_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "run.json").touch()

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "read_bytes", denied)
    with pytest.raises(
        RunError, match=r"run.json` may not be read: give yourself permission and run the same"
    ):
        same_job(tmp_path / "run.json", run_spec())


def test_what_a_crash_left_staged_is_swept_out(tmp_path):
    (tmp_path / ".run.json.0123abcd.tmp").write_text("x")
    (tmp_path / "test/hole").mkdir(parents=True)
    (tmp_path / "run.json").write_text(run_spec().model_dump_json())
    (tmp_path / "test/hole/.000000.png.0123abcd.tmp").write_text("x")
    with open_run(Place.of(tmp_path), run_spec()):
        assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_what_a_crash_left_staged_beside_several_types_is_swept_out_too(tmp_path):
    (tmp_path / "types/hole").mkdir(parents=True)
    for name in ("..checks.0123abcd.tmp", "types/hole/.run.json.0123abcd.tmp"):
        (tmp_path / name).write_text("x")
    with open_run(Place(tmp_path, tmp_path / "types/hole"), run_spec()):
        assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_what_the_run_did_not_make_is_left_alone(tmp_path):
    names = [
        ".notes.tmp",
        ".notes.txt.0123abcd.tmp",
        ".run.json.tmp",
        ".run.json.0123ABCD.tmp",
        "mine/.run.json.0123abcd.tmp",
        "test/hole/.holiday.png.0123abcd.tmp",
        "test/other/.000000.png.0123abcd.tmp",
    ]
    (tmp_path / "run.json").write_text(run_spec().model_dump_json())
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with open_run(Place.of(tmp_path), run_spec()):
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tmp")} == set(names)


def test_a_folder_is_filled_by_one_run_at_a_time(tmp_path):
    message = "is being filled by another process: wait for it to end"
    with open_run(Place.of(tmp_path), run_spec()), pytest.raises(RunError, match=message):
        open_run(Place.of(tmp_path), run_spec()).__enter__()
    with open_run(Place.of(tmp_path), run_spec()):
        pass
