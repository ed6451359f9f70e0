"""Lists of jobs as users write them: what is wrong is named with its line and field, before anything is painted."""

import json
from pathlib import Path

import pytest
from fake_engine import PROMPT, labels, photographs

from stage_rt.errors import DatasetError, InputError
from stage_rt.run.jobs import Entry, checked, entry, read_jobs

GOOD = """
- prompt: tile+hole
  normals: good
  masks: holes
  count: 500
- prompt: tile+crack
  normals: good
  masks: /elsewhere/cracks
  steps: 100
  augment_masks: true
"""


def written(tmp_path, text, name="jobs.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_jobs_are_read_with_paths_from_the_files_own_folder(tmp_path):
    hole, crack = read_jobs(written(tmp_path, GOOD), {"seed": 7, "steps": 50})
    assert (hole.prompt, hole.normals, hole.masks) == (PROMPT, tmp_path / "good", tmp_path / "holes")
    assert (hole.count, hole.seed, hole.steps) == (500, 7, 50)
    assert (crack.masks, crack.count, crack.steps, crack.augment_masks) == (
        Path("/elsewhere/cracks"),
        None,
        100,
        True,
    )


def test_json_lines_say_the_same(tmp_path):
    jobs = [{"prompt": "tile+hole", "normals": "good", "masks": "holes", "count": 500}]
    jobs.append(
        {
            "prompt": "tile+crack",
            "normals": "good",
            "masks": "/elsewhere/cracks",
            "steps": 100,
            "augment_masks": True,
        }
    )
    lines = written(tmp_path, "\n\n".join(map(json.dumps, jobs)), "jobs.jsonl")
    assert read_jobs(lines, {}) == read_jobs(written(tmp_path, GOOD), {})
    # JSON holds it as it is, though other readers of lines take it for the end of one.
    odd = json.dumps(jobs[0] | {"normals": "go\u2028od"}, ensure_ascii=False)
    assert read_jobs(written(tmp_path, odd, "odd.jsonl"), {})[0].normals == tmp_path / "go\u2028od"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no jobs: add one"),
        ("prompt: a", "holds no list of jobs: begin each with `- prompt: NAME`"),
        ("- a\n- b: [", "line 2 is no YAML ("),
        ("- just words", "line 1 is no job: write `prompt`"),
        (
            "- {prompt: a, normals: n, masks: m}\n- {prompt: b, masks: m}",
            "line 2: `normals` is missing: add `normals: DIR`",
        ),
        (
            "\n\n- {prompt: a, normals: n, masks: m, cuont: 5}",
            "line 3: `cuont` is no field of a job: use some of prompt,",
        ),
        ("- {prompt: a, normals: n, masks: m, count: 0}", "line 1: `count: 0` is not valid ("),
        ("- {prompt: a, normals: n, masks: m, guidance: .nan}", "line 1: `guidance: nan` is not valid ("),
        ("- {prompt: a, normals: n, masks: m, steps: x}", "line 1: `steps: x` is not valid ("),
        ("- prompt: a\n  normals: n\n  masks: m\n  cuont: 5", "line 4: `cuont` is no field of a job"),
        ("- prompt: a\n  normals: n\n  retries: 16\n  masks: m", "line 3: `retries: 16` is not valid ("),
        ("- &first {prompt: a, normals: n, masks: m, seed: -1}\n- <<: *first", "line 1: `seed: -1` is not"),
        (
            "- {prompt: t+a, normals: n, masks: m}\n- prompt: u+a\n  normals: n\n  masks: m",
            "line 2: prompts 't+a' and 'u+a' both write `test/a`: put them into two runs",
        ),
        ("- {prompt: a, normals: n, masks: m, count: !!python/object:os.system x}", "is no YAML ("),
        ("- \u0000", "is no YAML ("),
        (
            "- {prompt: a}\n- prompt: b\n  strict: !!bool maybe",
            "line 2 holds a date, or a value with a tag, that is none",
        ),
        ("- {prompt: !!timestamp nope}", "line 1 holds a date, or a value with a tag, that is none"),
        ('- {prompt: a, count: !!int ""}', "line 1 holds a date, or a value with a tag, that is none"),
        ('- {prompt: a, guidance: !!float ""}', "line 1 holds a date, or a value with a tag, that is none"),
        ("- {prompt: a, count: 2020-99-99}", "line 1 holds a date, or a value with a tag, that is none"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as refused:
        read_jobs(path, {})
    assert str(refused.value).startswith(f"`{path}` ")
    assert message in str(refused.value)
    assert str(refused.value).isprintable()


FORGOTTEN_DASH = """
- prompt: tile+hole
  normals: good
  masks: holes
  prompt: tile+crack
  normals: good
  masks: cracks
"""


@pytest.mark.parametrize(
    ("name", "text", "line", "field"),
    [
        ("a.yaml", FORGOTTEN_DASH, 5, "prompt"),
        ("a.yaml", "- {prompt: a, normals: n, masks: m, count: 5,\n   'count': 5}", 2, "count"),
        ("a.jsonl", '\n{"prompt": "a", "normals": "n", "masks": "m", "count": 5, "count": 7}', 2, "count"),
        ("a.jsonl", '{"prompt": "a", "\\u0070rompt": "b", "normals": "n", "masks": "m"}', 1, "prompt"),
    ],
)
def test_a_field_that_a_job_has_twice_is_refused(tmp_path, name, text, line, field):
    path = written(tmp_path, text, name)
    with pytest.raises(InputError) as refused:
        read_jobs(path, {})
    assert str(refused.value) == (
        f"`{path}` line {line} gives `{field}` of one job a second time: remove one, or begin another job"
    )


def test_what_a_job_takes_from_another_it_may_say_otherwise(tmp_path):
    text = "- &first {prompt: a, normals: n, masks: m, count: 5}\n- <<: *first\n  prompt: b\n  count: 7"
    assert [(job.prompt, job.count) for job in read_jobs(written(tmp_path, text), {})] == [("a", 5), ("b", 7)]


def test_a_line_that_is_no_json_and_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="line 2 is no JSON: write one object a line"):
        read_jobs(written(tmp_path, '{"prompt": "a", "normals": "n", "masks": "m"}\n{', "jobs.jsonl"), {})
    with pytest.raises(InputError, match="cannot be read"):
        read_jobs(tmp_path / "nowhere.yaml", {})
    (tmp_path / "latin.yaml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_jobs(tmp_path / "latin.yaml", {})


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", json.dumps), ("a.yaml", lambda job: f"- {json.dumps(job)}")]
)
def test_a_file_that_says_that_it_is_utf_8_is_read(tmp_path, name, text):
    (tmp_path / name).write_text(text({"prompt": PROMPT, "normals": "n", "masks": "m"}), encoding="utf-8-sig")
    assert read_jobs(tmp_path / name, {})[0].prompt == PROMPT


@pytest.mark.parametrize(
    ("own", "other"), [("mask_threshold", "mask_class"), ("mask_class", "mask_threshold")]
)
def test_how_a_job_reads_its_masks_goes_before_how_the_command_does(tmp_path, own, other):
    text = f"- {{prompt: a, normals: n, masks: m, {own}: 1}}\n- {{prompt: b, normals: n, masks: m}}"
    first, second = read_jobs(written(tmp_path, text), {other: 1})
    assert (getattr(first, own), getattr(first, other)) == (1, None)
    assert (getattr(second, own), getattr(second, other)) == (None, 1)


def test_an_option_that_is_wrong_is_named_as_it_was_given():
    given = {"prompt": "a", "normals": "n", "masks": "m"}
    with pytest.raises(InputError, match=r"^`--prompt-guidance 21` is not valid \(Input should be less than"):
        entry(given | {"prompt_guidance": 21})
    with pytest.raises(InputError, match=r"^`normals` is missing: add `--normals DIR`$"):
        entry({name: value for name, value in given.items() if name != "normals"})


def test_two_jobs_of_one_type_are_refused():
    fields = {"normals": "n", "masks": "m"}
    with pytest.raises(
        InputError, match=r"'tile\+hole' and 'lid\+hole' both write `test/hole`: put them into two runs"
    ):
        checked([entry({"prompt": name, **fields}) for name in ("tile+hole", "tile+crack", "lid+hole")])


def test_an_entry_becomes_a_job_of_the_files_in_its_folders(tmp_path):
    normals, masks = photographs(tmp_path / "n", 3), labels(tmp_path / "m", 4)
    job = Entry(prompt=PROMPT, normals=tmp_path / "n", masks=tmp_path / "m", seed=3).job(batch=4)
    assert (job.normals, job.masks, job.count, job.seed, job.batch) == (normals, masks, 4, 3, 4)
    with pytest.raises(DatasetError, match="is not a folder"):
        Entry(prompt=PROMPT, normals=tmp_path / "none", masks=tmp_path / "m").job(4)
    with pytest.raises(InputError, match="both say what is labelled"):
        Entry(
            prompt=PROMPT, normals=tmp_path / "n", masks=tmp_path / "m", mask_class=1, mask_threshold=0.5
        ).job(4)
