"""A model whose latents are wavelets is exported, and its graphs lose nothing, as those of any model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_model import small_model

from stage_rt.export.graphs import export
from stage_rt.training.folder import load_model, save_model
from stage_rt.training.lossless import HaarAutoencoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vae = HaarAutoencoder(1)
    vae.standardise(torch.tensor([0.2]), torch.tensor([0.5, 0.1, 0.12, 0.05]))
    folder = tmp_path_factory.mktemp("wavelets") / "model"
    save_model(replace(small_model(), vae=vae.eval()), folder)
    return folder


def test_the_model_folder_names_its_kind_of_autoencoder(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    assert index["vae"] == ["stage_rt.training.lossless", "HaarAutoencoder"]
    assert isinstance(load_model(model).vae, HaarAutoencoder)


@pytest.mark.parametrize(("dtype", "levels"), [("fp32", 0), ("fp16", 1)])
def test_its_graphs_encode_and_decode_to_the_same_grey_levels(
    model: Path, tmp_path: Path, dtype: str, levels: int
) -> None:
    parities = []
    export(model, tmp_path / "graphs", dtype=dtype, show=parities.extend)
    assert len(parities) == 5
    assert all(row.passed for row in parities)
    encoder, decoder = (
        onnxruntime.InferenceSession(
            tmp_path / "graphs" / f"vae_{half}.onnx", providers=["CPUExecutionProvider"]
        )
        for half in ("encoder", "decoder")
    )
    kind = {"fp32": np.float32, "fp16": np.float16}[dtype]
    shown = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32)).astype(np.uint8)
    (moments,) = encoder.run(None, {"image": (shown / 127.5 - 1).astype(kind)})
    assert (moments[:, 4:] == -30).all()
    # small_model's latent scale does not matter here: the decoder takes what was divided by it.
    (image,) = decoder.run(None, {"latent": moments[:, :4]})
    found = np.rint((image.astype(np.float64) + 1) * 127.5)
    assert np.abs(found - shown).max() <= levels
