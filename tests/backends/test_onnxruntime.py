"""The ONNX Runtime backend alone: when it loads, what it says when it cannot."""

import shutil
import sys

import numpy as np
import pytest

from stage_rt.backends import onnxruntime as module
from stage_rt.backends.onnxruntime import OnnxRuntimeBackend
from stage_rt.errors import BackendError, ExitCode, MissingExtraError
from stage_rt.files import digests
from stage_rt.folders import read_engine
from stage_rt.loading import open_backend

CONTEXT = (3, 6)


@pytest.fixture
def backend(engine_folder):
    return OnnxRuntimeBackend(engine_folder, read_engine(engine_folder))


@pytest.fixture
def loaded(monkeypatch):
    """Names of the graphs the library was asked to load, in order."""
    names = []
    original = module.library().InferenceSession

    def session(path, *arguments, **options):
        names.append(path.name)
        return original(path, *arguments, **options)

    monkeypatch.setattr(module.library(), "InferenceSession", session)
    return names


def estimate(batch):
    return np.random.default_rng(1).standard_normal((batch, 4, 16, 16), dtype=np.float32)


def guided(backend, batch=2, mask=1.0, graph="adapters/tile.aware"):
    return backend.run(graph, eps=estimate(batch), mask=np.full((batch, 1, 16, 16), mask, np.float32))


class Watched:
    """A session that keeps how many threads it was given and the shapes it was run at."""

    def __init__(self, session, options):
        self._session = session
        self.threads, self.shapes = options.intra_op_num_threads, []

    def get_inputs(self):
        return self._session.get_inputs()

    def run(self, names, feed):
        self.shapes.append(sorted(array.shape for array in feed.values()))
        return self._session.run(names, feed)


@pytest.fixture
def on_three_cores(engine_folder, monkeypatch):
    """A backend of a process that may use three cores; its sessions are `Watched`."""
    original = module.library().InferenceSession
    monkeypatch.setattr(
        module.library(),
        "InferenceSession",
        lambda path, options, **others: Watched(original(path, options, **others), options),
    )
    monkeypatch.setattr(module, "cores", lambda: 3)
    return OnnxRuntimeBackend(engine_folder, read_engine(engine_folder))


def test_a_batch_is_shared_out_among_the_cores_in_order(on_three_cores, backend):
    inputs = {
        "sample": estimate(7),
        "timestep": np.array([9, 3, 0, 9, 5, 1, 7]),
        "context": np.random.default_rng(2).standard_normal((7, *CONTEXT), dtype=np.float32),
    }
    output = on_three_cores.run("unet", **inputs)
    alone = [
        backend.run("unet", **{name: array[n : n + 1] for name, array in inputs.items()}) for n in range(7)
    ]
    np.testing.assert_allclose(output, np.concatenate(alone), atol=1e-5)
    session = on_three_cores._sessions["unet"]
    assert session.threads == 1
    parts = [[(count,), (count, *CONTEXT), (count, 4, 16, 16)] for count in (2, 2, 3)]
    assert sorted(session.shapes) == parts


def test_fewer_samples_than_cores_get_the_cores_all_the_same(on_three_cores):
    assert guided(on_three_cores, batch=1).shape == (1, 4, 16, 16)
    session = on_three_cores._sessions["adapters/tile.aware"]
    assert session.threads == 3
    assert session.shapes == [[(1, 1, 16, 16), (1, 4, 16, 16)]]


def test_a_missing_library_is_named_with_its_extra(engine_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"`pip install 'stage-rt\[cpu\]'`") as error:
        open_backend(engine_folder, read_engine(engine_folder))
    assert error.value.exit_code is ExitCode.INPUT


def test_a_graph_is_loaded_when_it_is_first_run_and_once(backend, loaded):
    assert loaded == []
    guided(backend)
    guided(backend)
    assert loaded == ["tile.aware.onnx"]
    guided(backend, graph="adapters/tile.only")
    assert loaded == ["tile.aware.onnx", "tile.only.onnx"]


def test_close_gives_every_graph_back(backend, loaded):
    guided(backend)
    backend.close()
    assert backend._sessions == {}
    guided(backend)
    assert loaded == ["tile.aware.onnx"] * 2


def test_any_batch_runs_and_the_inputs_matter(backend):
    for batch in (1, 3, 7):
        assert guided(backend, batch).shape == (batch, 4, 16, 16)
    assert guided(backend).dtype == np.float32
    assert np.abs(guided(backend, mask=0.0) - guided(backend, mask=1.0)).max() > 1e-3


def test_inputs_are_cast_to_the_graph_and_may_lie_in_any_order(backend):
    eps = estimate(2)
    mask = np.ones((2, 1, 16, 16), np.float32)
    expected = backend.run("adapters/tile.only", eps=eps, mask=mask)
    scattered = np.asfortranarray(eps).astype(np.float64, order="F")
    np.testing.assert_array_equal(
        backend.run("adapters/tile.only", eps=scattered, mask=mask.astype(bool)), expected
    )


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_a_broken_graph_is_an_error_that_names_it(engine_folder, tmp_path, content):
    folder = shutil.copytree(engine_folder, tmp_path / "engine")
    path = folder / "unet.onnx"
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    backend = OnnxRuntimeBackend(folder, read_engine(folder).model_copy(update={"files": digests(folder)}))
    with pytest.raises(BackendError) as error:
        backend.run("unet")
    assert str(error.value).startswith(f"ONNX Runtime cannot load `{path}`: ")
    assert "\n" not in str(error.value)
    assert error.value.exit_code is ExitCode.BROKEN


def test_a_failure_inside_a_graph_is_an_error_that_names_it(backend):
    with pytest.raises(BackendError, match=r"failed in graph `vae_decoder`: .") as error:
        backend.run("vae_decoder", latent=np.zeros((1, 4, 16, 15), np.float32))
    assert "\n" not in str(error.value)
