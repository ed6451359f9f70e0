"""Real TensorRT-RTX builds, which need no GPU, and what is refused before one."""

import resource
import shutil
import sys
from importlib import import_module
from pathlib import Path

import fake_gpu
import onnx
import pytest
from descriptions import relist
from mock_cuda import installed

from stage_rt.cuda import device
from stage_rt.engines import builders, tensorrt_gpu
from stage_rt.engines.build import build
from stage_rt.engines.builders import choose
from stage_rt.errors import (
    BackendError,
    DeviceError,
    EngineError,
    GraphsError,
    InputError,
    MissingExtraError,
    StageError,
)
from stage_rt.files import digests, sha256
from stage_rt.folders import read_engine, verify
from stage_rt.loading import load
from stage_rt.spec import ENGINE_FILE, GRAPHS_FILE, PROMPTS_FILE, GraphsSpec

DEMO = Path(__file__).parents[2] / "models/demo"
TARGETS = ["sm86", "sm89", "sm120"]


def quick(graphs, folder, **options):
    """The smallest build there is: one target, one batch."""
    options = {"backend": "tensorrt-rtx", "batch": [1], "targets": ["sm86"]} | options
    return build(graphs, folder, **options)


def edited(graphs, folder, change):
    """A copy of a graphs folder with ``change`` done to its ``unet.onnx`` and digests that agree with it."""
    shutil.copytree(graphs, folder)
    model = onnx.load(folder / "unet.onnx")
    change(model)
    onnx.save(model, folder / "unet.onnx")
    relist(folder)
    return folder


def test_engine_json_says_what_was_built(rtx_engine, graphs):
    spec = read_engine(rtx_engine)
    described = GraphsSpec.model_validate_json((graphs("fp16") / GRAPHS_FILE).read_bytes())
    assert (spec.backend, spec.library) == ("tensorrt-rtx", "TensorRT-RTX")
    assert spec.library_version == sys.modules["tensorrt_rtx"].__version__
    assert (spec.devices, spec.dtype, spec.batch) == (TARGETS, "fp16", [1, 2])
    assert spec.model == described.model
    assert spec.graphs_fingerprint == described.fingerprint
    assert set(spec.files) == {f"{graph}.engine" for graph in spec.model.graphs} | {PROMPTS_FILE}
    verify(rtx_engine, spec.files, ENGINE_FILE, EngineError, "")


def test_the_workspace_is_what_the_library_planned_for_its_largest_graph(rtx_engine, graphs):
    # Some hundred KiB of activations, and the several MiB that TensorRT-RTX adds to any graph.
    assert 2**20 < read_engine(rtx_engine).workspace < 2**24


def test_a_second_build_gives_the_same_bytes(rtx_engine, graphs, tmp_path):
    quick(graphs("fp16"), tmp_path / "again", batch=[1, 2], targets=TARGETS)
    assert digests(tmp_path / "again") == digests(rtx_engine)


@pytest.mark.slow  # Its quick twin is the small model of `rtx_engine`, for the same three generations.
@pytest.mark.skipif(not (DEMO / "stage.json").is_file(), reason="models/demo is not in this checkout")
def test_the_demo_model_builds_for_three_generations(tmp_path):
    from stage_rt.export.graphs import export

    export(DEMO, tmp_path / "graphs", dtype="fp16")
    assert quick(tmp_path / "graphs", tmp_path / "engine", batch=[1, 8], targets=TARGETS)
    verify(tmp_path / "engine", read_engine(tmp_path / "engine").files, ENGINE_FILE, EngineError, "")


@pytest.mark.parametrize(("dtype", "target"), [("fp32", "sm80"), ("bf16", "sm121")])
def test_other_dtypes_and_generations_build(graphs, tmp_path, dtype, target):
    quick(graphs(dtype), tmp_path / "engine", targets=[target])
    assert (read_engine(tmp_path / "engine").devices, read_engine(tmp_path / "engine").dtype) == (
        [target],
        dtype,
    )


def test_weights_beside_the_graph_are_found(graphs, tmp_path):
    def apart(model):
        onnx.external_data_helper.convert_model_to_external_data(
            model, location="unet.onnx.data", size_threshold=64
        )

    folder = edited(graphs("fp16"), tmp_path / "graphs", apart)
    assert (folder / "unet.onnx.data").stat().st_size > 50_000
    for name, source in (("apart", folder), ("whole", graphs("fp16"))):
        builder = choose("tensorrt-rtx", "fp16", ["sm86"])
        builder.compile(source / "unet.onnx", tmp_path / name, [1], lambda share: None)
    assert sha256(tmp_path / "apart.engine") == sha256(tmp_path / "whole.engine")

    (folder / "unet.onnx.data").unlink()
    with pytest.raises(GraphsError, match=r"`.*unet.onnx.data` is missing: export the model again"):
        quick(folder, tmp_path / "other")


