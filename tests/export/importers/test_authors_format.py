"""The authors' own files, through import, export and build, give the authors' own trajectory."""

import os
from pathlib import Path

import closed_form
import numpy as np
import pytest
from safetensors.numpy import load_file

import stage_rt
from stage_rt.engine import Engine
from stage_rt.engines.build import build
from stage_rt.export.graphs import export
from stage_rt.export.importers.adapters import TrainingRun
from stage_rt.export.importers.stage import import_stage
from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import sample
from stage_rt.spec import PROMPTS_FILE

ELSEWHERE = "STAGE_RT_AUTHORS_FORMAT"
PROMPTS = ("bottle+broken_large", "hazelnut+crack")
BOUND = 1e-4


@pytest.fixture(scope="module")
def files() -> Path:
    if not os.environ.get(ELSEWHERE):
        pytest.skip(
            f"the files written by the authors' code are too large for the repository: name them in {ELSEWHERE}"
        )
    return Path(os.environ[ELSEWHERE])


@pytest.fixture(scope="module")
def model(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authors") / "model"
    import_stage(files / "model.ckpt", [TrainingRun(PROMPTS, files)], folder)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    graphs, folder = (tmp_path_factory.mktemp("authors") / name for name in ("graphs", "engine"))
    export(model, graphs, dtype="fp32")
    build(graphs, folder, backend="onnxruntime", batch=[2])
    return stage_rt.load(folder)


def test_contexts_are_those_of_the_authors_text_encoder(model, golden):
    contexts = load_file(model / PROMPTS_FILE)
    for prompt, expected in zip(PROMPTS, golden("tiny_modules")["bert_context"], strict=True):
        assert np.abs(contexts[prompt] - expected).max() <= 1e-5


def test_networks_are_those_of_the_authors(engine, golden):
    modules = golden("tiny_modules")
    for k, i in enumerate(modules["unet_t"]):
        part = slice(k, k + 1)
        eps = engine._executor._backend.run(
            "unet", sample=modules["unet_x"][part], timestep=np.array([i]), context=modules["unet_ctx"][part]
        )
        assert relative(eps, modules["unet_out"][part]) <= 1e-5
    decoded = engine._executor._backend.run("vae_decoder", latent=modules["vae_z"])
    assert relative(decoded, modules["vae_dec"]) <= 1e-5


@pytest.mark.slow
def test_the_trajectory_is_the_authors(engine, golden):
    recorded = golden("tiny_end2end")
    draws = np.random.Generator(np.random.PCG64(int(recorded["seed"])))
    images = np.ascontiguousarray(recorded["image"].astype(np.float32).transpose(0, 3, 1, 2))
    clean = engine.encode(images, draws.standard_normal((2, 4, 32, 32), dtype=np.float32))
    assert relative(clean, recorded["clean_latent"]) <= BOUND
    mask = recorded["mask32"].astype(np.float32)
    states: dict[int, np.ndarray] = {}
    final = sample(
        engine._executor.denoiser(engine.condition(PROMPTS[0])),
        clean,
        mask,
        recipe=Recipe.authors(),
        noise=closed_form.streamed(draws, clean.shape),
        callback=states.__setitem__,
    )
    for row, i in enumerate(recorded["steps"]):
        name = "aux" if Recipe.authors().branch(int(i) - 1) is Branch.ONLY else "x"
        assert relative(states[int(i)], recorded[name][row]) <= BOUND, i
    assert relative(final, recorded["final_latent"]) <= BOUND
    assert relative(engine.decode(final), recorded["decoded"]) <= BOUND


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
