"""From a folder of photographs to a model folder, and the ways it can go wrong."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from stage_rt.errors import DatasetError, InputError, ModelError, StageError
from stage_rt.images.layouts import datasets, provenance_name
from stage_rt.recipe import Branch
from stage_rt.training.folder import load_model, save_model
from stage_rt.training.presets import Preset
from stage_rt.training.train import _adapter_names, _open_work, train


def ignore(*_: object) -> None:
    """A report that nobody reads."""


def run(dataset: Path, folder: Path, seed: int = 0) -> None:
    train(dataset, folder, seed=seed, dtype="fp16", report=ignore, say=ignore, notify=ignore)


@pytest.fixture
def model(dataset: Path, tmp_path: Path, micro: Preset) -> Path:
    run(dataset, tmp_path / "model")
    return tmp_path / "model"


def test_model_folder_holds_what_the_design_says(model: Path) -> None:
    spec = json.loads((model / "stage.json").read_text())
    assert spec["prompts"] == {"part+dent": "part+dent", "part+spot": "part+spot"}
    assert (spec["image_size"], spec["image_channels"], spec["latent_size"]) == (32, 1, 16)
    assert set(load_file(model / "prompts.safetensors")) == {"part+dent", "part+spot", "good"}
    assert spec["surface"] == "good"
    for place in ("unet", "vae", "adapters/part+dent/aware", "adapters/part+dent/only"):
        assert (model / place / "config.json").is_file()
        assert load_file(model / place / "diffusion_pytorch_model.safetensors")
    assert {"losses.png", "reconstructions.png", "model_index.json"} <= {
        path.name for path in model.iterdir()
    }
    assert not model.with_name("model.training").exists()


def test_loaded_model_runs_and_round_trips(model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    x = torch.randn(1, 4, 16, 16)
    estimate = loaded.unet(x, 500, loaded.contexts["part+dent"][None]).sample
    guided = loaded.adapters["part+dent"][Branch.AWARE](estimate, torch.ones(1, 1, 16, 16))
    assert guided.shape == x.shape
    save_model(loaded, tmp_path / "again")
    again = load_model(tmp_path / "again")
    for place, module in loaded.modules.items():
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, again.modules[place].state_dict()[name]), (place, name)


def test_same_seed_gives_the_same_weights(dataset: Path, tmp_path: Path, micro: Preset) -> None:
    weights = []
    for name in ("first", "second"):
        run(dataset, tmp_path / name)
        weights.append(load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_existing_folder_is_refused(model: Path, dataset: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        run(dataset, model)


def test_state_of_another_training_is_refused(dataset: Path, tmp_path: Path, micro: Preset) -> None:
    work = tmp_path / "model.training"
    work.mkdir()
    (work / "job.json").write_text("{}")
    with pytest.raises(InputError, match="holds another training"):
        run(dataset, tmp_path / "model")


@pytest.mark.parametrize(("hold_out", "told_of"), [(0.0, True), (0.3, False)])
def test_that_no_pair_of_a_model_can_be_judged_is_told_before_anything_else(
    dataset: Path, tmp_path: Path, micro: Preset, hold_out: float, told_of: bool
) -> None:
    told: list[str] = []

    def first(*step: object) -> None:
        raise StoppedError(*step)

    with pytest.raises(StoppedError):
        train(
            dataset, tmp_path / "model", hold_out=hold_out, report=first, say=told.append, notify=told.append
        )
    # The data set of these tests is told of as well: it has three photographs a type.
    judged = [line for line in told if not line.startswith("types with fewer than 8 labelled photographs")]
    assert [("evaluate" in line, "`--hold-out 0.67`" in line) for line in judged] == [(True, True)] * told_of
    assert told[: len(judged)] == judged


def test_photographs_whose_names_are_no_text_can_be_held_out(
    dataset: Path, tmp_path: Path, micro: Preset
) -> None:
    # Names that an old Windows wrote, as Linux unpacks them: no UTF-8.
    for k in range(3):
        for place, end in (("test/dent", ""), ("ground_truth/dent", "_mask")):
            os.rename(dataset / place / f"{k}{end}.png", dataset / place / f"{k}\udce4{end}.png")
    root = dataset.parent / "M\udcfcller"
    root.mkdir()
    dataset.rename(root / "part")
    train(root, tmp_path / "model", hold_out=0.3, report=ignore, say=ignore, notify=ignore)
    provenance = load_model(tmp_path / "model").spec.provenance
    assert provenance["trained_on"] == "M\\udcfcller"
    shown = [photo for photo, _ in datasets(root)[0].defects["dent"]]
    assert sum(provenance_name("part", "dent", photo) in provenance["held_out"] for photo in shown) == 1


def test_what_is_left_to_learn_from_is_told_of_where_it_is_little(
    dataset: Path, tmp_path: Path, micro: Preset
) -> None:
    said: list[str] = []

    def stop(stage: str, *_: object) -> None:
        if stage == "reading":
            raise StoppedError

    with pytest.raises(StoppedError):
        train(dataset, tmp_path / "model", hold_out=0.3, report=stop, say=ignore, notify=said.append)
    assert "part+dent (2), part+spot (2)" in said[0]


def test_a_name_too_long_for_a_folder_that_is_staged_is_refused_at_once(
    dataset: Path, tmp_path: Path, micro: Preset
) -> None:
    with pytest.raises(InputError, match="too long a name for a folder: choose a shorter `-o`"):
        run(dataset, tmp_path / ("x" * 242))
    assert not [path for path in tmp_path.iterdir() if path != dataset]


def test_a_folder_of_the_user_is_not_taken_for_the_state_of_a_training(
    dataset: Path, tmp_path: Path, micro: Preset
) -> None:
    mine = dataset.rename(tmp_path / "model.training")
    with pytest.raises(
        InputError, match=r"model.training` is where .* something else \(`ground_truth`\): choose"
    ):
        run(mine, tmp_path / "model")
    assert (mine / "train" / "good" / "0.png").exists()


def test_a_training_that_was_killed_before_its_first_file_goes_on(
    dataset: Path, tmp_path: Path, micro: Preset
) -> None:
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / ".job.json.0123abcd.tmp").touch()
    run(dataset, tmp_path / "model")


class StoppedError(Exception):
    """What a user who presses Ctrl-C is here."""


def test_a_folder_is_trained_by_one_process_at_a_time(dataset: Path, tmp_path: Path, micro: Preset) -> None:
    def twice(stage: str, *_: object) -> None:
        if stage == "denoiser":
            run(dataset, tmp_path / "model")

    with pytest.raises(InputError, match="model` is being trained by another process: wait for it to end"):
        train(dataset, tmp_path / "model", report=twice, say=ignore, notify=ignore)
    run(dataset, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"part", "model"}


@pytest.mark.parametrize(
    ("place", "failure"),
    [
        ("torch.save", OSError(errno.ENOSPC, "No space left on device")),
        ("stage_rt.training.folder.save_file", SafetensorError("No space left on device")),
    ],
)
def test_a_full_disk_is_told_of_in_one_sentence_and_the_training_goes_on(
    dataset: Path,
    tmp_path: Path,
    micro: Preset,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    failure: Exception,
) -> None:
    def full(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(place, full)
        with pytest.raises(StageError) as told:
            run(dataset, tmp_path / "model")
    assert re.fullmatch(
        r"writing (to )?`.*/model` failed \(No space left on device\): mend that and run the same command again",
        str(told.value),
    )
    assert {path.name for path in tmp_path.iterdir()} == {"part", "model.training"}
    assert not list(tmp_path.rglob("*.tmp"))
    run(dataset, tmp_path / "model")


def test_a_training_does_not_go_on_with_other_labels(dataset: Path, tmp_path: Path, micro: Preset) -> None:
    def begin() -> None:
        train(dataset, tmp_path / "model", view="whole", report=late, say=ignore, notify=ignore)

    def late(stage: str, *_: object) -> None:
        if stage == "denoiser":
            raise StoppedError

    for _ in range(2):
        with pytest.raises(StoppedError):
            begin()
    path = dataset / "ground_truth" / "dent" / "0_mask.png"
    Image.fromarray(np.roll(np.asarray(Image.open(path)), 8, axis=0)).save(path)
    with pytest.raises(InputError, match="holds another training"):
        begin()


def test_a_job_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    job = {"seed": 1, "pixels": 2, "data": "3"}
    path = _open_work(tmp_path / "model", job) / "job.json"
    before = path.stat()
    assert before.st_ino in synced
    _open_work(tmp_path / "model", job)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("text", ['{"seed": 1, "pixels": 2, "data": "4"}', '{"seed": 1}', "", "[]"])
def test_another_job_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / "job.json").write_text(text)
    with pytest.raises(
        InputError, match=r"holds another training .*`--hold-out`.*`--view`.: give what it was begun with"
    ):
        _open_work(tmp_path / "model", {"seed": 1, "pixels": 2, "data": "3"})


def test_a_job_from_before_labels_were_digested_goes_on(tmp_path: Path) -> None:
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / "job.json").write_text('{\n  "seed": 1,\n  "pixels": 2\n}')
    _open_work(tmp_path / "model", {"seed": 1, "pixels": 2, "data": "3"})


def test_dataset_without_labelled_defects_is_refused(dataset: Path, tmp_path: Path, micro: Preset) -> None:
    for mask in (dataset / "ground_truth").rglob("*.png"):
        mask.unlink()
    with pytest.raises(DatasetError):
        run(dataset, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_missing_weights_are_named(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="unet"):
        load_model(model)


def test_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model folder"):
        load_model(tmp_path)


def test_invalid_spec_names_the_field(model: Path) -> None:
    spec = json.loads((model / "stage.json").read_text())
    spec["latent_scale"] = -1
    (model / "stage.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match="latent_scale"):
        load_model(model)


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        (["tile+crack", "tile+hole"], ["tile+crack", "tile+hole"]),
        (["tile+a b", "tile+a.b"], ["0_tile+a_b", "1_tile+a_b"]),
        (["-x+y"], ["0_-x+y"]),
        (["ü+y"], ["0__+y"]),
        (["ü" + 199 * "y"], ["0__" + 197 * "y"]),
    ],
)
def test_adapters_are_named_after_their_prompts(prompts: list[str], names: list[str]) -> None:
    assert _adapter_names(prompts) == names