def test_a_changed_byte_of_a_graph_is_refused(graphs, tmp_path):
    folder = shutil.copytree(graphs("fp16"), tmp_path / "graphs")
    content = bytearray((folder / "unet.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "unet.onnx").write_bytes(content)
    with pytest.raises(GraphsError, match=r"`.*unet.onnx` is not the file that model.json lists"):
        quick(folder, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_an_operator_the_library_does_not_know_is_told_in_its_words(graphs, tmp_path):
    def rename(model):
        model.graph.node[-1].op_type = "Nonsense"

    folder = edited(graphs("fp16"), tmp_path / "graphs", rename)
    with pytest.raises(
        BackendError, match=r"^TensorRT-RTX cannot read `.*unet.onnx`: .* at .* \(Nonsense\)$"
    ) as refused:
        quick(folder, tmp_path / "engine")
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {"graphs"}


REFUSALS = {
    "unknown target": (
        {"targets": ["sm90"]},
        "TensorRT-RTX knows no target `sm90`: use some of sm75, sm80, sm86, sm89, sm120, sm121, or `current`",
    ),
    "no target": ({"targets": [""]}, "TensorRT-RTX knows no target ``"),
    "a batch of none": ({"batch": [0, 8]}, "a batch of 0 serves nobody: use `--batch 1` or more"),
    "no batch": ({"batch": []}, "a batch of 0 serves nobody"),
    "a batch of ten thousand": (
        {"batch": [1, 10_000]},
        "a batch of 10000 would need about 2.8 GiB of GPU memory and is more than the 1024 that can be built",
    ),
    "another dtype": ({"dtype": "fp32"}, "are fp16: leave `--dtype` out or export the model again"),
    "a target for the CPU": (
        {"backend": "onnxruntime"},
        "`--target` names GPUs, but this backend runs on the CPU: leave it out",
    ),
    "a target for TensorRT": (
        {"backend": "tensorrt"},
        "TensorRT builds for the GPU at hand alone: leave `--target` out or use `--backend tensorrt-rtx`",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_built_is_refused_in_a_sentence_and_leaves_nothing(graphs, tmp_path, case):
    options, message = REFUSALS[case]
    with pytest.raises(InputError) as refused:
        quick(graphs("fp16"), tmp_path / "engine", **options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_turing_is_refused_for_dtypes_it_cannot_multiply(dtype):
    with pytest.raises(
        InputError, match=rf"multiplies no {dtype} matrices on sm75: use `--dtype fp16` or leave"
    ):
        choose("tensorrt-rtx", dtype, ["sm86", "sm75"])
    assert choose("tensorrt-rtx", "fp16", ["sm75"]).devices == ["sm75"]


def test_a_set_of_targets_is_ordered_and_has_a_default():
    assert choose("tensorrt-rtx", "fp16", ["sm120", "sm86", "sm120"]).devices == ["sm86", "sm120"]
    assert choose("tensorrt-rtx", "fp16", None).devices == TARGETS


@pytest.fixture
def driver(monkeypatch):
    stand_in = fake_gpu.Driver()
    stand_in.sm = (8, 9)
    with installed(stand_in, monkeypatch):
        yield stand_in


def test_without_a_gpu_the_current_one_cannot_be_built_for(driver):
    driver.devices = 0
    with pytest.raises(
        DeviceError, match=r"`--target current` needs the GPU it builds for .*`--target sm86`$"
    ):
        choose("tensorrt-rtx", "fp16", ["current"])
    with pytest.raises(
        DeviceError, match=r"TensorRT builds on the GPU it builds for .*`--backend tensorrt-rtx`"
    ):
        choose("tensorrt", "fp16", None)


def test_the_current_gpu_is_built_for_by_its_number(driver):
    assert choose("tensorrt-rtx", "fp16", ["current"]).devices == ["sm89"]


def test_a_current_gpu_that_cannot_be_built_for_is_named(driver):
    driver.sm = (9, 0)
    told = r"the GPU here, Stand-in \(sm90\): use `--backend tensorrt` or `--backend inductor`"
    with pytest.raises(DeviceError, match=told):
        choose("tensorrt-rtx", "fp16", ["current"])


@pytest.mark.parametrize(("backend", "name"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_a_missing_library_is_named_with_its_extra(driver, monkeypatch, backend, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"`pip install 'stage-rt\[(tensorrt|rtx)\]'`"):
        choose(backend, "fp16", None)


def test_a_missing_reader_of_graphs_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(builders, "import_module", missing_onnx)
    with pytest.raises(MissingExtraError, match=r"needs `onnx`.*stage-rt\[rtx\]"):
        choose("tensorrt-rtx", "fp16", None)


def missing_onnx(*_):
    raise ModuleNotFoundError(name="onnx")


def test_progress_within_a_graph_stays_within_it(graphs, tmp_path):
    shares = []
    builder = choose("tensorrt-rtx", "fp16", ["sm86"])
    builder.compile(graphs("fp16") / "vae_encoder.onnx", tmp_path / "plan", [1], shares.append)
    assert all(0 <= share <= 1 for share in shares)
    assert len({round(share, 1) for share in shares}) > 3


def test_progress_of_a_set_grows_to_one(graphs, tmp_path):
    shares = []
    quick(graphs("fp16"), tmp_path / "engine", backend="onnxruntime", targets=None, progress=shares.append)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1], len(set(shares))) == (0, 1, 6)


@pytest.mark.parametrize("call", [1, 5, 300])
def test_a_cancelled_build_raises_what_cancelled_it_and_leaves_nothing(graphs, tmp_path, call):
    calls = []

    def cancel(share):
        calls.append(share)
        if len(calls) == call:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(graphs("fp16"), tmp_path / "engine", progress=cancel)
    assert len(calls) == call
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_engine_that_was_there(graphs, tmp_path):
    quick(graphs("fp16"), tmp_path / "engine", backend="onnxruntime", targets=None)
    before = digests(tmp_path / "engine")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StageError, match=r"writing to `.*engine` failed \(File too large\): mend that"):
            quick(graphs("fp16"), tmp_path / "engine", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert digests(tmp_path / "engine") == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


# TensorRT-RTX, which stands in, has no timings to keep and says so; TensorRT has.
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_full_tensorrt_is_built_by_the_same_code(driver, graphs, tmp_path, monkeypatch):
    """It needs a GPU to build: here TensorRT-RTX stands in, told the target that TensorRT would find."""
    monkeypatch.setitem(
        sys.modules, "tensorrt", sys.modules.get("tensorrt_rtx") or import_module("tensorrt_rtx")
    )
    tuned, levels = tensorrt_gpu._configure, []

    def configure(trt, config):
        tuned(trt, config)
        levels.append(config.builder_optimization_level)
        target(config, trt.ComputeCapability.SM89)

    monkeypatch.setattr(tensorrt_gpu, "_configure", configure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    builder = choose("tensorrt", "fp16", ["current"])
    assert (builder.library, builder.devices) == ("TensorRT", ["sm89"])
    paths = {"adapters/tile.aware": graphs("fp16") / "adapters/tile.aware.onnx"}
    notices = []
    builder.prepare(paths, [4], notices.append)
    assert notices[0].startswith("the engine will need about ")
    with pytest.raises(InputError, match=r"and no sm89 GPU here or on the market has more than 16\.0 GiB"):
        builder.prepare({"large": large(tmp_path)}, [1024], notices.append)
    assert (
        builder.compile(paths["adapters/tile.aware"], tmp_path / "plan", [4], lambda share: None).workspace
        > 0
    )
    assert (tmp_path / "plan.engine").stat().st_size > 1000
    assert levels == [5]
    (timings,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    for damage in (None, b"", b"no timings", timings.read_bytes()[:-1]):
        if damage is not None:
            timings.write_bytes(damage)
        builder.compile(paths["adapters/tile.aware"], tmp_path / "again", [4], lambda share: None)
        assert sha256(tmp_path / "again.engine") == sha256(tmp_path / "plan.engine")


# TensorRT-RTX has no timings to keep, as above.
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_a_plan_that_another_card_was_tuned_on_is_built_again(graphs, tmp_path, monkeypatch):
    """Both are of one generation, which is all that the engine asks for when it is loaded."""
    monkeypatch.setitem(
        sys.modules, "tensorrt", sys.modules.get("tensorrt_rtx") or import_module("tensorrt_rtx")
    )
    monkeypatch.setattr(
        tensorrt_gpu, "_configure", lambda trt, config: target(config, trt.ComputeCapability.SM89)
    )
    monkeypatch.setattr(tensorrt_gpu, "_keep", lambda trt, config: None)
    engine, found = tmp_path / "engine", []
    for name in ("the smaller card", "the larger card"):
        card = fake_gpu.Driver()
        card.name, card.sm = name, (8, 9)
        with installed(card, monkeypatch):
            again = [quick(graphs("fp16"), engine, backend="tensorrt", targets=None) for _ in range(2)]
        spec = read_engine(engine)
        found.append((again, spec.gpu, spec.devices))
    assert found == [([True, False], name, ["sm89"]) for name in ("the smaller card", "the larger card")]


def target(config, capability):
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)


def large(folder):
    value = onnx.helper.make_tensor_value_info
    x, y = (value(name, onnx.TensorProto.FLOAT16, ["batch", 2**23]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph), folder / "large.onnx")
    return folder / "large.onnx"


def test_a_real_engine_does_not_open_without_its_gpu(rtx_engine, driver):
    driver.sm = (12, 1)
    with pytest.raises(
        EngineError, match=r"for sm86, sm89, sm120 but the GPU here is sm121.*--target sm121`"
    ):
        load(rtx_engine)
    device._retained.cache_clear()
    driver.devices = 0
    with pytest.raises(
        DeviceError, match=r"is an engine for sm86, sm89, sm120 but no NVIDIA GPU can be used"
    ):
        load(rtx_engine)
