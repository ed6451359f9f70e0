"""The runtime of both TensorRT flavours on stand-ins; `fake_gpu` says what that proves and what not."""

import ast
import inspect
import re
import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import fake_gpu
import numpy as np
import onnxruntime
import pytest
from mock_cuda import installed

import stage_rt
from stage_rt.backends import tensorrt as module
from stage_rt.cuda.executor import DeviceExecutor
from stage_rt.errors import (
    BackendError,
    DeviceError,
    DeviceMemoryError,
    EngineError,
    InputError,
    MissingExtraError,
)
from stage_rt.folders import read_engine
from stage_rt.loading import load, open_backend
from stage_rt.noise import PhiloxNoise

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INPUTS = {
    "unet": {"sample": (4, 16, 16), "context": (3, 6)},
    "adapters/tile.aware": {"eps": (4, 16, 16), "mask": (1, 16, 16)},
    "adapters/tile.only": {"eps": (4, 16, 16), "mask": (1, 16, 16)},
    "vae_encoder": {"image": (1, 32, 32)},
    "vae_decoder": {"latent": (4, 16, 16)},
}


@pytest.fixture
def driver(monkeypatch, emulated, tmp_path):
    """The stand-in driver, and both flavours of the stand-in library on it."""
    module.journal.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stand_in = fake_gpu.Driver(emulated)
    for name in FLAVOURS.values():
        monkeypatch.setitem(sys.modules, name, fake_gpu.Library(name, stand_in))
    with installed(stand_in, monkeypatch):
        yield stand_in
    module.journal.cache_clear()


@pytest.fixture
def flavour(request, driver):
    """TensorRT-RTX, or what a test asks for: the code has no cases, so few tests need both."""
    return getattr(request, "param", "tensorrt-rtx")


both = pytest.mark.parametrize("flavour", FLAVOURS, indirect=True)


@pytest.fixture
def engine(tmp_path, graphs, flavour):
    """``engine(dtype)`` is an engine folder of that dtype for the flavour."""

    def make(dtype="fp32", **options):
        folder = tmp_path / f"engine-{dtype}"
        fake_gpu.write_engine(folder, graphs(dtype), flavour, **options)
        return folder

    return make


def opened(folder):
    return open_backend(folder, read_engine(folder))


def inputs(graph, batch, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.standard_normal((batch, *shape)).astype(np.float32) for name, shape in INPUTS[graph].items()
    }
    return arrays | ({"timestep": rng.integers(0, 10, batch)} if graph == "unet" else {})


