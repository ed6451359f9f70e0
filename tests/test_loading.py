"""Engines in use while another one is built into their folder."""

import shutil

import numpy as np
import pytest

from stage_rt.errors import EngineError
from stage_rt.loading import load


@pytest.mark.parametrize(("engine", "suffix"), [("engine_folder", "onnx"), ("openvino_engine", "bin")])
def test_a_graph_that_was_replaced_after_loading_is_not_run(request, tmp_path, engine, suffix):
    folder = shutil.copytree(request.getfixturevalue(engine), tmp_path / "engine")
    loaded = load(folder)
    latent = np.ones((1, 4, 16, 16), np.float32)
    before = loaded.decode(latent)
    for name in ("vae_encoder", "vae_decoder"):
        path = folder / f"{name}.{suffix}"
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(EngineError) as refused:
        loaded.encode(np.zeros((1, 1, 32, 32), np.float32), latent)
    assert str(refused.value) == (
        f"`{folder / f'vae_encoder.{suffix}'}` was replaced or changed while the engine was in use: run the same "
        "command again, and build into another folder while one is in use"
    )
    # What was read before is the engine's own.
    np.testing.assert_array_equal(loaded.decode(latent), before)


def test_a_graph_that_is_gone_is_named(engine_folder, tmp_path):
    folder = shutil.copytree(engine_folder, tmp_path / "engine")
    loaded = load(folder)
    (folder / "vae_decoder.onnx").unlink()
    with pytest.raises(EngineError, match=r"vae_decoder.onnx` was removed while"):
        loaded.decode(np.ones((1, 4, 16, 16), np.float32))
