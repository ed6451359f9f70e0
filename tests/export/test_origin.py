"""What a build from a model depends on: every file of its networks, wherever it lies."""

import shutil

import pytest

from stage_rt.export.origin import deciding, origin
from stage_rt.files import inside, sha256


@pytest.fixture
def model(model_folder, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(model_folder, tmp_path / "model")


def test_weights_and_descriptions_decide_and_nothing_else(model):
    (model / "losses.png").write_bytes(b"a plot")
    (model / "nowhere.json").symlink_to("nothing")
    found = [path for path in inside(model) if path.suffix in (".json", ".safetensors")]
    assert deciding(model) == {str(path): sha256(model / path) for path in found if (model / path).is_file()}
    assert {"stage.json", "unet/diffusion_pytorch_model.safetensors"} < set(deciding(model))


def test_a_network_in_a_folder_that_is_a_link_decides_too(model, tmp_path):
    plain, before = deciding(model), origin(model, "fp32")
    (model / "unet").rename(tmp_path / "shared")
    (model / "unet").symlink_to("../shared")
    (model / "round").symlink_to(".")
    assert (deciding(model), origin(model, "fp32")) == (plain, before)
    (tmp_path / "shared" / "diffusion_pytorch_model.safetensors").write_bytes(b"of another model")
    assert origin(model, "fp32") != before
