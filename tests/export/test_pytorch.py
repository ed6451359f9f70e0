"""Building a model with PyTorch: what is refused, what is compared, and what a program holds."""

import shutil
import zipfile

import pytest
import torch

from stage_rt.backends.packages import open_program
from stage_rt.errors import BackendError, DeviceError, DeviceMemoryError, InputError, ParityError
from stage_rt.export import pytorch, tracing
from stage_rt.export.inductor import compile_network
from stage_rt.export.pytorch import build, describe
from stage_rt.export.tracing import trace_network
from stage_rt.files import locked
from stage_rt.spec import ENGINE_FILE
from stage_rt.training.folder import load_model


@pytest.mark.parametrize("backend", ["inductor", "torch"])
def test_without_a_gpu_another_backend_is_named(backend, model_folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=r"finds none here: .* use `--backend tensorrt-rtx`"):
        build(model_folder, tmp_path / "engine", backend, dtype="fp16", batch=[1])
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("batch", [[], [0, 8], [2**17]])
def test_a_batch_that_serves_nobody_is_refused_before_the_model_is_read(batch, tmp_path):
    with pytest.raises(InputError, match=r"a batch of \d+ (serves nobody|is more than any device serves)"):
        build(tmp_path / "nowhere", tmp_path / "engine", "torch", dtype="fp32", batch=batch, device="cpu")


@pytest.mark.parametrize(("make", "word"), [(compile_network, "compile"), (trace_network, "trace")])
def test_a_network_that_cannot_be_made_is_named(make, word, tmp_path):
    class Choosy(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(BackendError, match=rf"PyTorch cannot {word} `choosy.b1.pt2`: "):
        make(Choosy(), {"x": torch.ones(1)}, tmp_path / "choosy.b1.pt2")


@pytest.mark.parametrize(("make", "says"), [("inductor", "compiling"), ("torch", "tracing")])
@pytest.mark.parametrize("where", ["network", "comparison"])
def test_a_gpu_that_is_too_small_is_told_with_the_way_out(
    make, says, where, model_folder, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model = load_model(model_folder)
    if where == "comparison":
        for name in ("compile_network", "trace_network"):
            monkeypatch.setattr(pytorch, name, lambda *_, **__: {})
        monkeypatch.setattr(pytorch, "opened", full)
    else:
        model.unet.forward = full
    wanted = describe(model.spec, make, "fp32", [2], "cpu", "0" * 64)
    with pytest.raises(
        DeviceMemoryError,
        match=rf"^the GPU's memory is full while {says} `unet`: use a smaller `--batch` or a GPU with more memory$",
    ):
        pytorch.write(model, wanted, tmp_path, graphs=["unet"])


def test_a_program_holds_no_weights_and_takes_them_in_any_order(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.SiLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    needed = trace_network(network, {"input": x}, path := tmp_path / "network.b2.pt2")
    with zipfile.ZipFile(path) as packed:
        sizes = {name: packed.getinfo(name).file_size for name in packed.namelist()}
        (model,) = (packed.read(name).decode() for name in sizes if name.endswith("models/model.json"))
    assert sum(size for name, size in sizes.items() if "model.json" not in name) < 1500
    assert tracing.__file__ not in model
    run = open_program(torch, path, dict(reversed(needed.items())))
    with torch.no_grad():
        torch.testing.assert_close(run(input=x), network(x))
        doubled = open_program(torch, path, needed | {"0.weight": 2 * needed["0.weight"]})(input=x)
    assert not torch.equal(doubled, run(input=x))


def test_a_network_that_gives_zeros_is_compared(model_folder, tmp_path, monkeypatch):
    wanted = describe(load_model(model_folder).spec, "torch", "fp32", [1], "cpu", "0" * 64)

    class Zeros(torch.nn.Module):
        def forward(self, x):
            return x * 0

    def opened(offset):
        monkeypatch.setattr(pytorch, "opened", lambda *_: lambda x: x * 0 + offset)
        pytorch._compare(Zeros(), {"x": torch.ones(2)}, tmp_path / "zeros.b1.pt2", {}, wanted)

    opened(0)
    for offset in (1e-9, float("nan")):
        with pytest.raises(ParityError, match=r"`zeros.b1.pt2` is off by (inf|nan)"):
            opened(offset)


def test_an_engine_depends_on_what_decides_the_networks_alone(model_folder, tmp_path):
    model = shutil.copytree(model_folder, tmp_path / "model")
    before = pytorch._fingerprint(model, "fp16")
    (model / "losses.png").write_bytes(b"another plot")
    (model / "README.md").write_text("a page")
    assert pytorch._fingerprint(model, "fp16") == before
    assert pytorch._fingerprint(model, "fp32") != before
    (model / "unet" / "config.json").write_text("{}")
    assert pytorch._fingerprint(model, "fp16") != before


@pytest.fixture
def written(monkeypatch):
    """How often an engine was written, with no networks in it."""
    times = []

    def write(model, wanted, folder, *, say):
        times.append(folder)
        (folder / ENGINE_FILE).write_text(wanted.sealed())

    monkeypatch.setattr(pytorch, "write", write)
    return times


def test_an_engine_that_other_code_made_is_made_again(model_folder, tmp_path, monkeypatch, written):
    def again():
        return build(model_folder, tmp_path / "engine", "torch", dtype="fp32", batch=[1], device="cpu")

    def version(library):
        # Those of ONNX have no part in it, and need not be there.
        return {"torch": "1", "diffusers": "2"}[library]

    monkeypatch.setattr("stage_rt.export.origin.version", version)
    assert again()
    assert not again()
    monkeypatch.setattr(pytorch, "origin", lambda *_: "1" * 64)
    assert again()
    assert not again()
    assert len(written) == 2


def test_of_two_builds_of_one_folder_the_second_waits(model_folder, tmp_path, written):
    said, folder = [], tmp_path / "engine"

    def say(line):
        said.append(line)
        raise KeyboardInterrupt

    with locked(folder, lambda: None), pytest.raises(KeyboardInterrupt):
        build(model_folder, folder, "torch", dtype="fp32", batch=[1], device="cpu", say=say)
    assert said == [f"waiting for another process that builds `{folder}`"]
    assert not written
