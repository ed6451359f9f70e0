"""Graphs to engines: what is left alone, what is built again, what is refused, and that it computes the same."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from descriptions import relist, rewrite
from fake_engine import contents
from safetensors.numpy import load_file, save_file
from small_model import PROMPTS

import stage_rt
from stage_rt.engines import onnxruntime as onnxruntime_builder
from stage_rt.engines.build import build
from stage_rt.errors import BackendError, EngineError, GraphsError, InputError, StageError
from stage_rt.folders import read_engine
from stage_rt.noise import PhiloxNoise
from stage_rt.spec import ENGINE_FILE, GRAPHS_FILE

DAMAGES = {
    "changed": "is not the file that",
    "missing": "is missing",
    "extra": "is not listed in",
    "link": "is a link",
}


@pytest.fixture
def source(graphs, tmp_path):
    """A copy of the fp32 graphs."""
    return shutil.copytree(graphs("fp32"), tmp_path / "graphs")


@pytest.fixture
def engine(engine_folder, tmp_path):
    """A copy of their engine."""
    return shutil.copytree(engine_folder, tmp_path / "engine")


def run(source, folder, batch=(1, 4), **options):
    return build(source, folder, backend="onnxruntime", batch=batch, **options)


def damage(folder, kind):
    """Do ``kind`` of `DAMAGES` to a folder; the file it concerns."""
    path = folder / "unet.onnx"
    if kind == "changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "missing":
        path.unlink()
    elif kind == "extra":
        path = folder / "adapters" / "weights.bin"
        path.touch()
    else:
        path.rename(folder.parent / "elsewhere.onnx")
        path.symlink_to(folder.parent / "elsewhere.onnx")
    return path


def inputs(count, size=32):
    rng = np.random.default_rng(5)
    images = rng.uniform(-1, 1, (count, 1, size, size)).astype(np.float32)
    masks = np.zeros((count, 1, size // 2, size // 2), np.float32)
    masks[:, :, 4:9, 5:12] = 1
    return images, masks


def painted(folder):
    return stage_rt.load(folder).paint(*inputs(3), prompt=PROMPTS[0], noise=PhiloxNoise([7, 8, 9])).images


def painted_by(source, folder):
    """What an engine paints that is built of ``source``, which is gone by then."""
    away = shutil.copytree(source, folder.with_name(f"{folder.name}.graphs"))
    run(away, folder)
    shutil.rmtree(away)
    return painted(folder)


def test_an_engine_lists_what_it_was_made_of_and_for(source, engine):
    spec = read_engine(engine)
    assert set(contents(engine)) == {*spec.files, ENGINE_FILE}
    assert set(spec.files) == {*(f"{graph}.onnx" for graph in spec.model.graphs), "prompts.safetensors"}
    assert (spec.library, spec.library_version) == ("onnxruntime", onnxruntime.__version__)
    assert (spec.dtype, spec.devices) == ("fp32", ["cpu"])


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_engine_is_built_again(source, engine, kind):
    before = contents(engine)
    damage(engine, kind)
    assert run(source, engine) is True
    assert contents(engine) == before


@pytest.mark.parametrize(
    "fields", [{"library_version": "1.2.3"}, {"batch": [2]}, {"format": 1}, {"format": 3}]
)
def test_an_engine_for_something_else_is_built_again(source, engine, fields):
    before = contents(engine)
    rewrite(engine / ENGINE_FILE, **fields)
    assert run(source, engine) is True
    assert contents(engine) == before


def test_a_changed_graph_of_the_same_shape_is_built_again(source, engine):
    path = source / "adapters" / "tile.aware.onnx"
    graph = onnx.load(path)
    weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(graph, path)
    relist(source)
    before = painted(engine)
    assert run(source, engine) is True
    assert np.abs(painted(engine) - before).max() > 1e-3
    assert run(source, engine) is False


def test_the_batches_are_sorted_and_each_is_kept_once(source, tmp_path):
    run(source, tmp_path / "new", batch=[8, 1, 4, 1])
    assert read_engine(tmp_path / "new").batch == [1, 4, 8]


@pytest.mark.parametrize(("kind", "message"), DAMAGES.items())
def test_damaged_graphs_are_refused_by_name(source, tmp_path, kind, message):
    path = damage(source, kind)
    with pytest.raises(GraphsError) as error:
        run(source, tmp_path / "new")
    assert str(error.value).startswith(f"`{path}` {message}")
    assert str(error.value).endswith("export the model again with `stage-rt export`")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("kind", "message"), DAMAGES.items())
def test_a_damaged_engine_is_not_loaded(engine, kind, message):
    path = damage(engine, kind)
    with pytest.raises(EngineError) as error:
        stage_rt.load(engine)
    assert str(error.value).startswith(f"`{path}` {message}")
    assert str(error.value).endswith("build the engine again with `stage-rt build`")


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (
            "vae_encoder",
            "vae_decoder",
            "takes latent [B, 4, 16, 16] where the model's vae_encoder takes image",
        ),
        (
            "unet",
            "adapters/tile.only",
            "takes eps [B, 4, 16, 16], mask [B, 1, 16, 16] where the model's unet takes",
        ),
    ],
)
def test_graphs_that_are_one_another_are_refused_when_they_are_built(source, tmp_path, first, second, found):
    content = (source / f"{first}.onnx").read_bytes()
    (source / f"{second}.onnx").replace(source / f"{first}.onnx")
    (source / f"{second}.onnx").write_bytes(content)
    relist(source)
    with pytest.raises(GraphsError) as error:
        run(source, tmp_path / "new")
    assert found in str(error.value)
    assert str(error.value).endswith("export the model again with `stage-rt export`")
    assert not (tmp_path / "new").exists()


def test_a_graph_of_another_size_is_refused_when_it_is_built(source, tmp_path):
    graph = onnx.load(source / "vae_decoder.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(graph, source / "vae_decoder.onnx")
    relist(source)
    with pytest.raises(StageError, match="vae_decoder"):
        run(source, tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda contexts: contexts.popitem(), "holds no float32 context of shape"),
        (
            lambda contexts: contexts.update({PROMPTS[0]: contexts[PROMPTS[0]][:, :-1]}),
            "holds no float32 context",
        ),
        (lambda contexts: contexts.update({PROMPTS[0]: contexts[PROMPTS[0]] * np.nan}), "that is not finite"),
        (None, "cannot be read"),
    ],
)
def test_contexts_that_are_not_the_models_are_refused_when_it_is_built(source, tmp_path, change, message):
    path = source / "prompts.safetensors"
    if change:
        contexts = load_file(path)
        change(contexts)
        save_file({name: np.ascontiguousarray(context) for name, context in contexts.items()}, path)
    else:
        path.write_bytes(path.read_bytes()[:-9])
    relist(source)
    with pytest.raises(GraphsError, match=message):
        run(source, tmp_path / "new")


def test_weights_beside_a_graph_go_into_the_engine(source, tmp_path):
    before = painted_by(source, tmp_path / "before")
    for name in ("unet", "adapters/tile.only"):
        graph = onnx.load(source / f"{name}.onnx")
        place = f"{name.rpartition('/')[2]}.weights"
        onnx.save(
            graph, source / f"{name}.onnx", save_as_external_data=True, location=place, size_threshold=1024
        )
        assert (source / name).with_name(place).stat().st_size
    relist(source)
    assert np.array_equal(painted_by(source, tmp_path / "after"), before)


@pytest.mark.parametrize("batch", [65537, 10**20])
def test_a_batch_that_no_device_serves_is_refused(source, tmp_path, batch):
    with pytest.raises(InputError, match="use `--batch 65536` or less"):
        run(source, tmp_path / "new", batch=[8, batch])


def test_what_is_no_graphs_folder_is_refused(source, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path, source / GRAPHS_FILE):
        with pytest.raises(GraphsError, match=r"is not a graphs folder .* `stage-rt export`"):
            run(folder, tmp_path / "new")


def test_what_is_no_engine_folder_is_not_loaded(source, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path, source / GRAPHS_FILE):
        with pytest.raises(EngineError, match=r"is not an engine folder .* `stage-rt build`"):
            stage_rt.load(folder)


@pytest.mark.parametrize("name", ["unet.onnx", "adapters/tile.only.onnx", "prompts.safetensors"])
def test_graphs_that_do_not_list_what_the_model_needs_are_refused(source, tmp_path, name):
    files = json.loads((source / GRAPHS_FILE).read_text())["files"]
    del files[name]
    (source / name).unlink()
    rewrite(source / GRAPHS_FILE, files=files)
    with pytest.raises(GraphsError, match=f"does not list `{name}`"):
        run(source, tmp_path / "new")


def test_a_folder_with_content_of_another_kind_is_left_alone(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        run(source, tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"photo.png": b"mine"}


def test_an_engine_of_another_library_version_is_not_loaded(engine):
    rewrite(engine / ENGINE_FILE, library_version="0.9.1")
    with pytest.raises(EngineError) as error:
        stage_rt.load(engine)
    assert str(error.value) == (
        f"`{engine}` was built with onnxruntime 0.9.1 but {onnxruntime.__version__} is installed: build the "
        "engine again with `stage-rt build` or `pip install onnxruntime==0.9.*`"
    )


def test_an_engine_is_not_loaded_once_the_library_has_moved_on(engine, monkeypatch):
    built = onnxruntime.__version__
    monkeypatch.setattr(onnxruntime, "__version__", "99.0.0")
    with pytest.raises(EngineError, match=f"built with onnxruntime {built} but 99.0.0 is installed"):
        stage_rt.load(engine)


def test_a_patch_of_the_library_changes_nothing(engine, monkeypatch):
    minor = onnxruntime.__version__.rpartition(".")[0]
    monkeypatch.setattr(onnxruntime, "__version__", f"{minor}.99")
    assert stage_rt.load(engine).prompts == sorted(PROMPTS)


def test_another_dtype_than_the_graphs_own_is_refused(source, tmp_path):
    with pytest.raises(
        InputError, match=r"are fp32: leave `--dtype` out or .* `stage-rt export --dtype fp16`"
    ):
        run(source, tmp_path / "new", dtype="fp16")
    assert not (tmp_path / "new").exists()


def test_bf16_is_refused(source, tmp_path):
    rewrite(source / GRAPHS_FILE, dtype="bf16")
    with pytest.raises(InputError, match="no bf16 convolution on a CPU: use `--dtype fp32`"):
        run(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_graph_the_library_cannot_read_is_named_and_leaves_nothing(source, engine, tmp_path):
    (source / "vae_decoder.onnx").write_bytes(b"no graph")
    relist(source)
    before = contents(engine)
    for folder in (tmp_path / "new", engine):
        with pytest.raises(BackendError, match=f"cannot compile `{source / 'vae_decoder.onnx'}`"):
            run(source, folder)
    assert contents(engine) == before
    assert {path.name for path in tmp_path.iterdir()} == {"graphs", "engine"}


def test_a_build_that_is_interrupted_leaves_nothing(source, engine, tmp_path, monkeypatch):
    def interrupted(self, graph, destination, batch, progress):
        destination.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnxruntime_builder.OnnxRuntimeBuilder, "compile", interrupted)
    before = contents(engine)
    for folder in (tmp_path / "new", engine):
        with pytest.raises(KeyboardInterrupt):
            run(source, folder, batch=[3])
    assert contents(engine) == before
    assert {path.name for path in tmp_path.iterdir()} == {"graphs", "engine"}


def test_what_a_killed_build_left_is_removed_by_the_next(source, engine, tmp_path):
    left, others = (
        tmp_path / ".engine.0123abcd.tmp",
        [".other.0123abcd.tmp", ".engine.mine.tmp", "engine.tmp"],
    )
    for name in (left.name, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    (tmp_path / ".engine.0123abce.tmp").touch()
    elsewhere = tmp_path / ".engine.0123abcf.tmp"
    elsewhere.symlink_to(tmp_path / "engine.tmp")
    run(source, engine)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"graphs", "engine", *others}
    assert (tmp_path / "engine.tmp" / "half").exists()


def test_large_weights_lie_in_a_file_of_their_own(source, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime_builder, "EXTERNAL_DATA_BYTES", 1000)
    run(source, tmp_path / "new")
    assert "unet.onnx.data" in read_engine(tmp_path / "new").files
    np.testing.assert_array_equal(painted(tmp_path / "new"), painted(engine))


def test_an_fp16_engine_agrees_with_fp32(graphs, engine, tmp_path):
    run(graphs("fp16"), tmp_path / "half")
    assert read_engine(tmp_path / "half").dtype == "fp16"
    half, single = painted(tmp_path / "half"), painted(engine)
    error = np.abs(half - single).max() / np.abs(single).max()
    assert 1e-6 < error < 1e-2


ELSEWHERE = """
import locale, sys
from pathlib import Path
from stage_rt.engines.build import build
from stage_rt.folders import read_engine
assert locale.getpreferredencoding() != "UTF-8"
build(Path(sys.argv[1]), Path(sys.argv[2]), backend="onnxruntime", batch=[1])
print(ascii(sorted(read_engine(Path(sys.argv[2])).model.prompts)))
"""


def test_names_of_prompts_are_kept_whatever_the_locale_writes(source, tmp_path):
    named = [f"Gehäuse+{prompt}" for prompt in PROMPTS]
    model = json.loads((source / GRAPHS_FILE).read_bytes())["model"]
    model["prompts"] = dict(zip(named, (model["prompts"][prompt] for prompt in PROMPTS), strict=True))
    contexts = load_file(source / "prompts.safetensors")
    held = {f"Gehäuse+{name}" if name in PROMPTS else name: value for name, value in contexts.items()}
    save_file(held, source / "prompts.safetensors")
    rewrite(source / GRAPHS_FILE, model=model)
    relist(source)
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", ELSEWHERE, source, tmp_path / "engine"],
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{sorted(named)!a}\n"
