"""What a training reads of a data set before its crops."""

from pathlib import Path

import numpy as np
import pytest
from micro import MICRO, write_dataset
from PIL import Image

from stage_rt.errors import DatasetError
from stage_rt.images.layouts import datasets
from stage_rt.training.data import find, is_grey, load, tell_few
from stage_rt.training.train import _spec


def test_a_surface_without_colour_whose_defects_have_one_is_not_grey(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "part", defects=2)
    for n in range(20):
        Image.new("L", (40, 40), 100 + n).save(root / "train" / "good" / f"more{n}.png")
    assert is_grey(datasets(root)[0])
    rust = np.zeros((40, 40, 3), np.uint8)
    rust[10:20, 10:20] = 160, 70, 30
    Image.fromarray(rust).save(root / "test" / "spot" / "1.png")
    assert not is_grey(datasets(root)[0])


@pytest.mark.parametrize("kind", ["cr\udce4ck", "a\\b", "ne\nw", "x" * 196])
def test_types_that_no_prompt_can_be_named_after_are_refused(tmp_path: Path, kind: str) -> None:
    root = write_dataset(tmp_path / "part")
    for place in ("test", "ground_truth"):
        (root / place / "dent").rename(root / place / kind)
    with pytest.raises(DatasetError) as refused:
        find(root)
    assert f"no prompt can be called {f'part+{kind}'!r}" in str(refused.value)
    assert str(refused.value).endswith(r"rename them to at most 200 characters of UTF-8 without `\`")


def test_objects_of_the_same_name_are_refused(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.mkdir()
    for number in "12":
        write_dataset(tmp_path / number / "part")
        (lines / number).symlink_to(tmp_path / number / "part")
    with pytest.raises(
        DatasetError, match="leads to 2 objects called 'part', whose prompts would be the same: rename"
    ):
        find(lines)


@pytest.mark.parametrize(
    "mark", ["run.json", "types/dent/run.json", "pack.json", "client.json", "accepted.jsonl"]
)
def test_painted_defects_are_no_real_ones(tmp_path: Path, mark: str) -> None:
    real, painted = write_dataset(tmp_path / "lines/a"), write_dataset(tmp_path / "lines/b")
    assert len(find(tmp_path / "lines")) == 2
    (painted / mark).parent.mkdir(parents=True, exist_ok=True)
    (painted / mark).write_text("{}")
    message = f"the defects in `{painted}` are painted, as its `{mark}` tells: give a data set of real ones"
    for root in (painted, tmp_path / "lines"):
        with pytest.raises(DatasetError) as refused:
            find(root)
        assert str(refused.value) == message
    assert [dataset.name for dataset in find(real)] == ["a"]


def test_types_of_few_photographs_are_told_of(tmp_path: Path) -> None:
    found, said = find(write_dataset(tmp_path / "part", defects=8)), list[str]()
    tell_few(found, said.append)
    assert not said
    found[0].defects["spot"].pop()
    tell_few(found, said.append)
    [told] = said
    assert told.startswith(
        "types with fewer than 8 labelled photographs to learn from: part+spot (7); label more"
    )


def test_what_a_run_would_say_of_the_files_a_training_says_too(tmp_path: Path) -> None:
    root, said = write_dataset(tmp_path / "part"), list[str]()
    spec = _spec(MICRO, "stage", "whole", 1, ["part+dent", "part+spot"])
    load(find(root), spec, seed=0, turn=True, notify=said.append)
    assert not said
    mask = root / "ground_truth" / "dent" / "0_mask.png"
    soft = np.asarray(Image.open(mask).convert("F").resize((40, 40))).copy()
    soft[9], soft[18] = np.linspace(0, 250, 40), np.linspace(0, 200, 40)
    Image.fromarray(soft.astype(np.uint8)).save(mask)
    for path in (*root.glob("train/good/*"), *root.glob("test/*/*")):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)
    inverted = root / "ground_truth" / "spot" / "1_mask.png"
    Image.fromarray(255 - np.asarray(Image.open(inverted))).save(inverted)
    load(find(root), spec, seed=0, turn=True, notify=said.append)
    black, shades, covering = said
    assert black.startswith(
        "the photographs are nearly black, as none has a value above 14 of 255: multiply what a "
    )
    assert shades == "masks in shades of grey, labelled from half of their brightest on: `0_mask.png`"
    assert covering == (
        "masks that label more than 90% of the photograph: `1_mask.png`; if they are inverted, make the defect white"
    )


def test_crops_of_defects_and_of_good_surface_are_lit_otherwise_each(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "part")
    for path in sorted((root / "train/good").iterdir()) + sorted((root / "test/dent").iterdir()):
        Image.new("L", (48, 48), 128).save(path)
    found = find(root)
    spec = _spec(MICRO, "stage", "region", 1, ["part+dent"])
    read = load(found, spec, seed=0, turn=True, notify=print)
    levels = read.images.float().mean(dim=(1, 2, 3))
    for number in range(2):
        of_kind = levels[read.prompt == number].round().unique()
        assert 112 <= of_kind.min() < 118
        assert 138 < of_kind.max() <= 144
        assert len(of_kind) > 6
