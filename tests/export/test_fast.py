"""A model of FAST's: exported, built, held against torch and painted with, and what it is refused for."""

import shutil

import numpy as np
import pytest
from small_model import small_fast_model, small_model

import stage_rt
from stage_rt.bench.stages import bench
from stage_rt.engines.build import build
from stage_rt.engines.triton import write_repository
from stage_rt.errors import InputError
from stage_rt.export import graphs as module
from stage_rt.export.networks import TORCH_DTYPES
from stage_rt.export.parity import StoredReferences, compare
from stage_rt.export.plots import plot_errors
from stage_rt.export.verify import require, verify
from stage_rt.files import digests
from stage_rt.noise import PhiloxNoise
from stage_rt.run.job import Job, resolve
from stage_rt.samplers import SAMPLERS
from stage_rt.serve.shelf import _book
from stage_rt.spec import GRAPHS_FILE, GraphsSpec, ModelSpec
from stage_rt.training.folder import load_description, load_model, save_model

FOREGROUND = "adapters/tile.foreground"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, graphs):
    """Model, graphs and engine; every graph but the foreground is that of the model of STAGE's, exported once."""
    here = tmp_path_factory.mktemp("fast")
    save_model(small_fast_model(), here / "model")
    shutil.copytree(graphs("fp32"), here / "graphs")
    (here / "graphs" / "adapters" / "tile.only.onnx").unlink()
    exported(here / "model", here / "graphs", "fp32")
    files = digests(here / "graphs")
    del files[GRAPHS_FILE]
    described = GraphsSpec(model=small_fast_model().spec, dtype="fp32", opset=module.OPSET, files=files)
    (here / "graphs" / GRAPHS_FILE).write_text(described.sealed())
    build(here / "graphs", here / "engine", backend="onnxruntime", batch=[1, 3])
    return here


def exported(model, folder, dtype):
    """The foreground's graph, and how far from torch it is."""
    described, network = load_description(model), module._network(FOREGROUND, model, TORCH_DTYPES[dtype])
    module._write(
        module._graph(FOREGROUND, network, described, dtype, module.OPSET), folder / f"{FOREGROUND}.onnx"
    )
    cases = StoredReferences(model, lambda line: None)[FOREGROUND]
    return compare(folder, {FOREGROUND: cases}, dtype)[0]


def test_a_model_of_stages_says_nothing_of_systems():
    assert "system" not in small_model().spec.model_dump_json()
    assert '"system":"fast"' in small_fast_model().spec.model_dump_json()


def test_its_graphs_are_one_adapter_and_a_foreground_network(folders):
    model = stage_rt.load(folders / "engine").spec.model
    assert model.graphs == ["unet", "adapters/tile.aware", FOREGROUND, "vae_encoder", "vae_decoder"]
    loaded = load_model(folders / "model")
    assert set(loaded.adapters["tile"]) == {"aware", "foreground"}


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0), ("fp16", 1e-5), ("bf16", 1e-4)])
def test_its_graph_is_within_tolerance_of_torch(folders, tmp_path, dtype, least):
    (tmp_path / "adapters").mkdir()
    parity = exported(folders / "model", tmp_path, dtype)
    assert parity.passed
    assert parity.max_rel > least


def test_the_engine_agrees_with_torch_over_a_trajectory_of_fasts(folders):
    report = verify(folders / "engine", folders / "model", timesteps=2)
    require(report)
    assert FOREGROUND in {row.subject for row in report.rows}
    assert list(report.trajectory) == list(range(10))
    assert plot_errors(report)[:4] == b"\x89PNG"


def test_every_call_is_of_the_foreground_the_unet_and_the_adapter(folders):
    engine, ran = stage_rt.load(folders / "engine"), []
    run = engine.executor._backend.run
    engine.executor._backend.run = lambda graph, **inputs: ran.append(graph) or run(graph, **inputs)
    image, mask = np.zeros((2, 1, 32, 32), np.float32), np.zeros((2, 1, 16, 16), np.float32)
    mask[:, :, 4:9, 4:9] = 1
    painted = {}
    for name in ("fast", "fast-published"):
        ran.clear()
        noise = PhiloxNoise([1, 2])
        painted[name] = engine.paint(image, mask, prompt="tile+crack", noise=noise, sampler=name)
        assert painted[name].finite.all()
        calls = [graph for graph in ran if not graph.startswith("vae")]
        assert calls == 8 * [FOREGROUND, "unet", "adapters/tile.aware"] + 2 * ["unet", "adapters/tile.aware"]
    assert not np.array_equal(painted["fast"].images, painted["fast-published"].images)


@pytest.mark.parametrize("name", [name for name, way in SAMPLERS.items() if way.system == "stage"])
def test_stages_sampler_is_refused_with_what_to_use(folders, name):
    engine = stage_rt.load(folders / "engine")
    image, mask = np.zeros((1, 1, 32, 32), np.float32), np.ones((1, 1, 16, 16), np.float32)
    refusal = (
        "sampler `stage` needs the adapters of a model for `stage`, and this one is for `fast`: paint with"
    )
    with pytest.raises(InputError, match=refusal):
        engine.paint(image, mask, prompt="tile+crack", noise=PhiloxNoise([1]), sampler=name)
    job = Job([], [], "tile+crack", 1, 0, composite=True, batch=1)
    for refused in (
        lambda: engine.slots("tile+crack", 1),
        lambda: resolve(job, engine.spec.model),
        lambda: write_repository(folders / "graphs", folders / "repository", name="tiles"),
        lambda: _book(folders / "engine"),
    ):
        with pytest.raises(InputError, match=refusal):
            refused()


def test_fasts_sampler_is_refused_for_a_model_of_stages(engine_folder):
    engine = stage_rt.load(engine_folder)
    image, mask = np.zeros((1, 1, 32, 32), np.float32), np.ones((1, 1, 16, 16), np.float32)
    with pytest.raises(InputError, match="`fast-published` needs the adapters of a model for `fast`"):
        engine.paint(image, mask, prompt="tile+crack", noise=PhiloxNoise([1]), sampler="fast-published")


def test_its_prompts_have_adapters():
    content = small_fast_model().spec.model_dump() | {"prompts": {"tile+crack": None}}
    with pytest.raises(ValueError, match="a prompt of a model for `fast` has an adapter"):
        ModelSpec(**content)


def test_bench_paints_with_its_own_sampler(folders):
    result = bench(folders / "engine", batches=[1], steps=10, rounds=1)
    assert result.rows[0].stages["adapter"].median > 0