@cache
def reference(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def expected(graphs, dtype, graph, feed):
    session = reference(graphs(dtype) / f"{graph}.onnx")
    half = {node.name for node in session.get_inputs() if node.type == "tensor(float16)"}
    cast = {name: array.astype(np.float16) if name in half else array for name, array in feed.items()}
    return session.run(None, cast)[0].astype(np.float32)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_graph_gives_what_onnx_runtime_gives_at_any_batch(engine, graphs, dtype):
    backend = opened(engine(dtype))
    for batch in (3, 1, 4):
        for graph in INPUTS:
            feed = inputs(graph, batch, seed=batch)
            found = backend.run(graph, **feed)
            assert found.dtype == np.float32
            atol = {"fp32": 1e-5, "fp16": 1e-2}[dtype]
            np.testing.assert_allclose(found, expected(graphs, dtype, graph, feed), rtol=0, atol=atol)
    backend.close()


def test_a_batch_is_padded_to_the_next_size_with_its_last_sample(engine, driver):
    backend = opened(engine())
    feed = inputs("vae_decoder", 3)
    backend.run("vae_decoder", **feed)
    (context,) = contexts()
    assert context.bucket == 4
    np.testing.assert_array_equal(context.array("latent"), feed["latent"][[0, 1, 2, 2]])


def contexts():
    return [context for name in FLAVOURS.values() for context in sys.modules[name].contexts]


def test_each_size_has_one_context_that_is_bound_once(engine):
    backend = opened(engine())
    for batch in (1, 4, 1, 2, 4):
        backend.run("vae_decoder", **inputs("vae_decoder", batch))
    assert sorted(context.bucket for context in contexts()) == [1, 4]


def test_a_batch_beyond_the_largest_size_is_refused(engine):
    backend = opened(engine())
    with pytest.raises(InputError, match="a batch of 5 is more than the 4 the engine was built for"):
        backend.run("vae_decoder", **inputs("vae_decoder", 5))


@both
def test_all_graphs_share_one_workspace_of_the_largest_need(engine, driver):
    backend = opened(engine())
    for graph in (*INPUTS, *INPUTS):
        backend.run(graph, **inputs(graph, 2))
    # The decoder, which runs last, needs the largest: those before it were bound to a smaller one once.
    made = contexts()
    assert len(made) == 2 * len(INPUTS) - 1
    assert len({context.workspace[0] for context in made[len(INPUTS) - 1 :]}) == 1
    assert max(context.workspace[1] for context in made) == max(fake_gpu.WORKSPACE.values())


def test_close_gives_everything_back_and_may_be_called_twice(engine, driver):
    before = driver.left
    backend = opened(engine())
    backend.run("unet", **inputs("unet", 2))
    assert driver.left < before
    backend.close()
    backend.close()
    assert driver.left == before
    assert not driver.blocks
    assert not driver.queues


def test_too_little_memory_is_an_error_that_leaves_nothing_behind(engine, driver):
    backend = opened(engine())
    driver.left = 20_000
    with pytest.raises(
        DeviceMemoryError, match=r"^the memory of Stand-in is full \(cuMemAlloc failed: out of"
    ):
        backend.run("unet", **inputs("unet", 2))
    assert not driver.blocks
    backend.close()
    assert not driver.blocks
    assert not driver.queues


def test_a_graph_that_does_not_fit_leaves_those_that_do(engine, driver):
    backend = opened(engine())
    feed = inputs("unet", 2)
    before = backend.run("unet", **feed)
    driver.left = 4_000
    with pytest.raises(DeviceMemoryError):
        backend.run("vae_decoder", **inputs("vae_decoder", 2))
    driver.left = 2**30
    np.testing.assert_array_equal(backend.run("unet", **feed), before)
    backend.close()
    assert not driver.blocks


def test_small_batches_need_no_memory_for_large_ones(engine, driver):
    backend = opened(engine())
    before = driver.left
    backend.run("vae_encoder", **inputs("vae_encoder", 1))
    image, latent = 32 * 32 * 4, 4 * 16 * 16 * 4
    assert before - driver.left < 2 * (image + latent) + 1000
    backend.close()


@both
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Cuda Runtime (out of memory)", DeviceMemoryError),
        ("Cuda Runtime (an illegal memory access was encountered)", BackendError),
        ("no kernel image", BackendError),
    ],
)
def test_a_context_that_is_not_made_is_told_of_in_the_librarys_words(
    engine, flavour, monkeypatch, said, kind
):
    def refused(plan, wanted):
        plan.logger.log(1, said)

    monkeypatch.setattr(fake_gpu.Plan, "create_execution_context", refused)
    backend = opened(engine())
    with pytest.raises(
        BackendError, match=rf"cannot run `unet` in a batch of 4: {re.escape(said)}"
    ) as raised:
        backend.run("unet", **inputs("unet", 2))
    assert type(raised.value) is kind
    backend.close()


