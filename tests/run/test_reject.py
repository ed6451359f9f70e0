"""Pairs that a person rejected: painted again, once a list, to the same bytes however often that was cut off."""

import json
from dataclasses import replace

import pytest
from fake_engine import FakeEngine, contents, labels, manifest

from stage_rt.errors import InputError, RunError
from stage_rt.run.fill import fill
from stage_rt.run.night import follow_all, plans
from stage_rt.run.painters import Alone
from stage_rt.run.reject import read_list


def listed(run, *indices):
    """What the page's list says of some pairs."""
    lines = manifest(run)
    return {"hole": {index: lines[index]["image_sha256"][:16] for index in indices}}


def images(run):
    return {int(path.stem): path.read_bytes() for path in run.glob("test/hole/*")}


def test_rejected_pairs_get_another_image_and_the_others_keep_theirs(job, run):
    fill(FakeEngine(), job, run)
    before, lines = images(run), manifest(run)
    engine, told = FakeEngine(), []
    summary = fill(engine, job, run, rejected=listed(run, 3, 8), notify=told.append)
    assert (summary.written, summary.pairs) == (2, 10)
    assert told == ["2 rejected pairs to be painted again, 0 painted before"]
    assert engine.batches == [[0, 1, 2, 3], [8, 9]]
    after = images(run)
    assert {index for index in before if before[index] != after[index]} == {3, 8}
    for old, new in zip(lines, manifest(run), strict=True):
        if old["index"] in (3, 8):
            assert new["rejected"] == [old["image_sha256"]]
            assert (new["normal"], new["label"], new["seed"]) == (old["normal"], old["label"], old["seed"])
            assert (run / new["mask"]).read_bytes() == (run / old["mask"]).read_bytes()
        else:
            assert new == old
    assert len(list((run / "report/thumbnails/hole/000").iterdir())) == 10


def test_the_same_list_again_asks_for_nothing_and_another_for_a_third_image(job, run):
    fill(FakeEngine(), job, run)
    first = listed(run, 3)
    fill(FakeEngine(), job, run, rejected=first)
    whole, engine, told = contents(run), FakeEngine(), []
    fill(engine, job, run, rejected=first, notify=told.append)
    assert told == ["0 rejected pairs to be painted again, 1 painted before"]
    assert engine.batches == []
    assert contents(run) == whole
    fill(FakeEngine(), job, run, rejected=listed(run, 3))
    line = manifest(run)[3]
    assert len({*line["rejected"], line["image_sha256"]}) == 3


def test_what_was_cut_off_goes_on_without_the_list(job, run):
    for folder in (run, run.with_name("whole")):
        fill(FakeEngine(), job, folder)
    asked = listed(run, 1, 5, 9)
    fill(FakeEngine(), job, run.with_name("whole"), rejected=asked)
    wanted = contents(run.with_name("whole"))
    for step in range(1, 30, 4):
        told = 0

        def stop(share, step=step):
            nonlocal told
            told += 1
            if told > step:
                raise KeyboardInterrupt

        try:
            fill(FakeEngine(), job, run, rejected=asked, progress=stop)
        except KeyboardInterrupt:
            assert {line["index"] for line in manifest(run) if line["status"] == "rejected"} == {1, 5, 9}
        fill(FakeEngine(), job, run)
        assert contents(run) == wanted


def test_the_run_grows_and_is_repaired_to_the_same_bytes_all_the_same(job, run):
    fill(FakeEngine(), job, run)
    fill(FakeEngine(), job, run, rejected=listed(run, 3))
    whole = contents(run)
    (run / "test/hole/000003.png").unlink()
    fill(FakeEngine(), job, run)
    assert contents(run) == whole
    fill(FakeEngine(), replace(job, count=14), run)
    assert {name: content for name, content in images(run).items() if name < 10} == {
        int(name[10:16]): content for name, content in whole.items() if name.startswith("test/hole/")
    }


