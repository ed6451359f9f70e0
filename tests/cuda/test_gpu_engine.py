"""Engines that PyTorch built for the GPU here: held against their model, and their loop against that on a CPU."""

from contextlib import closing

import numpy as np
import pytest
import torch
from small_model import PROMPTS

from stage_rt.export.hoist import hoisted_model
from stage_rt.export.pytorch import describe, write
from stage_rt.export.verify import require, verify
from stage_rt.loading import load
from stage_rt.noise import PhiloxNoise
from stage_rt.training.folder import load_model

BATCH = (1, 4)


# The traced one first: it is there in seconds.
@pytest.fixture(scope="module", params=["torch", "inductor"])
def built(request, model_folder, tmp_path_factory):
    """An engine in fp32; its kernels are not chosen by trying them, which takes minutes."""
    return written(model_folder, tmp_path_factory.mktemp("engine"), request.param, device=None)


@pytest.fixture(scope="module")
def on_the_cpu(model_folder, tmp_path_factory):
    """Of PyTorch too: where benchmarks/gpu runs there may be neither ONNX nor ONNX Runtime."""
    return written(model_folder, tmp_path_factory.mktemp("cpu"), "torch", device="cpu")


def written(model_folder, folder, backend, device):
    model = hoisted_model(load_model(model_folder))
    write(model, describe(model.spec, backend, "fp32", BATCH, device, "0" * 64), folder, tuned=False)
    return folder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here")
def test_an_engine_for_the_gpu_is_its_model_and_paints_what_the_cpus_paints(built, on_the_cpu, model_folder):
    notices = []
    require(verify(built, model_folder))
    rng = np.random.default_rng(3)
    images = rng.uniform(-1, 1, (3, 1, 32, 32)).astype(np.float32)
    masks = np.zeros((3, 1, 16, 16), np.float32)
    masks[:, :, 4:9, 3:12] = 1
    given = {"prompt": PROMPTS[0], "noise": PhiloxNoise([7, 8, 9], [0, 1, 2])}
    with closing(load(built, notify=notices.append)) as here, closing(load(on_the_cpu)) as cpu:
        found, again, expected = (engine.paint(images, masks, **given).images for engine in (here, here, cpu))
    assert notices == []
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found, expected, atol=5e-4)
