"""Which good photographs show the part of a labelled defect is found once for files that stay as they are."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from micro import write_dataset
from PIL import Image

from stage_rt.errors import ImageError
from stage_rt.images import at_once, showing, twins
from stage_rt.images.layouts import Dataset
from stage_rt.images.showing import same_picture, showing_a_defect
from stage_rt.training import data


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stage-rt" / "showing"


@pytest.fixture
def dataset(tmp_path: Path, cache: Path) -> Dataset:
    (found,) = data.find(write_dataset(tmp_path / "part"))
    shutil.copy(found.defects["dent"][0][0], found.normals[2])
    return found


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Has one item more for every comparison."""
    made: list[None] = []
    compare = twins.showing

    def counting(*asked):
        made.append(None)
        return compare(*asked)

    monkeypatch.setattr(twins, "showing", counting)
    return made


def test_files_that_stay_as_they_are_are_compared_once(
    dataset: Dataset, cache: Path, compared: list[None]
) -> None:
    told: list[float] = []
    for _ in range(2):
        assert showing_a_defect(dataset.normals, dataset, told.append) == [dataset.normals[2]]
        assert told[-1] == 1.0
    assert len(compared) == 1
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"0]")
    assert showing_a_defect(dataset.normals, dataset) == [dataset.normals[2]]
    assert len(compared) == 2


@pytest.mark.parametrize("changed", ["good", "photograph", "mask", "order", "code"])
def test_whatever_changes_is_compared_again(
    dataset: Dataset, compared: list[None], changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert showing_a_defect(dataset.normals, dataset) == [dataset.normals[2]]
    photo, mask = dataset.defects["dent"][0]
    normals = list(dataset.normals)
    if changed == "good":
        shutil.copy(normals[3], normals[2])
    elif changed == "photograph":
        shutil.copy(normals[3], photo)
    elif changed == "mask":
        Image.fromarray(255 - np.asarray(Image.open(mask).convert("L"))).save(mask)
    elif changed == "order":
        normals.reverse()
    else:
        (tmp_path / "twins.py").write_text("another")
        monkeypatch.setattr(twins, "__file__", str(tmp_path / "twins.py"))
    found = showing_a_defect(normals, dataset)
    assert len(compared) == 2
    if changed == "order":
        assert found == [dataset.normals[2]]


def test_a_cache_that_cannot_be_written_costs_only_time(
    dataset: Dataset, cache: Path, compared: list[None]
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    for _ in range(2):
        assert showing_a_defect(dataset.normals, dataset) == [dataset.normals[2]]
    assert len(compared) == 2


def test_a_file_that_cannot_be_read_is_told_by_whoever_opens_it(dataset: Dataset, cache: Path) -> None:
    dataset.normals[1].unlink()
    with pytest.raises(ImageError, match=dataset.normals[1].name):
        showing_a_defect(dataset.normals, dataset)
    assert not cache.exists()


def test_a_comparison_on_many_cores_can_be_ended(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(share: float) -> None:
        if share > 0.7:
            raise KeyboardInterrupt

    begun: list[int] = []
    best = twins._best
    monkeypatch.setattr(at_once, "cores", lambda: 2)
    monkeypatch.setattr(twins, "_best", lambda one, other: begun.append(1) or best(one, other))
    every = dataset.normals * 20
    with pytest.raises(KeyboardInterrupt):
        showing_a_defect(every, dataset, ended)
    assert len(begun) < len(every) * 6


def test_a_photograph_is_decoded_once_for_as_long_as_it_is_as_it_was(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    read = showing.read_image
    monkeypatch.setattr(showing, "read_image", lambda path: decoded.append(path.name) or read(path))
    tested, learned = [dataset.defects["dent"][0][0]], dataset.normals
    for _ in range(2):
        assert same_picture(tested, learned) == {tested[0]: learned[2]}
    assert sorted(decoded) == sorted(path.name for path in [*tested, *learned])
    learned[2].unlink()
    shutil.copy(learned[3], learned[2])
    assert same_picture(tested, learned) == {}
