"""The OpenVINO backend alone: how it cuts batches, and what it says when it cannot."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from descriptions import rewrite

from stage_rt.backends import openvino as module
from stage_rt.backends.onnxruntime import OnnxRuntimeBackend
from stage_rt.backends.openvino import OpenVinoBackend
from stage_rt.engines.build import build
from stage_rt.engines.openvino import OpenVinoBuilder, builder
from stage_rt.errors import BackendError, EngineError, ExitCode, InputError, MissingExtraError
from stage_rt.files import digests
from stage_rt.folders import read_engine
from stage_rt.loading import open_backend

CONTEXT = (3, 6)


@pytest.fixture
def backend(openvino_engine):
    return OpenVinoBackend(openvino_engine, read_engine(openvino_engine))


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
import numpy as np
from stage_rt.backends.openvino import OpenVinoBackend
from stage_rt.folders import read_engine

folder = Path(sys.argv[1])
for _ in range(4):
    backends = [OpenVinoBackend(folder, read_engine(folder)) for _ in range(2)]
    for backend in backends:
        backend.run("adapters/tile.only", eps=np.zeros((1, 4, 16, 16)), mask=np.ones((1, 1, 16, 16), bool))
    del backend, backends
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("told"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_engines_came_and_went_reaches_its_handler(openvino_engine):
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, openvino_engine],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr


def unet_inputs(batch):
    rng = np.random.default_rng(1)
    return {
        "sample": rng.standard_normal((batch, 4, 16, 16), dtype=np.float32),
        "timestep": np.arange(batch) % 10,
        "context": rng.standard_normal((batch, *CONTEXT), dtype=np.float32),
    }


def test_it_computes_what_onnx_runtime_does(backend, engine_folder):
    oracle = OnnxRuntimeBackend(engine_folder, read_engine(engine_folder))
    inputs = unet_inputs(4)
    eps = oracle.run("unet", **inputs)
    np.testing.assert_allclose(backend.run("unet", **inputs), eps, atol=1e-5)
    mask = np.ones((4, 1, 16, 16), bool)
    scattered = np.asfortranarray(eps).astype(np.float64, order="F")
    np.testing.assert_allclose(
        backend.run("adapters/tile.only", eps=scattered, mask=mask),
        oracle.run("adapters/tile.only", eps=eps, mask=mask),
        atol=1e-5,
    )


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_a_batch_is_shared_out_among_the_cores_in_order(openvino_engine, backend, monkeypatch, batch):
    monkeypatch.setattr(module, "cores", lambda: 3)
    on_three = OpenVinoBackend(openvino_engine, read_engine(openvino_engine))
    inputs = unet_inputs(batch)
    found = on_three.run("unet", **inputs)
    assert (found.shape, found.dtype) == ((batch, 4, 16, 16), np.float32)
    alone = [
        backend.run("unet", **{name: array[n : n + 1] for name, array in inputs.items()})
        for n in range(batch)
    ]
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)


def test_a_graph_is_compiled_for_the_engines_batches_and_for_one_sample(
    openvino_engine, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "cores", lambda: 1)
    folder = shutil.copytree(openvino_engine, tmp_path / "engine")
    rewrite(folder / "engine.json", batch=[4])
    backend = OpenVinoBackend(folder, read_engine(folder))
    latent = np.zeros((7, 4, 16, 16), np.float32)
    for batch in (4, 2, 3, 7, 1, 4):
        backend.run("vae_decoder", latent=latent[:batch])
    assert sorted(backend._networks) == [("vae_decoder", 1), ("vae_decoder", 4)]
    backend.close()
    assert backend._networks == {}
    assert backend.run("vae_decoder", latent=latent).shape == (7, 1, 32, 32)


@pytest.fixture(scope="module")
def rounding_engine(graphs, tmp_path_factory):
    """Of the coarsest dtype there is here, in which another order of additions shows; built for four at a time."""
    dtype = "bf16" if module.computes(module.core(), "bf16") else "fp32"
    folder = tmp_path_factory.mktemp("rounding") / "engine"
    build(graphs(dtype), folder, backend="openvino", batch=[4])
    return folder


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("cores", [1, 3])
def test_the_bits_of_a_sample_depend_on_nothing_that_is_run_before_or_beside_it(
    rounding_engine, monkeypatch, first, cores
):
    monkeypatch.setattr(module, "cores", lambda: cores)
    backend = OpenVinoBackend(rounding_engine, read_engine(rounding_engine))
    inputs = unet_inputs(4)

    def run(*places):
        return backend.run("unet", **{name: array[list(places)] for name, array in inputs.items()})

    run(*range(first))
    assert backend._settings()["NUM_STREAMS"] == cores
    whole = run(0, 1, 2, 3)
    for places in ((0,), (3,), (2, 1), (1, 2, 3), (3, 3, 2, 1, 0)):
        np.testing.assert_array_equal(run(*places), whole[list(places)])


def test_a_missing_library_is_named_with_its_extra(openvino_engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"`pip install 'stage-rt\[openvino\]'`") as error:
        open_backend(openvino_engine, read_engine(openvino_engine))
    assert error.value.exit_code is ExitCode.INPUT


def test_another_minor_version_is_refused(openvino_engine, tmp_path):
    folder = shutil.copytree(openvino_engine, tmp_path / "engine")
    rewrite(folder / "engine.json", library_version="2024.6.0")
    with pytest.raises(
        EngineError, match=r"was built with openvino 2024\.6\.0 but .*openvino==2024\.6\.\*`$"
    ):
        open_backend(folder, read_engine(folder))


def test_a_cpu_without_bf16_is_told_so(openvino_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "computes", lambda core, dtype: dtype == "fp32")
    folder = shutil.copytree(openvino_engine, tmp_path / "engine")
    rewrite(folder / "engine.json", dtype="bf16")
    with pytest.raises(
        EngineError, match="computes in bf16, which this CPU cannot: build it with `--dtype fp32`"
    ):
        open_backend(folder, read_engine(folder))


@pytest.mark.parametrize("suffix", ["xml", "bin"])
@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_a_broken_graph_is_an_error_that_names_it(openvino_engine, tmp_path, suffix, content):
    folder = shutil.copytree(openvino_engine, tmp_path / "engine")
    path = folder / f"unet.{suffix}"
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    backend = OpenVinoBackend(folder, read_engine(folder).model_copy(update={"files": digests(folder)}))
    with pytest.raises(BackendError) as error:
        backend.run("unet", **unet_inputs(1))
    assert str(error.value).startswith(f"OpenVINO cannot load `{folder / 'unet.xml'}`: ")
    assert "\n" not in str(error.value)
    assert error.value.exit_code is ExitCode.BROKEN


def test_a_failure_inside_a_graph_is_an_error_that_names_it(backend):
    with pytest.raises(BackendError, match=r"failed in graph `vae_decoder`: .") as error:
        backend.run("vae_decoder", latent=np.zeros((1, 4, 16, 15), np.float32))
    assert "\n" not in str(error.value)


def test_what_it_cannot_build_is_refused_in_one_sentence(monkeypatch):
    with pytest.raises(InputError, match="leave it out"):
        builder("fp32", ["sm86"])
    with pytest.raises(InputError, match="OpenVINO computes fp16 on hardly any CPU: use `--dtype fp32`"):
        builder("fp16", None)
    monkeypatch.setattr("stage_rt.engines.openvino.computes", lambda core, dtype: dtype == "fp32")
    with pytest.raises(InputError, match="this CPU has no instructions for bf16: use `--dtype fp32`"):
        builder("bf16", None)
    assert isinstance(builder("fp32", None), OpenVinoBuilder)


def test_a_graph_that_is_none_is_not_compiled(tmp_path):
    graph = tmp_path / "unet.onnx"
    graph.write_bytes(b"no graph")
    with pytest.raises(BackendError) as error:
        builder("fp32", None).compile(graph, tmp_path / "unet", [1], lambda share: None)
    assert str(error.value).startswith(f"OpenVINO cannot compile `{graph}`: ")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["unet.onnx"]


def test_an_engine_is_the_same_bytes_again(openvino_engine, graphs, tmp_path):
    build(graphs("fp32"), tmp_path / "engine", backend="openvino", batch=[1, 4])
    assert read_engine(tmp_path / "engine") == read_engine(openvino_engine)
