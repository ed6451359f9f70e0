"""What is learned from and what is tested on, and every way the two could meet."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from micro import write_dataset
from PIL import Image

from stage_rt.errors import DatasetError, InputError
from stage_rt.quality.split import split
from stage_rt.recipe import Recipe
from stage_rt.spec import ModelSpec

HELD_OUT = [f"part/{kind}/{n}.png" for kind in ("dent", "spot") for n in range(2, 7)]


def model(held_out: list[str] | None) -> ModelSpec:
    return ModelSpec(
        image_size=32,
        image_channels=1,
        latent_size=16,
        latent_scale=1,
        tokens=2,
        context_dim=8,
        recipe=Recipe.authors(),
        prompts={"part+dent": "part+dent", "part+spot": "part+spot"},
        provenance={} if held_out is None else {"held_out": held_out},
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven labelled photographs a type, and good ones for the test."""
    root = write_dataset(tmp_path / "part", defects=7)
    (root / "test" / "good").mkdir()
    for n in (0, 1):
        shutil.move(root / "train" / "good" / f"{n}.png", root / "test" / "good" / f"{n}.png")
    return root


def test_the_test_is_what_the_training_held_out(data: Path) -> None:
    parts = split(data, model(HELD_OUT))
    assert parts.types == ["dent", "spot"]
    assert [path.name for path, _ in parts.real["dent"]] == ["0.png", "1.png"]
    assert [path.name for path, _ in parts.test["spot"]] == [f"{n}.png" for n in range(2, 7)]
    assert (len(parts.good), len(parts.test_good)) == (4, 2)
    assert split(data, model(HELD_OUT), ["spot"]).types == ["spot"]
    assert parts.prompt("spot") == "part+spot"


def test_painted_defects_test_nothing(data: Path) -> None:
    (data / "run.json").write_text("{}")
    with pytest.raises(
        DatasetError, match=r"are painted, as its `run.json` tells: give a data set of real ones"
    ):
        split(data, model(HELD_OUT))


def test_good_photographs_that_the_training_left_out_are_not_painted_on(data: Path) -> None:
    parts = split(data, model([*HELD_OUT, "part/good/3.png"]))
    assert [path.name for path in parts.good] == ["2.png", "4.png", "5.png"]


@pytest.mark.parametrize("held_out", [None, []])
def test_a_generator_that_saw_everything_is_refused(data: Path, held_out: list[str] | None) -> None:
    with pytest.raises(InputError, match=r"none is left to test on: train it with .*--hold-out 0\.67"):
        split(data, model(held_out))


def test_a_photograph_on_both_sides_is_refused_under_any_name(data: Path) -> None:
    shutil.copy(data / "test" / "dent" / "3.png", data / "train" / "good" / "twin.png")
    with pytest.raises(DatasetError, match=r"`.*twin.png` is to be learned from and is the test's `.*3.png`"):
        split(data, model(HELD_OUT))


def test_a_photograph_that_the_generator_learned_as_another_type_is_refused(data: Path) -> None:
    shutil.copy(data / "test" / "dent" / "3.png", data / "test" / "spot" / "0.png")
    with pytest.raises(DatasetError, match=r"`.*0.png` is to be learned from and is the test's `.*3.png`"):
        split(data, model(HELD_OUT), ["dent"])


def test_another_photograph_of_a_defect_on_the_other_side_is_refused(data: Path) -> None:
    learned, tested = (data / "test" / "dent" / f"{n}.png" for n in (1, 4))
    darker = np.asarray(Image.open(learned)) * 0.7
    Image.fromarray(darker.astype(np.uint8)).save(tested)
    shutil.copy(*(data / "ground_truth" / "dent" / f"{n}_mask.png" for n in (1, 4)))
    with pytest.raises(DatasetError) as refused:
        split(data, model(HELD_OUT))
    assert str(refused.value) == (
        f"`{tested}` of the test shows the same defect as `{learned}`, which was learned from: train again with "
        "`--hold-out`, which keeps all photographs of a defect on one side"
    )


def test_too_few_labelled_photographs_are_refused(data: Path) -> None:
    for n in (5, 6):
        (data / "test" / "dent" / f"{n}.png").unlink()
    with pytest.raises(DatasetError, match="type 'dent' has 5 labelled photographs, at least 6 are needed"):
        split(data, model(HELD_OUT))
    assert split(data, model(HELD_OUT), ["spot"]).types == ["spot"]


