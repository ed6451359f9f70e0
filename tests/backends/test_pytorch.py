"""Engines for PyTorch: refusals, the calls on a stand-in for PyTorch on a GPU, real builds for the CPU."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mock_cuda import Machine, installed
from mock_networks import spec

from stage_rt.backends import pytorch as module
from stage_rt.errors import BackendError, DeviceMemoryError, EngineError, InputError, MissingExtraError
from stage_rt.files import digests
from stage_rt.loading import load
from stage_rt.networks import tensors
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.spec import UNET

SHORT = Recipe(name="short", steps=10, ema_stop=3, only_intervals=())


def described(**changes):
    base = {"backend": "inductor", "devices": ["cpu"], "library_version": module.release(torch.__version__)}
    return spec(SHORT, batch=(2,)).model_copy(update=base | changes)


def test_another_version_of_torch_is_named(tmp_path):
    with pytest.raises(
        EngineError, match=r"was built with PyTorch 1.2.3 but .* is installed: .*torch==1.2.3`"
    ):
        module.PyTorchBackend(tmp_path, described(library_version="1.2.3"))


def test_a_missing_torch_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"needs PyTorch, which is not installed: `pip install"):
        module.PyTorchBackend(tmp_path, described())


def test_a_graph_without_a_package_is_an_error_with_the_remedy(tmp_path):
    backend = module.PyTorchBackend(tmp_path, described())
    with pytest.raises(EngineError, match="holds no `unet`: build the engine again"):
        backend.run(UNET, sample=np.zeros((1, 4, 8, 8), np.float32))


@pytest.mark.parametrize("name", ["unet.b2.pt2", "unet.safetensors"])
def test_a_file_that_was_replaced_after_loading_is_not_read(tmp_path, name):
    for each in ("unet.b2.pt2", "unet.safetensors"):
        (tmp_path / each).write_bytes(b"")
    backend = module.PyTorchBackend(tmp_path, described(files=digests(tmp_path)))
    (tmp_path / name).write_bytes(b"another model's")
    with pytest.raises(EngineError, match=f"`{tmp_path / name}` was replaced or changed while"):
        backend.run(UNET, sample=np.zeros((1, 4, 8, 8)), timestep=np.zeros(1), context=np.zeros((1, 3, 6)))


class StandIn:
    """PyTorch on a GPU, as far as `PyTorchNetwork` uses it: arrays at addresses, and the order of its calls."""

    OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
    float32, int64 = "float32", "int64"

    def __init__(self):
        self.inside, self.calls, self.moved, self.times_full = [], [], 0, 0
        self.backends = SimpleNamespace(cudnn=SimpleNamespace(allow_tf32=True))
        self.cuda = SimpleNamespace(
            MemPool=lambda: "pool",
            ExternalStream=lambda handle: ("stream", handle),
            stream=self._entered,
            use_mem_pool=self._entered,
            memory_stats_as_nested_dict=lambda: {"num_ooms": self.times_full},
            empty_cache=lambda: self.calls.append("empty_cache"),
            synchronize=lambda: self.calls.append("synchronize"),
        )

    def inference_mode(self):
        return self._entered("inference")

    def as_tensor(self, described, device):
        interface = described.__cuda_array_interface__
        address, _ = interface["data"]
        return SimpleNamespace(
            view=lambda dtype: SimpleNamespace(
                data_ptr=lambda: address + self.moved,
                copy_=lambda result: self.calls.append(("copy", address, result, tuple(self.inside))),
                address=address,
                dtype=dtype,
                kind=(interface["typestr"], interface["shape"]),
            )
        )

    @contextmanager
    def _entered(self, what):
        self.inside.append(what)
        yield
        self.inside.remove(what)


@pytest.fixture
def network():
    """A UNet of batch 2 on the stand-in, bound to addresses."""
    inputs, output = tensors(described().model, described().dtype, UNET, 2)

    def runner(**handed):
        torch_.times_full += len(raises) > 1
        if raises:
            raise raises[0]
        seen = {name: (tensor.address, tensor.dtype, tensor.kind) for name, tensor in handed.items()}
        return seen | {"tf32": torch_.backends.cudnn.allow_tf32}

    torch_, raises = StandIn(), []
    made = module.PyTorchNetwork(torch_, UNET, runner, inputs, output)
    made.addresses = {name: 256 * n for n, name in enumerate(made.tensors, start=1)}
    made.raises, made.torch = raises, torch_
    return made


def test_a_package_runs_in_the_stream_it_is_given_on_the_memory_it_was_told_of(network):
    network.bind(network.addresses, 0)
    network.enqueue(77)
    ((_, address, handed, inside),) = network.torch.calls
    assert address == network.addresses["eps"]
    assert list(handed) == ["sample", "timestep", "context", "tf32"]
    assert handed["sample"] == (256, "float32", ("<f4", (2, 4, 8, 8)))
    assert handed["timestep"] == (512, "int64", ("<i8", (2,)))
    assert inside == (("stream", 77), "inference")
    assert network.torch.inside == []
    assert handed["tf32"] is False
    assert network.torch.backends.cudnn.allow_tf32


def test_steps_are_recorded_in_one_pool_that_lasts_as_long_as_the_backend(tmp_path, monkeypatch):
    backend, stand_in = module.PyTorchBackend(tmp_path, described()), StandIn()
    pools = iter(["pool", "another"])
    stand_in.cuda.MemPool = lambda: next(pools)
    monkeypatch.setattr(backend, "_torch", stand_in)
    for _ in range(2):
        with backend.recording():
            assert stand_in.inside == ["pool"]
        assert stand_in.inside == []
    backend.close()
    with backend.recording():
        assert stand_in.inside == ["another"]


def test_what_recordings_took_is_given_back_and_the_next_one_has_a_pool_of_its_own(tmp_path, monkeypatch):
    backend, stand_in = module.PyTorchBackend(tmp_path, described()), StandIn()

    class Pool:
        def __del__(self):
            stand_in.calls.append("pool is gone")

    stand_in.cuda.MemPool = Pool
    monkeypatch.setattr(backend, "_torch", stand_in)
    backend.forget_recorded()
    assert stand_in.calls == []
    for _ in range(2):
        with backend.recording():
            pass
        assert stand_in.calls == []
        backend.forget_recorded()
        # In the other order PyTorch would keep what the pool had reserved.
        assert stand_in.calls == ["pool is gone", "empty_cache"]
        stand_in.calls.clear()


@pytest.mark.parametrize(("backend", "maker"), [("inductor", "compile_network"), ("torch", "trace_network")])
def test_a_network_is_made_and_compared_without_tf32(backend, maker, monkeypatch, tmp_path):
    from stage_rt.export import pytorch as builder

    seen = []

    def looking(*arguments, **options):
        seen.append(torch.backends.cudnn.allow_tf32)
        return {}

    for name in (maker, "_compare"):
        monkeypatch.setattr(builder, name, looking)
    monkeypatch.setattr(builder, "random_inputs", lambda *arguments, **options: {})
    before = torch.backends.cudnn.allow_tf32
    wanted = described(backend=backend)
    builder._make(UNET, torch.nn.Linear(1, 1), None, wanted, tmp_path, True, print)
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32 is before is True


def test_weights_are_given_back_on_close_though_packages_hold_them(tmp_path, monkeypatch):
    backend, stand_in = module.PyTorchBackend(tmp_path, described()), StandIn()
    weight = torch.ones(2, 2)
    held_elsewhere = weight[:1]
    for name, value in {
        "_torch": stand_in,
        "_device": "cuda",
        "_weights": {UNET: {"weight": weight}},
    }.items():
        monkeypatch.setattr(backend, name, value)
    backend.close()
    assert held_elsewhere.untyped_storage().size() == 0
    assert stand_in.calls == ["empty_cache"]
    backend.close()


def test_memory_that_was_copied_instead_of_shared_is_refused(network):
    network.torch.moved = 8
    with pytest.raises(BackendError, match="copied the device memory it was to share"):
        network.bind(network.addresses, 0)


def test_errors_of_torch_become_ours(network):
    network.bind(network.addresses, 0)
    network.raises.append(StandIn.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    with pytest.raises(DeviceMemoryError, match="the GPU's memory is full in graph `unet`"):
        network.enqueue(1)
    network.raises[0] = RuntimeError("operation not permitted when stream is capturing\nmore")
    with pytest.raises(
        BackendError, match=r"failed in graph `unet`: operation not permitted when .* capturing$"
    ):
        network.enqueue(1)
    # As compiled code tells it: without its type, and in no words.
    network.raises[:] = [RuntimeError("run_func_(...) API call failed at model_container_runner.cpp"), "full"]
    with pytest.raises(DeviceMemoryError, match="the GPU's memory is full in graph `unet`"):
        network.enqueue(1)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously", DeviceMemoryError),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", DeviceMemoryError),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", DeviceMemoryError),
        ("CUDA error: an illegal memory access was encountered\nmore", BackendError),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", BackendError),
    ],
)
def test_memory_that_is_taken_beside_the_allocator_is_known_by_what_is_said(network, said, kind):
    network.bind(network.addresses, 0)
    network.raises.append(RuntimeError(said))
    with pytest.raises(BackendError) as raised:
        network.enqueue(1)
    assert type(raised.value) is kind


@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=pytest.mark.slow), "torch"])
def test_a_model_built_for_the_cpu_paints_what_onnx_runtime_paints(
    backend, model_folder, engine_folder, tmp_path_factory
):
    from stage_rt.export.pytorch import build

    folder = tmp_path_factory.mktemp(backend) / "engine"
    options = {"dtype": "fp32", "batch": [2], "device": "cpu"}
    assert build(model_folder, folder, backend, **options)
    assert not build(model_folder, folder, backend, **options)
    reference, found = load(engine_folder), load(folder)
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (3, 1, 32, 32)).astype(np.float32)
    masks = np.zeros((3, 1, 16, 16), np.float32)
    masks[:2, :, 4:9, 3:12] = 1
    painted = [
        engine.paint(images, masks, prompt="tile+hole", noise=PhiloxNoise([1, 2, 3]))
        for engine in (reference, found)
    ]
    np.testing.assert_allclose(painted[1].images, painted[0].images, rtol=0, atol=1e-4)
    found.close()
    (folder / "other").write_text("no engine")
    (folder / "engine.json").unlink()
    with pytest.raises(InputError):
        build(model_folder, folder, backend, **options)


@pytest.mark.parametrize("backend", ["inductor", "torch"])
def test_an_engine_for_another_gpu_is_refused(backend, tmp_path, monkeypatch):
    with installed(Machine(), monkeypatch), pytest.raises(EngineError) as refused:
        module.PyTorchBackend(tmp_path, described(backend=backend, devices=["sm86"]))
    assert str(refused.value) == (
        f"`{tmp_path}` is an engine for sm86 but the GPU here is sm90 (NumPy): build one with "
        f"`stage-rt build --backend {backend}`"
    )
