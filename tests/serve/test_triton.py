"""The model that paints pairs, as Triton's Python backend would run it over the networks of its repository."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from descriptions import rewrite
from fake_triton import FakeTriton, TritonError

import stage_rt
from stage_rt.engines.triton import write_repository
from stage_rt.errors import GraphsError
from stage_rt.recipe import Recipe
from stage_rt.run.job import resolve
from stage_rt.serve.pairs import Request, Room, asked, painted
from stage_rt.serve.triton import TOGETHER

PROMPT = "tile+crack"


@pytest.fixture(scope="module")
def repository(graphs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(graphs("fp32"), folder, name="stage")
    return folder


@pytest.fixture
def server(repository):
    return FakeTriton(repository)


@pytest.fixture
def ask(server):
    """``ask(patience=..., **changes)`` is the response to an order of a pair."""
    model = server.start("stage")
    return lambda patience=10**9, **changes: server.ask(model, "stage", patience=patience, **order(**changes))


def order(**changes):
    rng = np.random.default_rng(0)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:35, 30:50] = 1
    return {
        "image": np.repeat(rng.integers(90, 110, (60, 80, 1), dtype=np.uint8), 3, axis=2),
        "mask": mask,
        "prompt": np.array([PROMPT.encode()], np.object_),
        "seed": np.array([2**64 - 1], np.uint64),
    } | changes


def outputs(response):
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def test_a_pair_has_the_pixels_and_the_fill_that_the_engine_gives_it(ask, server, engine_folder):
    given, engine = order(), stage_rt.load(engine_folder)
    found = outputs(ask())
    expected = engine.synthesize(
        given["image"][None], given["mask"][None], prompt=PROMPT, seeds=[int(given["seed"][0])]
    )
    np.testing.assert_array_equal(found["image"], expected[0])
    assert (found["image"] != given["image"]).any()
    method = resolve(asked(PROMPT, int(given["seed"][0]), None), engine.spec.model)
    request = Request("", PROMPT, given["image"], given["mask"] != 0, False, 2**64 - 1, method)
    result = painted(engine, request, size=TOGETHER, progress=lambda share: None, room=Room())
    assert found["fill"] == pytest.approx(result.figures.fill, abs=1e-6)
    assert set(server.calls) == {
        f"stage_{name}"
        for name in ("unet", "adapters_tile_aware", "adapters_tile_only", "vae_encoder", "vae_decoder")
    }
    engine.close()


def test_seed_and_steps_are_those_of_the_request(graphs, tmp_path):
    source = shutil.copytree(graphs("fp32"), tmp_path / "graphs")
    recipe = Recipe(name="longer", steps=40, ema_stop=8, only_intervals=((12, 16), (28, 32)))
    model = json.loads((source / "model.json").read_text())["model"]
    rewrite(source / "model.json", model=model | {"recipe": recipe.model_dump(mode="json")})
    write_repository(source, tmp_path / "repository", name="stage")
    server = FakeTriton(tmp_path / "repository")
    painter = server.start("stage")

    def painted_in(calls, **changes):
        server.calls.clear()
        image = outputs(server.ask(painter, "stage", **order(**changes)))["image"]
        assert server.calls.count("stage_unet") == calls
        return image

    first = painted_in(40)
    np.testing.assert_array_equal(painted_in(40), first)
    assert (painted_in(12, steps=np.array([12], np.int32)) != first).any()
    assert (painted_in(40, seed=np.array([1], np.uint64)) != first).any()


def test_half_precision_stays_close(graphs, server, ask, tmp_path):
    write_repository(graphs("fp16"), tmp_path / "half", name="half")
    half = FakeTriton(tmp_path / "half")
    found = outputs(half.ask(half.start("half"), "half", **order()))["image"]
    difference = np.abs(found.astype(int) - outputs(ask())["image"].astype(int))
    assert 0 < difference.max() <= 12


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": np.array([b"tile+stain"], np.object_)}, "unknown prompt 'tile+stain': use one of"),
        ({"prompt": np.array([b"\xff\x00"], np.object_)}, "unknown prompt"),
        ({"mask": np.ones((80, 60), np.uint8)}, "`mask` must be uint8 of shape (60, 80), got uint8 (80, 60)"),
        ({"mask": np.zeros((60, 80), np.uint8)}, "`mask` is 0 everywhere"),
        ({"image": np.zeros((0, 80, 3), np.uint8)}, "`image` must be uint8 of shape [H, W, 3]"),
        (
            {"image": np.zeros((4001, 4000, 3), np.uint8), "mask": np.ones((4001, 4000), np.uint8)},
            "the picture has",
        ),
        ({"steps": np.array([0], np.int32)}, "sampler `stage` takes from 10 to 10 steps, not 0"),
        ({"steps": np.array([-5], np.int32)}, "sampler `stage` takes from 10 to 10 steps, not -5"),
        (
            {"steps": np.array([1001], np.int32)},
            "sampler `stage` takes from 10 to 10 steps, not 1001",
        ),
    ],
)
def test_what_is_wrong_with_a_request_is_its_error(ask, server, change, told):
    error = ask(**change).error()
    assert error.message().startswith(told)
    assert error.code() == TritonError.INVALID_ARG
    assert server.calls == []


def test_a_network_that_fails_is_told_and_the_next_pair_is_painted(ask, server):
    server.lost.add("stage_adapters_tile_only")
    error = ask().error()
    assert error.message() == (
        "Triton failed in model `stage_adapters_tile_only`: Request for unknown model: 'stage_adapters_tile_only' is "
        "not found"
    )
    assert error.code() == TritonError.INTERNAL
    server.lost.clear()
    assert outputs(ask())


def test_a_call_that_the_server_breaks_off_is_told(ask, server):
    class Gone:
        def exec(self):
            raise RuntimeError("Stub process is not healthy.\nmore")

    server.InferenceRequest = lambda **fields: Gone()
    error = ask().error()
    assert error.message() == "Triton did not run model `stage_vae_encoder`: Stub process is not healthy."


def test_what_nobody_thought_of_is_an_error_too(ask, server, monkeypatch):
    monkeypatch.setattr("stage_rt.serve.triton.painted", lambda *_, **__: 1 / 0)
    told = r"stage-rt failed: ZeroDivisionError: division by zero \(in `serve/triton\.py`, line \d+\)"
    assert re.fullmatch(told, ask().error().message())


def test_a_pair_that_nobody_wants_any_more_is_not_painted_to_its_end(ask, server):
    error = ask(patience=4).error()
    assert error.code() == TritonError.CANCELLED
    assert server.calls.count("stage_unet") == 5


def test_what_it_paints_by_is_checked_when_it_is_loaded(repository, tmp_path):
    changed = shutil.copytree(repository, tmp_path / "changed")
    described = changed / "stage/1/model"
    (described / "prompts.safetensors").write_bytes(b"")
    with pytest.raises(GraphsError, match=r"prompts.safetensors` is not the file that model.json lists"):
        FakeTriton(changed).start("stage")
    (described / "model.json").unlink()
    with pytest.raises(GraphsError, match=r"holds no model.json: make the repository again"):
        FakeTriton(changed).start("stage")


def test_it_needs_neither_a_server_of_ours_nor_an_inference_library():
    code = "import sys, stage_rt.serve.triton; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"fastapi", "uvicorn", "prometheus_client", "onnxruntime", "onnx", "torch"} & set(loaded)