@both
def test_a_library_that_does_not_start_is_told_of(engine, flavour, monkeypatch):
    folder = engine()

    def nothing(logger):
        logger.log(1, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(sys.modules[FLAVOURS[flavour]], "Runtime", nothing)
    with pytest.raises(BackendError, match=r"does not start \(CUDA init.* 35\): update the GPU's driver"):
        opened(folder)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_sampler_runs_on_it_as_on_onnx_runtime(engine, engine_folder, driver, dtype):
    reference, found = load(engine_folder), load(engine(dtype, batch=(4,)))
    assert isinstance(found._executor, DeviceExecutor)
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (3, 1, 32, 32)).astype(np.float32)
    masks = np.zeros((3, 1, 16, 16), np.float32)
    masks[:2, :, 4:9, 3:12] = 1
    painted = [
        engine.paint(images, masks, prompt="tile+hole", noise=PhiloxNoise([1, 2, 3]))
        for engine in (reference, found)
    ]
    assert painted[1].finite.all()
    atol = {"fp32": 1e-4, "fp16": 2e-2}[dtype]
    np.testing.assert_allclose(painted[1].images, painted[0].images, rtol=0, atol=atol)
    # One context for each of five networks, and ten steps replayed of two that were recorded.
    assert len(contexts()) == 5
    assert driver.count()["graph"] == 2 + 10
    found.close()
    assert not driver.blocks


@both
def test_another_version_of_the_library_is_named_before_anything_is_read(engine, flavour):
    folder = engine()
    sys.modules[FLAVOURS[flavour]].__version__ = "9.9.0"
    with pytest.raises(
        EngineError, match=r"was built with TensorRT\S* 9.8.7 but 9.9.0 is installed.*==9.8.7`"
    ):
        opened(folder)
    assert sys.modules[FLAVOURS[flavour]].deserialised == 0


@pytest.mark.parametrize(
    ("sm", "options"),
    [((12, 0), "--backend tensorrt-rtx --target sm120"), ((9, 0), "--backend tensorrt")],
)
def test_another_gpu_is_named_with_the_engine_it_needs(engine, driver, flavour, sm, options):
    folder = engine()
    driver.sm = sm
    with pytest.raises(EngineError) as refused:
        opened(folder)
    assert str(refused.value) == (
        f"`{folder}` is an engine for sm86, sm89 but the GPU here is sm{sm[0]}{sm[1]} (Stand-in): "
        f"build one with `stage-rt build {options}`"
    )
    assert sys.modules[FLAVOURS[flavour]].deserialised == 0


def test_a_machine_without_a_gpu_is_told_what_can_run_there(engine, driver):
    folder = engine()
    driver.devices = 0
    with pytest.raises(DeviceError, match=r"no CUDA-capable device.*build one with `--backend onnxruntime`"):
        opened(folder)


def test_a_truncated_engine_is_refused_before_the_library_sees_it(engine, flavour):
    folder = engine()
    path = folder / "unet.engine"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"`.*unet.engine` is not the file that engine.json lists"):
        opened(folder)
    assert sys.modules[FLAVOURS[flavour]].deserialised == 0


def test_what_the_library_does_not_accept_is_told_in_its_words(engine, driver):
    folder = engine()
    spec = read_engine(folder)
    (folder / "unet.engine").write_bytes(b"no plan")
    with pytest.raises(BackendError, match=r"cannot load `.*unet.engine`: magicTag does not match$"):
        module.TensorRTBackend(folder, spec)
    assert not driver.blocks


@both
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 1720 bytes.)", DeviceMemoryError),
        ("Error Code 4: Internal Error (engine deserialization failed.)", BackendError),
    ],
)
def test_weights_that_the_gpu_has_no_room_for_are_told_from_a_plan_that_cannot_be_read(
    engine, flavour, monkeypatch, said, kind
):
    """A server makes room for the former by closing another engine."""

    def full(library, plan, logger):
        logger.log(1, said)
        if kind is DeviceMemoryError:
            logger.log(1, "IRuntime::deserializeCudaEngine: Error Code 4: Internal Error (it failed.)")

    folder = engine()
    monkeypatch.setattr(fake_gpu, "Plan", full)
    with pytest.raises(BackendError, match=rf"cannot load `.*`: {re.escape(said)}$") as raised:
        opened(folder)
    assert type(raised.value) is kind