def test_nothing_of_a_rejected_pair_stays_where_no_other_comes(job, run):
    fill(FakeEngine(), job, run)
    asked = listed(run, 3)
    assert fill(FakeEngine(poisoned=[3]), job, run, rejected=asked).failed == [3]
    assert not (run / "test/hole/000003.png").exists()
    assert not (run / "ground_truth/hole/000003_mask.png").exists()
    assert fill(FakeEngine(), job, run).written == 1
    assert len(manifest(run)[3]["rejected"]) == 1


def test_the_list_of_another_run_is_refused_and_changes_nothing(job, run):
    other = run.with_name("other")
    fill(FakeEngine(), replace(job, seed=8), other)
    fill(FakeEngine(), job, run)
    whole = contents(run)
    with pytest.raises(RunError, match=r"^the list is of another run than .* \(hole 4 has another image\)"):
        fill(FakeEngine(), job, run, rejected=listed(run, 2) | {"hole": listed(other, 4)["hole"]})
    with pytest.raises(RunError, match="hole 99 has another image"):
        fill(FakeEngine(), job, run, rejected={"hole": {99: "0" * 16}})
    with pytest.raises(InputError, match="rejects pairs of type `crack`, which this command does not paint"):
        fill(FakeEngine(), job, run, rejected={"crack": {1: "0" * 16}})
    with pytest.raises(RunError, match="of another run"):
        fill(FakeEngine(), job, run.with_name("none"), rejected=listed(run, 2))
    assert contents(run) == whole
    assert not run.with_name("none").exists()


def test_a_list_of_several_types_is_seen_whole_before_one_is_begun(job, run, tmp_path):
    jobs = [job, replace(job, prompt="tile+crack", masks=labels(tmp_path / "cracks", 3), count=5)]
    engine = FakeEngine()

    def paint(rejected):
        made = plans(engine.spec, jobs, notify=lambda notice: None)
        return follow_all(
            Alone(engine),
            made,
            run,
            rejected=rejected,
            notify=lambda notice: None,
            progress=lambda share: None,
        )

    paint({})
    whole = contents(run)
    asked = {kind: {2: manifest(run / "types" / kind)[2]["image_sha256"]} for kind in ("hole", "crack")}
    with pytest.raises(RunError, match="crack 2 has another image"):
        paint(asked | {"crack": {2: "0" * 64}})
    assert contents(run) == whole
    assert [one.written for one in paint(asked).values()] == [1, 1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "the whole: Invalid JSON"),
        (b"[]", "the whole: Input should be"),
        (b'{"format": 2, "rejected": []}', "format: Input should be 1"),
        (
            b'{"format": 1, "rejected": [{"type": "hole", "index": -1, "image": "0123456789abcdef"}]}',
            "rejected.0.index",
        ),
        (b'{"format": 1, "rejected": [{"type": "hole", "index": 1, "image": "abc"}]}', "rejected.0.image"),
        (b'{"format": 1, "rejected": [], "more": 1}', "more: Extra inputs"),
        (b"\xff\xfe", "the whole: Invalid JSON"),
    ],
)
def test_a_file_that_is_no_list_is_named_with_what_is_wrong(tmp_path, text, told):
    path = tmp_path / "list.json"
    path.write_bytes(text)
    with pytest.raises(InputError) as refused:
        read_list(path)
    assert str(refused.value).startswith(f"`{path}` is no list of rejected pairs ({told}")
    assert str(refused.value).endswith("download it from the page of the run")


def test_a_list_is_by_type(tmp_path):
    pairs = [
        {"type": kind, "index": index, "image": f"{index:016x}"}
        for kind, index in (("a", 1), ("b", 1), ("a", 7))
    ]
    (tmp_path / "list.json").write_text(json.dumps({"format": 1, "rejected": pairs}))
    assert read_list(tmp_path / "list.json") == {"a": {1: f"{1:016x}", 7: f"{7:016x}"}, "b": {1: f"{1:016x}"}}
    with pytest.raises(InputError, match="cannot be read"):
        read_list(tmp_path / "none.json")