def test_a_good_photograph_of_the_test_that_shows_a_labelled_part_is_left_out(data: Path) -> None:
    defect = np.asarray(Image.open(data / "test" / "dent" / "3.png")).astype(np.float64)
    label = np.asarray(Image.open(data / "ground_truth" / "dent" / "3_mask.png")) > 0
    defect[label] = 100
    Image.fromarray((0.8 * defect).astype(np.uint8)).save(data / "test" / "good" / "1.png")
    assert [path.name for path in split(data, model(HELD_OUT)).test_good] == ["0.png"]


def test_a_photograph_with_two_types_is_refused(data: Path) -> None:
    for folder, name in (("test", "{}.png"), ("ground_truth", "{}_mask.png")):
        shutil.copy(data / folder / "dent" / name.format(3), data / folder / "spot" / name.format(4))
    with pytest.raises(
        DatasetError, match=r"`.*dent/3.png` and `.*spot/4.png` are one photograph with two types"
    ):
        split(data, model(HELD_OUT))
    assert split(data, model(HELD_OUT), ["dent"]).types == ["dent"]


def test_a_labelled_photograph_that_came_after_the_training_is_refused(data: Path) -> None:
    learned = [f"part/{kind}/{n}.png" for kind in ("dent", "spot") for n in (0, 1)]
    trained = model(HELD_OUT)
    provenance = trained.provenance | {"learned": learned}
    assert split(data, trained.model_copy(update={"provenance": provenance})).types == ["dent", "spot"]
    provenance |= {"learned": learned[:-1]}
    with pytest.raises(DatasetError, match=r"`.*spot/1.png` was not there when the model was trained"):
        split(data, trained.model_copy(update={"provenance": provenance}))


def test_a_good_photograph_of_a_labelled_part_that_came_after_the_training_is_left_out(data: Path) -> None:
    """Nothing is painted on it, and no segmenter learns from it: it shows the test's part, or calls a defect good."""
    for place in ("dent/3.png", "spot/0.png"):
        defect = np.asarray(Image.open(data / "test" / place)).astype(np.float64)
        darker = Image.fromarray((0.8 * defect).astype(np.uint8))
        darker.save(data / "train" / "good" / f"later-{place.replace('/', '-')}")
    assert [path.name for path in split(data, model(HELD_OUT)).good] == [f"{n}.png" for n in range(2, 6)]


def test_another_data_set_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not what the model was trained on"):
        split(data, model(["part/dent/99.png"]))
    shutil.copytree(data, tmp_path / "other")
    with pytest.raises(DatasetError, match=r"no type of `.*other` is one of them"):
        split(tmp_path / "other", model(HELD_OUT))
    with pytest.raises(InputError, match="unknown type 'hole'"):
        split(data, model(HELD_OUT), ["hole"])


def test_without_good_photographs_nothing_can_be_painted(data: Path) -> None:
    for path in (data / "train" / "good").iterdir():
        path.unlink()
    match = "no good photographs in `train/good` that show no labelled part: add some"
    with pytest.raises(DatasetError, match=match):
        split(data, model(HELD_OUT))


def test_without_good_photographs_that_show_no_defect_nothing_can_be_painted(data: Path) -> None:
    every = [f"part/good/{path.name}" for path in (data / "train" / "good").iterdir()]
    with pytest.raises(DatasetError, match="no good photographs in `train/good` that show no labelled part"):
        split(data, model([*HELD_OUT, *every]))


def test_good_photographs_of_the_test_are_found_under_the_names_layouts_give_them(data: Path) -> None:
    (data / "test" / "good").rename(data / "test" / "ok")
    assert [path.parent.name for path in split(data, model(HELD_OUT)).test_good] == ["ok", "ok"]
    shutil.rmtree(data / "test" / "ok")
    (data / "test" / "good").mkdir()
    (data / "test" / "good" / ".gitkeep").touch()
    assert split(data, model(HELD_OUT)).test_good == []


def test_every_picture_of_the_test_has_a_subject(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage_rt.quality.split.twins.defects", lambda *_: np.array([0, 1, 2, 2, 4, 4, 4]))
    assert split(data, model(HELD_OUT)).subjects().tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 5]
