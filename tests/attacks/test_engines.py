"""Damaged and hostile engine and graphs folders: refused by name before a library reads anything of them."""

import json
import random
import shutil

import onnxruntime
import pytest
from descriptions import rewrite

import stage_rt
from stage_rt import folders as module
from stage_rt.engines.build import build
from stage_rt.engines.graphs import read_graphs
from stage_rt.errors import EngineError, GraphsError, StageError
from stage_rt.folders import read_engine
from stage_rt.spec import ENGINE_FILE, GRAPHS_FILE, PROMPTS_FILE

NAMES = ["unet.onnx", "adapters/tile.only.onnx", "vae_decoder.onnx", PROMPTS_FILE]
ROUNDS = 12
OUTSIDE = [
    "../secret",
    "adapters/../../secret",
    "/etc/passwd",
    "..",
    "a\\..\\secret",
    "C:\\secret",
    "",
    "a\n/../b",
]


@pytest.fixture(autouse=True)
def nothing_is_read(engine_folder, monkeypatch):
    """No library is handed a file in these tests, once the engine they damage was made."""

    def read(*_, **__):
        raise AssertionError("a library was handed a damaged folder")

    monkeypatch.setattr(onnxruntime, "InferenceSession", read)
    monkeypatch.setattr(module, "safe_open", read)


@pytest.fixture
def engine(engine_folder, tmp_path):
    return shutil.copytree(engine_folder, tmp_path / "engine")


@pytest.fixture
def source(graphs, tmp_path):
    return shutil.copytree(graphs("fp32"), tmp_path / "graphs")


def damaged(content: bytes, seed: str):
    """Truncations and single flipped bits of ``content``."""
    rng = random.Random(seed)
    yield b""
    yield content[:-1]
    yield content + b"\0"
    for _ in range(ROUNDS):
        yield content[: rng.randrange(len(content))]
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


def meaning(content: bytes):
    """What a JSON file says, or None where it says nothing."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def refusal(error: type[StageError], call, *arguments) -> str:
    with pytest.raises(error) as raised:
        call(*arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("`")
    return message


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_of_an_engine_is_refused(engine, name):
    path = engine / name
    for content in damaged(path.read_bytes(), name):
        path.write_bytes(content)
        message = refusal(EngineError, stage_rt.load, engine)
        assert message == (
            f"`{path}` is not the file that {ENGINE_FILE} lists: build the engine again with `stage-rt build`"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_of_graphs_is_refused(source, tmp_path, name):
    path = source / name
    for content in damaged(path.read_bytes(), name):
        path.write_bytes(content)
        with pytest.raises(GraphsError, match=f"is not the file that {GRAPHS_FILE} lists"):
            build(source, tmp_path / "new", backend="onnxruntime", batch=[1])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_engine_json_is_refused(engine, seed):
    path = engine / ENGINE_FILE
    original = path.read_bytes()
    for content in damaged(original, f"engine {seed}"):
        if meaning(content) != meaning(original):
            path.write_bytes(content)
            assert refusal(EngineError, stage_rt.load, engine).startswith(f"`{path}` is not valid at ")


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_model_json_is_refused(source, seed):
    path = source / GRAPHS_FILE
    original = path.read_bytes()
    for content in damaged(original, f"graphs {seed}"):
        if meaning(content) != meaning(original):
            path.write_bytes(content)
            assert refusal(GraphsError, read_graphs, source).startswith(f"`{path}` is not valid at ")


def test_every_number_of_engine_json_counts(engine):
    path = engine / ENGINE_FILE
    original = path.read_text()
    changes = [
        ('"latent_scale": 0.5', '"latent_scale": 0.7'),
        ('"beta_end": 0.012', '"beta_end": 0.013'),
        ('"tile+hole"', '"tile+mole"'),
        ('"dtype": "fp32"', '"dtype": "fp16"'),
        ('"mask_rule": "cover"', '"mask_rule": "authors"'),
    ]
    for old, new in changes:
        assert old in original
        path.write_text(original.replace(old, new))
        assert "(it was changed after it was written)" in refusal(EngineError, stage_rt.load, engine)
    path.write_text(original)
    assert read_engine(engine).model.latent_scale == 0.5


@pytest.mark.parametrize("outside", OUTSIDE)
def test_a_path_that_leads_outside_is_refused(engine, source, tmp_path, outside):
    (tmp_path / "secret").write_text("secret")
    for folder, name, error, call in (
        (engine, ENGINE_FILE, EngineError, stage_rt.load),
        (source, GRAPHS_FILE, GraphsError, read_graphs),
    ):
        files = json.loads((folder / name).read_text())["files"]
        rewrite(folder / name, files=files | {outside: "0" * 64})
        assert "is not a path inside the folder" in refusal(error, call, folder)


@pytest.mark.parametrize("kind", ["engine", "graphs"])
def test_a_description_without_its_digest_is_refused(engine, source, kind):
    folder, name, error, call = {
        "engine": (engine, ENGINE_FILE, EngineError, stage_rt.load),
        "graphs": (source, GRAPHS_FILE, GraphsError, read_graphs),
    }[kind]
    content = json.loads((folder / name).read_text())
    del content["sha256"]
    (folder / name).write_text(json.dumps(content))
    assert "(it was changed after it was written)" in refusal(error, call, folder)


def with_prompts(engine, prompts):
    model = json.loads((engine / ENGINE_FILE).read_text())["model"]
    rewrite(engine / ENGINE_FILE, model=model | {"prompts": prompts})


@pytest.mark.parametrize("prompt", ["../../escape", "tile/hole", "tile\\hole", "tile\n+hole"])
def test_a_prompt_that_is_no_name_is_refused(engine, prompt):
    with_prompts(engine, {prompt: "tile"})
    assert "model.prompts" in refusal(EngineError, stage_rt.load, engine)


@pytest.mark.parametrize("adapter", ["../tile", "a/b", "", "."])
def test_an_adapter_that_is_no_name_is_refused(engine, adapter):
    with_prompts(engine, {"tile+hole": adapter})
    assert "model.prompts" in refusal(EngineError, stage_rt.load, engine)


@pytest.mark.parametrize("content", [b"[]", b"null", b"1e999", b"\xff\xfe", b"[" * 100_000, b'{"format":1}'])
def test_json_of_another_kind_is_refused(engine, source, content):
    (engine / ENGINE_FILE).write_bytes(content)
    (source / GRAPHS_FILE).write_bytes(content)
    assert refusal(EngineError, stage_rt.load, engine).startswith(f"`{engine / ENGINE_FILE}` is not valid")
    assert refusal(GraphsError, read_graphs, source).startswith(f"`{source / GRAPHS_FILE}` is not valid")


def test_linked_folders_and_descriptions_are_refused(engine, source, tmp_path):
    for folder, name, error, call in (
        (engine, ENGINE_FILE, EngineError, stage_rt.load),
        (source, GRAPHS_FILE, GraphsError, read_graphs),
    ):
        (folder / "adapters").rename(tmp_path / "elsewhere")
        (folder / "adapters").symlink_to(tmp_path / "elsewhere")
        assert "adapters` is a link, which is not allowed here" in refusal(error, call, folder)
        (folder / "adapters").unlink()
        (tmp_path / "elsewhere").rename(folder / "adapters")
        (folder / name).rename(tmp_path / "description")
        (folder / name).symlink_to(tmp_path / "description")
        assert f"{name}` is a link, which is not allowed here" in refusal(error, call, folder)
        (tmp_path / "description").unlink()
