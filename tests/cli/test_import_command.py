"""``stage-rt import`` as a user meets it, and what follows from a model it made."""

import json

import numpy as np
import pytest
import torch
from authors_files import write_embeddings, write_ldm, write_run

import stage_rt
from stage_rt.cli import main
from stage_rt.noise import PhiloxNoise
from stage_rt.samplers import SAMPLERS
from stage_rt.training.folder import load_description


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_ldm(folder / "model.ckpt")
    write_run(folder / "one", ("part+dent", "part+hole", "part+spot"), trained="part+spot")
    write_run(folder / "two", seed=1)
    return folder


def test_stage_prints_the_model_and_its_prompts(command, files):
    code, out, err = command(
        *("import", "stage", "--ldm", f"{files}/model.ckpt", "--adapters", f"{files}/one"),
        *("--adapters", f"part+dent={files}/two", "--image-size", "32", "-o", "model"),
    )
    assert (code, out, err) == (0, "model `model`\nprompts part+dent, part+spot\n", "")
    code, out, err = command(
        *(
            "import",
            "stage",
            "--ldm",
            f"{files}/model.ckpt",
            "--adapters",
            f"part+dent, part+spot={files}/two",
        ),
        *("--image-size", "32", "-o", "json", "--json", "--dtype", "fp16", "--mask-rule", "authors"),
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == {"model": "json", "prompts": ["part+dent", "part+spot"]}


def test_what_is_wrong_is_one_sentence(command, files, tmp_path):
    good = [
        "import",
        "stage",
        "--ldm",
        f"{files}/model.ckpt",
        "--adapters",
        f"part+dent={files}/two",
        "-o",
        "model",
    ]
    wrong = files / "two" / "fine_mask-10.pt"
    code, out, err = command(*(str(wrong) if part.endswith(".ckpt") else part for part in good))
    assert (code, out) == (1, "")
    assert err == (
        f"error: `{wrong}` is a pickled `ldm.models.diffusion.ddpm.MGA`, a mask-guidance adapter, the "
        "`model.ckpt` of latent-diffusion text2img was wanted\n"
    )
    code, out, err = command(*good, "--max-gib", "0.0001")
    assert (code, out) == (1, "")
    assert err.endswith("more than the 0.0001 allowed: raise `--max-gib` if you trust it\n")
    assert not (tmp_path / "model").exists()


def test_anomalydiffusion_becomes_an_engine_that_paints_with_every_sampler(command, files):
    code, out, err = command(
        *("import", "anomalydiffusion", "--ldm", f"{files}/model.ckpt", "--image-size", "32", "-o", "model"),
        *("--embeddings", f"{files}/two/embeddings_gs-10.pt", "--prompt", "part+dent"),
    )
    assert (code, out, err) == (0, "model `model`\nprompts part+dent\n", "")
    assert command("build", "model", "-o", "engine", "--batch", "2")[0] == 0
    engine = stage_rt.load("engine")
    short = engine.spec.model.recipe.model_copy(
        update={"steps": 10, "ema_stop": 2, "only_intervals": ((3, 4),)}
    )
    images = np.zeros((2, 3, 32, 32), np.float32)
    masks = np.zeros((2, 1, 16, 16), np.float32)
    masks[0, :, 4:8, 4:8] = 1
    results = {}
    for name in (name for name, way in SAMPLERS.items() if way.system != "fast"):
        painted = engine.paint(
            images, masks, prompt="part+dent", noise=PhiloxNoise([1, 2]), sampler=name, recipe=short
        )
        assert painted.finite.all()
        results[name] = painted.images
    for name in results:
        assert sum(np.array_equal(results[name], other) for other in results.values()) == 1


def test_anogen_takes_an_embedding_a_folder_and_no_text_beside_them(command, files, tmp_path):
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    for name in ("bottle_dent", "bottle_hole"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        write_embeddings(tmp_path / "logs" / name / "embeddings.pt", {"*": vectors})
    options = ("import", "anogen", "--ldm", f"{files}/model.ckpt", "--image-size", "32")
    code, out, err = command(*options, "--embeddings", "logs", "--prompt", "bottle_dent", "-o", "model")
    assert (code, out, err) == (0, "model `model`\nprompts bottle_dent\n", "")
    model = load_description(tmp_path / "model")
    assert (model.spec.surface, model.spec.prompts) == ("no text", {"bottle_dent": None})
    empty, learned = model.contexts["no text"], model.contexts["bottle_dent"]
    assert empty.shape == learned.shape == (12, 16)
    assert not torch.allclose(empty[:3], learned[:3], atol=0.1)
    code, out, err = command(*options, "--embeddings", "logs", "--prompt", "bottle_scratch", "-o", "other")
    assert (code, out) == (1, "")
    assert err == "error: `logs` has no `bottle_scratch/embeddings.pt`, it has bottle_dent, bottle_hole\n"
    code, out, err = command(*options, "--embeddings", "model", "-o", "other")
    assert (code, out) == (1, "")
    assert err.startswith("error: `model` has no folder with a file `embeddings.pt`: name the folder")


def test_adapters_are_left_out_of_the_other_samplers(engine_folder):
    engine = stage_rt.load(engine_folder)
    ran = []
    run = engine._executor._backend.run
    engine._executor._backend.run = lambda graph, **inputs: ran.append(graph) or run(graph, **inputs)
    image, mask = np.zeros((1, 1, 32, 32), np.float32), np.ones((1, 1, 16, 16), np.float32)
    recipe = engine.spec.model.recipe
    for name in (name for name, way in SAMPLERS.items() if way.system != "fast"):
        ran.clear()
        engine.paint(image, mask, prompt="tile+crack", noise=PhiloxNoise([1]), sampler=name, recipe=recipe)
        adapters = [graph for graph in ran if graph.startswith("adapters/")]
        branches = [f"adapters/tile.{recipe.branch(i)}" for i in reversed(range(recipe.steps))]
        assert adapters == (branches if name == "stage" else [])
        assert ran.count("unet") == SAMPLERS[name].calls(recipe, SAMPLERS[name].steps(recipe))


@pytest.mark.parametrize("text", ["dent", "=a dent", "dent="])
def test_a_prompt_without_its_text_is_a_usage_error(command, text):
    code, out, err = command("import", "diffusers", "x", "-o", "model", "--prompt", text)
    assert (code, out) == (2, "")
    assert "is not a prompt and its text" in err


def test_a_prompt_with_two_texts_is_a_usage_error(command):
    code, out, err = command(
        "import", "diffusers", "x", "-o", "model", "--prompt", "a=one", "--prompt", "a=two"
    )
    assert (code, out) == (2, "")
    assert "'a' is given two texts" in err