def test_a_failed_enqueue_names_the_graph_and_the_reason(engine, driver):
    backend = opened(engine())
    backend.run("unet", **inputs("unet", 1))
    contexts()[0].workspace = (0, 0)
    with pytest.raises(BackendError, match=r"failed in graph `unet`: enqueueV3: not everything was set$"):
        backend.run("unet", **inputs("unet", 1))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
            DeviceMemoryError,
        ),
        ("Error Code 2: OutOfMemory (no further information)", DeviceMemoryError),
        ("Cuda Driver (CUDA_ERROR_OUT_OF_MEMORY)", DeviceMemoryError),
        ("cudaMallocAsync: cudaErrorMemoryAllocation", DeviceMemoryError),
        ("GPU memory allocation failed for persistent buffer", DeviceMemoryError),
        ("Requested amount of GPU memory (15485030400 bytes) could not be allocated.", DeviceMemoryError),
        ("autotuning: User allocator error allocating 15485030400-byte buffer", DeviceMemoryError),
        ("Error Code 1: Cuda Runtime (an illegal memory access was encountered)", BackendError),
        ("Cuda Driver (CUDA_ERROR_ILLEGAL_ADDRESS)", BackendError),
        ("Error Code 1: Cuda Runtime (misaligned address)", BackendError),
        ("GPU constants exceed persistent memory limit!", BackendError),
        ("GEMV-v1 kernel exceeds the shared-memory limit", BackendError),
    ],
)
def test_a_full_memory_is_told_from_a_lost_gpu_as_a_graph_runs(engine, monkeypatch, said, kind):
    """Smaller batches help only the former."""

    def failing(context, stream):
        context.plan.logger.log(1, said)
        return False

    backend = opened(engine())
    monkeypatch.setattr(fake_gpu.Context, "execute_async_v3", failing)
    with pytest.raises(BackendError, match=rf"failed in graph `unet`: {re.escape(said)}$") as raised:
        backend.run("unet", **inputs("unet", 1))
    assert type(raised.value) is kind


def test_a_failure_without_a_word_is_not_the_one_before_it(engine, monkeypatch):
    backend = opened(engine())
    feed = inputs("unet", 1)
    backend.run("unet", **feed)
    module.journal("tensorrt-rtx")[0].lines.append((True, "Cuda Runtime (out of memory)"))
    monkeypatch.setattr(fake_gpu.Context, "execute_async_v3", lambda context, stream: False)
    with pytest.raises(BackendError, match=r"failed in graph `unet`: it gave no reason$") as raised:
        backend.run("unet", **feed)
    assert type(raised.value) is BackendError


def test_what_a_failed_graph_was_to_read_is_not_freed_before_it_is_copied(engine, monkeypatch):
    backend = opened(engine())
    feed = inputs("vae_encoder", 1)
    with monkeypatch.context() as failing:
        failing.setattr(fake_gpu.Context, "execute_async_v3", lambda context, stream: False)
        with pytest.raises(BackendError, match="failed in graph `vae_encoder`"):
            backend.run("vae_encoder", **feed)
    # Needs a larger workspace, for which all buffers are made anew.
    backend.run("unet", **inputs("unet", 1))
    backend.close()


def test_a_profile_the_engine_does_not_have_is_an_error(engine):
    folder = engine(batch=(1, 4))
    backend = module.TensorRTBackend(folder, read_engine(folder).model_copy(update={"batch": [1, 2, 4]}))
    with pytest.raises(BackendError, match="no profile for a batch of 2"):
        backend.run("unet", **inputs("unet", 2))


@both
@pytest.mark.parametrize("stand_in", [None, ModuleType("tensorrt")], ids=["missing", "type stubs alone"])
def test_a_library_that_is_not_there_is_named_with_its_extra(engine, flavour, monkeypatch, stand_in):
    folder = engine()
    monkeypatch.setitem(sys.modules, FLAVOURS[flavour], stand_in)
    extra = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}[flavour]
    with pytest.raises(MissingExtraError, match=rf"`pip install 'stage-rt\[{extra}\]'`"):
        opened(folder)


def test_a_missing_pycuda_is_named_with_its_extra(engine, monkeypatch):
    folder = engine()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingExtraError, match=r"`pip install 'stage-rt\[gpu\]'`"):
        opened(folder)


