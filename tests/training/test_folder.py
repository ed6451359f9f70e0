"""Networks read from a model folder: whole, alone, in another dtype, and never with a weight made up."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from small_model import small_model, write_small_model

from stage_rt.errors import ModelError
from stage_rt.training.folder import WEIGHTS_FILE, load_model, load_network


@pytest.fixture
def unet(model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_folder / "unet", tmp_path / "unet")
    return tmp_path / "unet"


def test_every_network_comes_back_as_it_was(model_folder: Path) -> None:
    found, expected = load_model(model_folder).modules, small_model().modules
    assert set(found) == set(expected)
    for place, module in found.items():
        assert not module.training
        weights, right = module.state_dict(), expected[place].state_dict()
        assert set(weights) == set(right)
        for name, weight in weights.items():
            assert weight.dtype == right[name].dtype
            assert torch.equal(weight, right[name]), f"{place} {name}"


def test_weights_are_rounded_once_to_the_dtype_asked_for(unet: Path) -> None:
    network = load_network(UNet2DConditionModel, unet, torch.float16)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, small_model().unet.state_dict()[name].half()), name


def test_a_network_outlives_its_file(unet: Path) -> None:
    network = load_network(UNet2DConditionModel, unet)
    (unet / WEIGHTS_FILE).write_bytes(b"")
    assert torch.equal(network.conv_in.weight, small_model().unet.conv_in.weight)


@pytest.mark.parametrize("change", ["missing", "surplus", "of another shape"])
def test_weights_of_another_network_are_named(unet: Path, change: str) -> None:
    weights = load_file(unet / WEIGHTS_FILE)
    if change == "missing":
        del weights["conv_in.bias"]
    elif change == "surplus":
        weights["conv_in.bias2"] = torch.zeros(3)
    else:
        weights["conv_in.bias"] = torch.zeros(3)
    save_file(weights, unet / WEIGHTS_FILE)
    with pytest.raises(
        ModelError, match=r"`.*unet` holds no usable UNet2DConditionModel weights \(.*conv_in\.bias"
    ):
        load_network(UNet2DConditionModel, unet)


@pytest.mark.parametrize("length", [0, 7, 5000])
def test_a_file_cut_short_is_named(unet: Path, length: int) -> None:
    content = (unet / WEIGHTS_FILE).read_bytes()
    (unet / WEIGHTS_FILE).write_bytes(content[:length])
    with pytest.raises(ModelError, match="holds no usable UNet2DConditionModel weights"):
        load_network(UNet2DConditionModel, unet)


def test_a_missing_configuration_is_named(unet: Path) -> None:
    (unet / "config.json").unlink()
    with pytest.raises(ModelError, match="holds no usable UNet2DConditionModel weights"):
        load_network(UNet2DConditionModel, unet)


@pytest.mark.parametrize("name", ["stage.json", "prompts.safetensors", f"unet/{WEIGHTS_FILE}"])
def test_a_model_that_changed_since_it_was_written_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_small_model(tmp_path / "model")
    content = (folder / name).read_bytes()
    place = content.rindex(b"0") if name == "stage.json" else len(content) - 5
    (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(
        ModelError, match=r"is not the file that SHA256SUMS lists: .* or remove SHA256SUMS if"
    ):
        load_model(folder)
    (folder / "SHA256SUMS").unlink()
    load_model(folder)


@pytest.mark.parametrize("content", ["[]", '"someone/something"', "null", "1"])
def test_a_configuration_that_is_none_asks_nobody(tmp_path: Path, content: str) -> None:
    folder = write_small_model(tmp_path / "model")
    (folder / "SHA256SUMS").unlink()
    (folder / "unet" / "config.json").write_text(content)
    message = (
        r"unet` holds no usable UNet2DConditionModel weights \(config.json holds no configuration\): train"
    )
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda context: None, r"lacks the context of prompt 'tile\+hole' that stage.json names: train or"),
        (lambda context: context[1:], r"holds 'tile\+hole' with shape \(2, 6\), not \(3, 6\): train or"),
        (
            lambda context: context / 0,
            r"holds a context that is not finite for prompt 'tile\+hole': train or",
        ),
    ],
)
def test_a_context_that_is_missing_or_cannot_be_is_named_with_the_remedy(
    tmp_path: Path, change, message: str
) -> None:
    folder = write_small_model(tmp_path / "model")
    (folder / "SHA256SUMS").unlink()
    held = load_file(folder / "prompts.safetensors")
    changed = {name: change(context) if name == "tile+hole" else context for name, context in held.items()}
    kept = {name: context for name, context in changed.items() if context is not None}
    save_file(kept, folder / "prompts.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_a_surplus_or_missing_file_of_a_model_is_named(tmp_path: Path) -> None:
    folder = write_small_model(tmp_path / "model")
    (folder / "README.md").write_text("pictures and pages take no part")
    load_model(folder)
    (folder / "more.safetensors").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"more.safetensors` is not listed in SHA256SUMS: move it out of the model's"
    ):
        load_model(folder)
