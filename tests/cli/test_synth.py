"""`stage-rt synth` as a user meets it: snapshots of exit code, stdout and stderr."""

import hashlib
import json
import re
import sys

import numpy as np
import pytest
import typer
from fake_engine import PROMPT, FakeEngine, contents, labels, photographs, stand_in
from PIL import Image

from stage_rt.cli import app, main
from stage_rt.errors import EngineError
from stage_rt.run.night import Outlook


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with ``normals`` and ``masks``, which is the current one."""
    photographs(tmp_path / "normals", 3)
    labels(tmp_path / "masks", 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def synth(here, monkeypatch, capsys):
    """Run the command; options given replace or extend those of a good call."""

    def run(engine=None, flags=(), **options):
        monkeypatch.setitem(sys.modules, "stage_rt.loading", stand_in(engine or FakeEngine()))
        given = {"normals": "normals", "masks": "masks", "prompt": PROMPT, "output": "run"} | options
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        with pytest.raises(SystemExit) as exited:
            main(["synth", "engine", *arguments, *flags])
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


def test_a_run_ends_with_where_to_look(synth, here):
    assert synth() == (
        0,
        "4 pairs in `run` (4 new)\nlabels painted by 89% in the middle, 75% in the weakest tenth\n"
        "contact sheet `run/report/contact_sheet.jpg`\nreport `run/report/index.html`\n",
        "",
    )
    assert (here / "run/report/contact_sheet.jpg").is_file()
    assert (here / "run/report/index.html").is_file()


def test_the_same_command_again_resumes(synth, here):
    synth(count=9)
    before = contents(here / "run")
    (here / "run/test/hole/000003.png").unlink()
    code, out, err = synth(count=9)
    assert (code, err) == (0, "")
    assert out.startswith("9 pairs in `run` (1 new)\n")
    assert contents(here / "run") == before


def test_json_is_all_there_is_on_stdout(synth):
    code, out, err = synth(flags=["--json"], count=5, seed=3)
    assert (code, err) == (0, "")
    fields = json.loads(out)
    fill = fields.pop("fill")
    assert 0 < fill["weakest_tenth"] <= fill["median"] <= 1
    assert fields == {
        "run": "run",
        "pairs": 5,
        "written": 5,
        "steps": 10,
        "failed": [],
        "left_out": [],
        "weak": [],
        "refilled": 0,
        "contact_sheet": "run/report/contact_sheet.jpg",
        "report": "run/report/index.html",
    }


def test_one_pair_a_mask_and_the_largest_batch_are_the_defaults(synth):
    engine = FakeEngine(batch=3)
    synth(engine)
    assert engine.batches == [[0, 1, 2], [3]]


def test_one_pair_is_no_pairs(synth, here):
    assert synth(count=1)[1].startswith("1 pair in `run` (1 new)\n")
    assert synth(output="other", count=1, flags=["--dry-run"])[1].startswith("tile+hole: 1 pair\n")


def test_the_options_stand_in_panels(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    command = typer.main.get_command(app).commands["synth"]
    panels = {option.name: option.rich_help_panel for option in command.params if option.opts[0][:1] == "-"}
    assert {name for name, panel in panels.items() if panel is None} == {"on_finish", "as_json"}
    with pytest.raises(SystemExit):
        main(["synth", "--help"])
    told = capsys.readouterr().out
    assert re.findall(r"^\S─ (.+?) ─", told, re.MULTILINE) == [
        "Arguments",
        "Options",
        "What, and where to",
        "How much, and how long",
        "How it looks",
        "Labels",
        "Machines",
    ]


def test_options_reach_the_run(synth, here):
    engine = FakeEngine()
    synth(engine, ["--no-composite", "-o", "elsewhere"], count=3, batch=2, seed=2**64 - 1)
    assert engine.batches == [[0, 1], [2]]
    spec = json.loads((here / "elsewhere/run.json").read_text())
    assert (spec["composite"], spec["seed"], spec["count"]) == (False, 2**64 - 1, 3)


def test_failed_samples_are_exit_code_4_after_the_others_are_done(synth, here):
    code, out, err = synth(FakeEngine(poisoned=[1]))
    assert code == 4
    assert out.startswith("3 pairs in `run` (3 new)\n")
    assert err == (
        "error: 1 of 4 samples came out non-finite and were not written (1): run the same command again, "
        "or build the engine with `--dtype fp32`\n"
    )
    assert (here / "run/report/index.html").is_file()


def test_pairs_that_are_all_left_out_are_counted(synth, night):
    engine, options = FakeEngine(idle=lambda stream: True), {"min-fill": 0.5, "retries": 1}
    code, out, err = synth(engine, ["--strict"], **options)
    assert (code, err) == (0, "")
    assert out.startswith("0 pairs in `run` (0 new)\n4 painted again; 4 left out\ncontact sheet")
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    code, out, _ = night("-o", "night", "--strict", *arguments, *TYPES, engine=engine)
    assert (code, out.splitlines()[1]) == (0, f"{PROMPT}: 0 pairs (0 new), 6 painted again; 6 left out")


def test_notices_go_to_stderr(synth, here):
    labels(here / "masks", 4, size=(80, 60))
    code, out, err = synth()
    assert code == 0
    assert err == (
        "notice: masks resized to the size of their photograph: "
        "`000_mask.png`, `001_mask.png`, `002_mask.png` and 1 more\n"
    )
    assert "notice" not in out


def test_masks_from_the_folder_of_another_type_are_told_of(synth, here, monkeypatch):
    labels(here / "set/crack", 2)
    labels(here / "set/hole", 2)
    labels(here / "set/dent", 2)
    told = "notice: masks of 'tile+hole' are taken from `{}`, which is called after 'tile+crack'\n"
    assert synth(masks="set/crack")[::2] == (0, told.format("set/crack"))
    for folder in ("set/hole", "set/dent"):
        assert synth(masks=folder, output=folder.replace("/", "-"))[::2] == (0, "")
    monkeypatch.chdir(here / "set/crack")
    assert synth(masks=".", normals="../../normals")[::2] == (0, told.format("."))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_INPUT = {
    "missing normals": (
        lambda here: None,
        {"normals": "nowhere"},
        "`nowhere` is not a folder: give a folder of PNG, JPEG, BMP or TIFF files",
    ),
    "two readings of masks": (
        lambda here: None,
        {"mask-class": "1", "mask-threshold": "0.5"},
        "`--mask-class` and `--mask-threshold` both say what is labelled: give one of them",
    ),
    "empty normals": (
        lambda here: (here / "empty").mkdir(),
        {"normals": "empty"},
        "`empty` holds no PNG, JPEG, BMP or TIFF files: put the files directly into it",
    ),
    "masks one level too high": (
        lambda here: write(here / "set/crack/0.png", b""),
        {"masks": "set"},
        "`set` holds no PNG, JPEG, BMP or TIFF files: did you mean `set/crack`",
    ),
    "masks of three types": (
        lambda here: [write(here / f"set/{kind}/0.png", b"") for kind in ("crack", "hole", "stain")],
        {"masks": "set"},
        "`set` holds no PNG, JPEG, BMP or TIFF files: did you mean `set/hole`",
    ),
    "truncated photograph": (
        lambda here: truncated(here / "normals/001.png"),
        {},
        "`normals/001.png` is truncated or damaged: save it again",
    ),
    "text for a photograph": (
        lambda here: write(here / "normals/001.png", b"not an image"),
        {},
        "`normals/001.png` is not a PNG, JPEG, BMP or TIFF image: convert it to one",
    ),
    "truncated mask": (
        lambda here: truncated(here / "masks/001_mask.png"),
        {},
        "`masks/001_mask.png` is truncated or damaged: save it again",
    ),
    "a dangling link": (
        lambda here: (here / "masks/x.png").symlink_to("gone.png"),
        {},
        "`masks/x.png` is missing or not a file: check the path",
    ),
    "all-black mask": (
        lambda here: Image.fromarray(np.zeros((30, 40), dtype=np.uint8)).save(here / "masks/001_mask.png"),
        {},
        "`masks/001_mask.png` is all black: paint the defect white or remove the mask",
    ),
    "masks of another shape": (
        lambda here: labels(here / "narrow", 2, size=(30, 60)),
        {"masks": "narrow"},
        "no mask has the shape of a photograph (the first mask is 30x60, the first photograph 40x30): "
        "give masks drawn on such photographs",
    ),
    "unknown prompt": (
        lambda here: None,
        {"prompt": "tile+scratch"},
        "unknown prompt 'tile+scratch': use one of tile+crack, tile+hole",
    ),
    "batch too large": (
        lambda here: None,
        {"batch": 5},
        "batch 5 is more than the 4 that `engine` was built for: build it again with `--batch 5`",
    ),
    "files in the output folder": (
        lambda here: write(here / "mine/thesis.txt", b""),
        {"output": "mine"},
        "`mine` holds files that are no run of stage-rt: give an empty folder as `-o`",
    ),
    "a file for the output folder": (
        lambda here: write(here / "mine", b""),
        {"output": "mine"},
        "`mine` cannot be made a folder: give another `-o`",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_with_the_fix_and_writes_nothing(synth, here, case):
    prepare, options, message = BAD_INPUT[case]
    prepare(here)
    before = contents(here)
    assert synth(**options) == (1, "", f"error: {message}\n")
    assert contents(here) == before


def test_the_output_folder_of_another_run_is_refused(synth, here):
    synth()
    before = contents(here)
    assert synth(seed=1) == (
        1,
        "",
        "error: `run` holds another run, whose seed is 0 and not 1: add `--seed 0` or give another `-o`\n",
    )
    assert contents(here) == before


def test_a_damaged_manifest_is_refused_with_its_line(synth, here):
    synth()
    path = here / "run/manifest.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"index":1', b'"index":!'))
    assert synth() == (
        1,
        "",
        "error: `run/manifest.jsonl` is damaged in line 2: delete that line and run the same command again\n",
    )


def test_an_engine_that_does_not_open_ends_the_command(synth, here, monkeypatch, capsys):
    def load(folder, **options):
        raise EngineError(f"`{folder}/unet.onnx` was changed: build the engine again")

    engine = stand_in(FakeEngine())
    engine.load = load
    monkeypatch.setitem(sys.modules, "stage_rt.loading", engine)
    with pytest.raises(SystemExit) as exited:
        main(["synth", "e", "--normals", "normals", "--masks", "masks", "--prompt", PROMPT, "-o", "run"])
    assert exited.value.code == 1
    assert capsys.readouterr().err == "error: `e/unet.onnx` was changed: build the engine again\n"
    assert not (here / "run").exists()


@pytest.mark.parametrize("recipe", ["authors", "paper"])
@pytest.mark.parametrize("sampler", ["stage", "repaint", "anomalydiffusion", "sdas"])
def test_sampler_and_recipe_reach_the_engine_and_are_recorded(synth, here, sampler, recipe):
    engine, seen = FakeEngine(steps=1000), []
    paint = engine.paint

    def listening(*arguments, **options):
        seen.append((options["sampler"], options["recipe"]))
        return paint(*arguments, **options)

    engine.paint = listening
    assert synth(engine, sampler=sampler, recipe=recipe)[0] == 0
    intervals = {"authors": ((700, 800), (300, 400)), "paper": ((800, 999), (300, 400))}[recipe]
    assert [(name, used.name, used.only_intervals) for name, used in seen] == [(sampler, recipe, intervals)]
    told = json.loads((here / "run/run.json").read_text())
    assert (told["sampler"], told["recipe"]["name"]) == (sampler, recipe)
    for line in (here / "run/manifest.jsonl").read_text().splitlines():
        pair = json.loads(line)
        assert (pair["sampler"], pair["recipe"]) == (sampler, recipe)


def test_another_sampler_or_recipe_is_another_run(synth):
    engine = FakeEngine(steps=1000)
    assert synth(engine, recipe="authors")[0] == 0
    for change in ({"sampler": "repaint", "recipe": "authors"}, {"recipe": "paper"}):
        code, out, err = synth(engine, **change)
        assert (code, out) == (1, "")
        assert next(iter(change)) in err


def test_a_recipe_for_other_steps_is_refused(synth, here):
    code, out, err = synth(recipe="paper")
    assert (code, out) == (1, "")
    assert err == ("error: recipe `paper` is for 1000 steps, this model has 10: leave `--recipe` out\n")
    assert not (here / "run").exists()


@pytest.mark.parametrize("steps", ["0", "1", "1001"])
def test_steps_out_of_range_are_one_sentence(synth, here, steps):
    code, out, err = synth(FakeEngine(steps=1000), steps=steps)
    assert (code, out) == (1, "")
    assert err == f"error: sampler `stage` takes from 10 to 1000 steps, not {steps}\n"
    assert not (here / "run").exists()


def test_steps_that_are_no_number_are_a_usage_error(synth):
    code, _, err = synth(steps="abc")
    assert code == 2
    assert "Invalid value for --steps: 'abc' is neither a number nor `auto`" in err


def test_steps_are_told_as_json_and_a_run_of_others_is_refused(synth):
    engine = FakeEngine(steps=50)
    code, out, _ = synth(engine, steps=20, flags=["--json"])
    assert code == 0
    assert json.loads(out)["steps"] == 20
    code, _, err = synth(engine)
    assert code == 1
    assert "`run` holds another run, whose steps is 20 and not 50" in err


def test_an_unknown_sampler_is_a_usage_error_with_the_choices(synth):
    code, _, err = synth(sampler="ddim")
    assert code == 2
    assert "anomalydiffusion" in err


@pytest.fixture
def night(here, monkeypatch, capsys):
    """Run the command on several types of ``masks``."""
    labels(here / "cracks", 2)

    def run(*arguments, engine=None):
        monkeypatch.setitem(sys.modules, "stage_rt.loading", stand_in(engine or FakeEngine()))
        with pytest.raises(SystemExit) as exited:
            main(["synth", "engine", "-o", "run", *arguments])
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(synth, monkeypatch):
    monkeypatch.setattr("stage_rt.cli.progress.LINE_SECONDS", 0.0)
    code, _, err = synth()
    assert code == 0
    lines = err.splitlines()
    assert all(line.partition(" pairs")[0] in {f"{n}/4" for n in range(5)} for line in lines)
    assert lines[-1].startswith("4/4 pairs")


TYPES = ("--normals", "normals", "--type", f"{PROMPT}=masks:6", "--type", "tile+crack=cracks")


def test_several_types_are_painted_into_one_folder(night, here):
    code, out, err = night(*TYPES)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "8 pairs in `run` (8 new)"
    assert lines[1].startswith("tile+hole: 6 pairs (6 new), labels painted by ")
    assert lines[2].startswith("tile+crack: 2 pairs (2 new), labels painted by ")
    assert lines[3:] == ["report `run/report/index.html`"]
    assert len(list((here / "run/test").glob("[!g]*/*.png"))) == 8
    code, out, _ = night(*TYPES, "--json")
    found = json.loads(out)
    assert (code, found["run"]) == (0, "run")
    assert {name: one["written"] for name, one in found["types"].items()} == {"tile+hole": 0, "tile+crack": 0}


def test_a_list_of_jobs_gives_the_same_as_its_options(night, here):
    night(*TYPES)
    before = contents(here / "run")
    (here / "jobs.yaml").write_text(
        f"- {{prompt: {PROMPT}, masks: masks, count: 6}}\n- {{prompt: tile+crack, masks: cracks}}\n"
    )
    assert night("--normals", "normals", "--jobs", "jobs.yaml")[0] == 0
    assert contents(here / "run") == before


def test_a_dry_run_says_what_it_will_come_to_and_paints_nothing(night, here):
    code, out, err = night(*TYPES, "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("tile+hole: 6 pairs\ntile+crack: 2 pairs\nabout ")
    assert out.endswith("without what is painted again\nnothing was painted\n")
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("steps", "flags", "told"),
    [
        (1000, [], "that is at 1000 steps; at `--steps 100` about 2 h 0 min (docs/performance.md)\n"),
        (1000, ["--steps", "200"], ""),
        (1000, ["--sampler", "repaint"], ""),
        (50, [], ""),
    ],
)
def test_a_dry_run_at_all_steps_says_what_a_hundred_take(synth, monkeypatch, steps, flags, told):
    found = Outlook({PROMPT: 4}, {PROMPT: 4}, seconds=72_000, bytes=3 * 2**20)
    monkeypatch.setattr("stage_rt.cli.filling.outlook", lambda engine, made, left: found)
    assert synth(FakeEngine(steps=steps), ["--dry-run", *flags]) == (
        0,
        "tile+hole: 4 pairs\nabout 20 h 0 min in one process and 3 MiB, without what is painted again\n"
        f"{told}nothing was painted\n",
        "",
    )


def test_a_dry_run_of_a_run_that_is_partly_there_says_what_is_left(synth, here):
    """Not what fewer steps would take, which it cannot go on with."""
    engine = FakeEngine(steps=200)
    synth(engine, count=4)
    told = r"about .+ in one process and 0 MiB, without what is painted again\nnothing was painted\n"
    for count, said in ((4, "4 pairs, 0 left"), (6, "6 pairs, 2 left")):
        code, out, err = synth(engine, ["--dry-run"], count=count)
        assert (code, err) == (0, "")
        assert re.fullmatch(rf"tile\+hole: {said}\n{told}", out)
    fields = json.loads(synth(engine, ["--dry-run", "--json"], count=6)[1])
    assert (fields["pairs"], fields["left"]) == ({PROMPT: 6}, {PROMPT: 2})


def test_a_dry_run_of_a_part_without_a_batch_says_so(synth, night):
    part = ("--batch", "4", "--shard", "2/2", "--dry-run")
    told = "about 0 s in one process and 0 MiB, without what is painted again\nnothing was painted\n"
    assert synth(FakeEngine(steps=1000), part) == (0, f"tile+hole: 0 pairs\n{told}", "")
    fields = json.loads(synth(FakeEngine(steps=1000), [*part, "--json"])[1])
    assert fields == {"pairs": {PROMPT: 0}, "left": {PROMPT: 0}, "seconds": 0.0, "bytes": 0}
    code, out, err = night(*TYPES, *part)
    assert (code, err) == (0, "")
    assert out.startswith("tile+hole: 2 pairs\ntile+crack: 0 pairs\nabout ")


def test_a_dry_run_counts_rejected_pairs_and_refuses_a_list_as_a_run_does(synth, night, here):
    synth()
    night(*TYPES, "-o", "several")
    image = hashlib.sha256((here / "run/test/hole/000002.png").read_bytes()).hexdigest()
    pairs = [{"type": "hole", "index": 2, "image": image}]
    (here / "list.json").write_text(json.dumps({"format": 1, "rejected": pairs}))
    before = contents(here / "run")
    code, out, err = synth(reject="list.json", flags=["--dry-run"])
    assert (code, err) == (0, "")
    assert out.startswith("tile+hole: 4 pairs, 1 left\nabout ")
    code, out, err = night(*TYPES, "-o", "several", "--reject", "list.json", "--dry-run")
    assert out.startswith("tile+hole: 6 pairs, 1 left\ntile+crack: 2 pairs, 0 left\nabout ")
    assert contents(here / "run") == before
    synth(reject="list.json")
    assert synth(reject="list.json", flags=["--dry-run"])[1].startswith("tile+hole: 4 pairs, 0 left\n")
    for wrong, message in (
        ({"image": "0" * 16}, "the list is of another run than `run` or of another state of it (hole 2 has"),
        ({"type": "dent"}, "the list rejects pairs of type `dent`, which this command does not paint"),
    ):
        (here / "list.json").write_text(json.dumps({"format": 1, "rejected": [pairs[0] | wrong]}))
        code, out, err = synth(reject="list.json", flags=["--dry-run"])
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {message}")


def test_a_dry_run_says_what_the_folder_holds_and_leaves_it(night, synth, here):
    night(*TYPES)
    synth(output="single", count=4)
    (here / "full").mkdir()
    (here / "full/mine.txt").touch()
    before = {name: contents(here / name) for name in ("run", "single", "full")}
    assert night(*TYPES, "--dry-run")[0] == 0
    assert synth(output="single", count=8, flags=["--dry-run"])[0] == 0
    for refused, message in (
        (
            night(*TYPES, "--seed", "3", "--dry-run"),
            "`run/types/hole` holds another run, whose seed is 0 and not 3",
        ),
        (night(*TYPES, "-o", "single", "--dry-run"), "`single` holds a run of one type: give another `-o`"),
        (
            synth(output="single", count=3, flags=["--dry-run"]),
            "`single` holds a run of 4 pairs: give `--count 4`",
        ),
        (synth(output="run", flags=["--dry-run"]), "`run` holds files that are no run of stage-rt"),
        (synth(output="full", flags=["--dry-run"]), "`full` holds files that are no run of stage-rt"),
    ):
        assert refused[:2] == (1, "")
        assert refused[2].startswith(f"error: {message}")
    assert {name: contents(here / name) for name in before} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give `--prompt` and `--masks`, or `--type` for each of several, or `--jobs`"),
        (("--prompt", PROMPT, *TYPES), "give `--prompt` and `--masks`, or `--type`"),
        (("--prompt", PROMPT), "`--normals` go together: add `--masks DIR` and `--normals DIR`"),
        (("--prompt", PROMPT, "--masks", "masks"), "`--normals` go together: add `--normals DIR`"),
        (("--masks", "masks", "--normals", "normals"), "`--normals` go together: add `--prompt NAME`"),
        (
            ("--normals", "normals", "--type", f"{PROMPT}=masks:2", "--count", "5"),
            "every `--type` has its own count, so that `--count` says nothing: leave it out",
        ),
        (
            ("--normals", "normals", "--type", "hole=masks"),
            "error: unknown prompt 'hole': did you mean `tile+hole`",
        ),
        (
            ("--normals", "normals", "--masks", "masks", "--prompt", PROMPT, "--prompt", "tile+crack"),
            "two prompts are given: use `--type` for each of several types",
        ),
        (("--type", f"{PROMPT}=masks"), "`normals` is missing: add `--normals DIR`"),
        ((*TYPES, "--type", f"{PROMPT}=cracks"), "both write `test/hole`"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(night, arguments, message):
    code, out, err = night(*arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_count_is_for_the_types_that_have_none(night):
    code, out, _ = night("--count", "3", "--normals", "normals", *TYPES[2:])
    assert (code, out.splitlines()[0]) == (0, "9 pairs in `run` (9 new)")


@pytest.mark.parametrize("option", ["--guidance", "--prompt-guidance"])
@pytest.mark.parametrize("value", ["20.5", "-1"])
def test_weights_out_of_range_are_wrong_usage(night, option, value):
    code, _, err = night(*TYPES, option, value)
    assert code == 2
    assert f"Invalid value for '{option}'" in err


@pytest.mark.parametrize("text", ["masks", "=masks", "hole=", "hole=:5"])
def test_a_type_without_name_or_masks_is_wrong_usage(night, text):
    assert night("--normals", "normals", "--type", text)[0] == 2


def test_a_list_of_rejected_pairs_is_painted_again(synth, here):
    synth()
    before = contents(here / "run")
    image = hashlib.sha256(before["test/hole/000002.png"]).hexdigest()[:16]
    text = json.dumps({"format": 1, "rejected": [{"type": "hole", "index": 2, "image": image}]})
    (here / "list.json").write_text(text)
    code, out, err = synth(reject="list.json")
    assert (code, err) == (0, "notice: 1 rejected pair to be painted again, 0 painted before\n")
    assert out.startswith("4 pairs in `run` (1 new)\n")
    after = contents(here / "run")
    changed = {name for name in before if name.startswith("test/") and before[name] != after[name]}
    assert changed == {"test/hole/000002.png"}
    (here / "list.json").write_text(text.replace(image, "0" * 16))
    assert synth(reject="list.json") == (
        1,
        "",
        "error: the list is of another run than `run` or of another state of it (hole 2 has another image): "
        "download it anew from the page of this run\n",
    )
    assert contents(here / "run") == after


def test_a_command_is_run_when_all_is_over(synth, here):
    command = (
        "env | grep -E '^STAGE_RT_(EXIT_CODE|METRICS|RUN|STATE)=' | sort > told; echo said; exit $CODE_OF_IT"
    )
    code, out, _ = synth(flags=["--on-finish", command])
    assert (code, out.splitlines()[0]) == (0, "4 pairs in `run` (4 new)")
    told = [
        "STAGE_RT_EXIT_CODE=0",
        "STAGE_RT_METRICS=run/metrics.json",
        "STAGE_RT_RUN=run",
        "STAGE_RT_STATE=done",
    ]
    assert (here / "told").read_text().splitlines() == told
    assert json.loads((here / "run/metrics.json").read_text())["state"] == "done"
    code, _, _ = synth(FakeEngine(poisoned=[1]), ["--on-finish", command], output="other")
    assert code == 4
    assert "STAGE_RT_EXIT_CODE=4\n" in (here / "told").read_text()


def test_a_command_is_told_of_wrong_usage_as_it_ends(night, here):
    code, _, _ = night("--normals", "normals", "--type", "hole", "--on-finish", "env > told")
    assert code == 2
    assert "STAGE_RT_EXIT_CODE=2\n" in (here / "told").read_text()


def test_a_command_is_run_when_nothing_was_begun_and_its_own_failure_is_told(synth, here):
    code, out, err = synth(flags=["--on-finish", "env > told; exit 7"], normals="none")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "notice: `--on-finish` ended with exit code 7"
    assert "STAGE_RT_STATE=failed\n" in (here / "told").read_text()
    assert "STAGE_RT_EXIT_CODE=1\n" in (here / "told").read_text()
    assert not (here / "run").exists()


def test_a_command_is_run_when_the_steps_are_no_number(synth, here):
    code, _, err = synth(flags=["--steps", "1oo", "--on-finish", "env > told"])
    assert code == 2
    assert "'1oo' is neither a number nor `auto`" in err
    assert "STAGE_RT_EXIT_CODE=2\n" in (here / "told").read_text()