def test_what_the_flavours_share_exists_in_the_type_stubs_of_tensorrt():
    """mypy cannot read those stubs: at least no name is used that TensorRT-RTX alone has."""
    rtx = pytest.importorskip("tensorrt_rtx")
    stubs = find_spec("tensorrt_bindings")
    if (
        stubs is None
        or not (path := Path(next(iter(stubs.submodule_search_locations))) / "tensorrt.pyi").exists()
    ):
        pytest.skip("tensorrt-stubs is not installed")
    declared = set(re.findall(r"^ *(?:def |class )?([A-Za-z_]\w*)(?=[(:])", path.read_text(), re.MULTILINE))
    classes = [value for value in vars(rtx).values() if inspect.isclass(value)]
    known = set(vars(rtx)).union(*(dir(value) for value in classes))
    root = Path(stage_rt.__file__).parents[1]
    for file in ("stage_rt/backends/tensorrt.py", "engines/tensorrt.py"):
        tree = ast.parse((root / file).read_text())
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & known
        assert len(used) > 5
        assert used - {"__version__"} <= declared, file


def test_an_engine_folder_can_be_moved(engine, tmp_path):
    shutil.move(engine(), tmp_path / "moved")
    opened(tmp_path / "moved").close()


def kept(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


@pytest.fixture
def painted_once(engine, driver, monkeypatch):
    """``painted_once()`` opens, runs and closes an engine: how many kernels were compiled and how many taken."""
    folder = engine(batch=(1,))

    def run():
        for name in ("compiled", "taken"):
            monkeypatch.setattr(fake_gpu.RuntimeCache, name, 0)
        backend = opened(folder)
        backend.run("vae_decoder", **inputs("vae_decoder", 1))
        backend.close()
        return fake_gpu.RuntimeCache.compiled, fake_gpu.RuntimeCache.taken

    return run


def test_kernels_compiled_on_this_gpu_are_kept_for_the_next_process(painted_once, tmp_path):
    assert painted_once() == (1, 0)
    assert len(kept(tmp_path)) == 1
    before = kept(tmp_path)[0].stat().st_mtime_ns
    assert painted_once() == (0, 1)
    assert kept(tmp_path)[0].stat().st_mtime_ns == before


def test_they_are_kept_once_a_step_was_recorded_whatever_ends_the_process(engine, driver, tmp_path):
    found = load(engine(batch=(1,)))
    images, masks = np.zeros((1, 1, 32, 32), np.float32), np.ones((1, 1, 16, 16), np.float32)
    found.paint(images, masks, prompt="tile+hole", noise=PhiloxNoise([1]))
    written = {path: path.stat().st_mtime_ns for path in kept(tmp_path)}
    assert len(written) == len(INPUTS)
    found.close()
    assert {path: path.stat().st_mtime_ns for path in kept(tmp_path)} == written


def test_another_driver_or_gpu_has_kernels_of_its_own(painted_once, driver, tmp_path):
    painted_once()
    driver.driver = 13010
    assert painted_once() == (1, 0)
    driver.name = "Another stand-in"
    module.device._retained.cache_clear()
    assert painted_once() == (1, 0)
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("damage", [b"", b"short", bytes(100)])
def test_damaged_kernels_are_compiled_again(painted_once, tmp_path, damage):
    painted_once()
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    for content in (damage, whole[:-1], whole[:40] + b"x" + whole[41:]):
        file.write_bytes(content)
        assert painted_once() == (1, 0)
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(painted_once, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert painted_once() == painted_once() == (1, 0)


def test_the_names_used_of_the_runtime_are_those_of_the_real_library():
    rtx = pytest.importorskip("tensorrt_rtx")
    used = {
        "IRuntimeConfig": (
            "create_runtime_cache",
            "set_runtime_cache",
            "set_execution_context_allocation_strategy",
        ),
        "IRuntimeCache": ("serialize", "deserialize"),
        "ICudaEngine": ("create_runtime_config", "create_execution_context"),
        "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
        "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    }
    assert hasattr(rtx.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert all(hasattr(getattr(rtx, owner), name) for owner, names in used.items() for name in names)
