"""Engines that are right pass; engines wrong in one place fail there."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from descriptions import rewrite
from small_model import PROMPTS, small_model, write_small_model

from stage_rt.engines.build import build
from stage_rt.errors import BackendError, EngineError, ModelError, ParityError, PromptError
from stage_rt.export import plots
from stage_rt.export import verify as module
from stage_rt.export.plots import plot_errors
from stage_rt.export.verify import CONTEXTS, Error, Report, calls, error_of, require, spread, verify, work
from stage_rt.files import digests
from stage_rt.folders import read_engine
from stage_rt.recipe import Recipe
from stage_rt.run.fewest import keep
from stage_rt.spec import ENGINE_FILE, PROMPTS_FILE, UNET, VAE_DECODER, VAE_ENCODER
from stage_rt.training.folder import save_model

ADAPTERS = ("adapters/tile.aware", "adapters/tile.only")
GRAPHS = (UNET, *ADAPTERS, VAE_ENCODER, VAE_DECODER)


@pytest.fixture(scope="module")
def report(engine_folder, model_folder):
    return verify(engine_folder, model_folder)


@pytest.fixture
def perturbed(engine_folder, model_folder, monkeypatch):
    """Verify an engine whose backend's outputs go through ``change(graph, inputs, output)``."""
    open_backend = module.open_backend

    def run(change):
        def opened(folder, spec):
            backend = open_backend(folder, spec)
            right = backend.run
            backend.run = lambda graph, **inputs: change(graph, inputs, right(graph, **inputs))
            return backend

        monkeypatch.setattr(module, "open_backend", opened)
        return verify(engine_folder, model_folder)

    return run


def failed(report):
    return {row.subject for row in report.rows if not row.passed}


def sign_again(engine):
    """List the files of an engine anew, as whoever changes it on purpose would."""
    files = digests(engine)
    del files[ENGINE_FILE]
    rewrite(engine / ENGINE_FILE, files=files)


def test_an_fp32_engine_agrees_to_rounding(report):
    require(report)
    assert failed(report) == set()
    assert {row.subject for row in report.rows} == {CONTEXTS, *GRAPHS, "trajectory", "painted image"}
    for row in report.rows:
        if row.subject != CONTEXTS:
            assert 0 < row.worst.max_rel < row.tolerance / 10
            assert 0 < row.worst.max_abs < 1e-4
            assert 1 - 1e-9 < row.worst.cosine <= 1 + 1e-12


def test_an_fp16_engine_passes_and_shows_its_rounding(graphs, model_folder, tmp_path):
    build(graphs("fp16"), tmp_path / "engine", backend="onnxruntime", batch=[2])
    found = verify(tmp_path / "engine", model_folder, timesteps=3)
    require(found)
    worst = {row.subject: row.worst.max_rel for row in found.rows}
    assert all(worst[graph] > 1e-4 for graph in GRAPHS)


def test_every_graph_is_compared_at_every_batch_and_timestep(report):
    compared = {(point.graph, point.batch, point.timestep) for point in report.points}
    denoising = {(graph, b, t) for graph in (UNET, *ADAPTERS) for b in (1, 4) for t in range(10)}
    autoencoder = {(graph, b, None) for graph in (VAE_ENCODER, VAE_DECODER) for b in (1, 4)}
    assert compared == denoising | autoencoder | {(CONTEXTS, 1, None)}
    assert len(report.trajectory) == 10


def test_progress_ends_at_all_of_the_work(engine_folder, model_folder):
    told = []
    verify(engine_folder, model_folder, timesteps=4, progress=told.append)
    total = work(read_engine(engine_folder), 4)
    np.testing.assert_allclose(told, np.arange(1, total + 1) / total, atol=1e-12)
    assert told[-1] == 1


@pytest.mark.parametrize(("steps", "count", "expected"), [(1000, 3, [999, 500, 0]), (3, 16, [2, 1, 0])])
def test_timesteps_spread_from_the_last_to_the_first(steps, count, expected):
    assert spread(steps, count) == expected


def test_quick_is_the_same_in_fewer_calls(engine_folder, model_folder):
    spec = read_engine(engine_folder)
    longer = spec.model.model_copy(update={"recipe": Recipe.masked()})
    assert [calls(longer, quick) for quick in (False, True)] == [1000, 50]
    told = []
    found = verify(engine_folder, model_folder, timesteps=2, quick=True, progress=told.append)
    require(found)
    assert list(found.trajectory) == list(range(10))
    assert len(told) == work(spec, 2, quick=True)
    assert told[-1] == pytest.approx(1)


def test_the_engine_of_another_seed_fails_everywhere(engine_folder, tmp_path):
    other = write_small_model(tmp_path / "other", seed=1)
    found = verify(engine_folder, other)
    assert failed(found) == {row.subject for row in found.rows}
    with pytest.raises(ParityError, match=r"8 of 8 comparisons failed, worst `contexts`"):
        require(found)


def change(network):
    """Add to one weight: the first bias of the last convolution, which no ReLU hides."""
    last = next(node for node in network.node if node.output[0] == network.output[0].name)
    weight = next(weight for weight in network.initializer if weight.name == last.input[2])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


@pytest.mark.parametrize("graph", GRAPHS)
def test_one_changed_weight_fails(engine_folder, model_folder, tmp_path, graph):
    engine = tmp_path / "engine"
    shutil.copytree(engine_folder, engine)
    network = onnx.load(engine / f"{graph}.onnx")
    change(network.graph)
    onnx.save(network, engine / f"{graph}.onnx")
    sign_again(engine)
    found = verify(engine, model_folder, timesteps=2)
    assert failed(found) & set(GRAPHS) == {graph}


def test_another_context_fails_though_all_networks_are_right(engine_folder, tmp_path):
    model = small_model()
    model.contexts[PROMPTS[1]][2, 3] += 1e-3
    save_model(model, tmp_path / "model")
    found = verify(engine_folder, tmp_path / "model", timesteps=2)
    assert CONTEXTS in failed(found)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (lambda graph, inputs: graph == UNET and inputs["timestep"][0] == 4, UNET),
        (lambda graph, inputs: graph == UNET and len(inputs["sample"]) == 4, UNET),
        (lambda graph, inputs: graph == ADAPTERS[1], ADAPTERS[1]),
        (lambda graph, inputs: graph == ADAPTERS[0] and inputs["mask"].min() > 0.8, ADAPTERS[0]),
        (lambda graph, inputs: graph == VAE_ENCODER and len(inputs["image"]) == 1, VAE_ENCODER),
    ],
    ids=["one timestep", "one batch", "one branch", "one mask", "the encoder at one batch"],
)
def test_an_engine_that_is_wrong_now_and_then_fails(perturbed, wrong, where):
    found = perturbed(lambda graph, inputs, output: output * (1.001 if wrong(graph, inputs) else 1))
    assert where in failed(found)
    assert failed(found) <= {where, "trajectory", "painted image"}


def test_a_bias_that_no_graph_shows_fails_in_the_trajectory(perturbed, monkeypatch):
    monkeypatch.setitem(module.TOLERANCE, "fp32", 1.0)
    found = perturbed(lambda graph, inputs, output: output + (0.05 if graph == UNET else 0))
    assert failed(found) == {"trajectory", "painted image"}


def test_an_engine_that_turns_non_finite_fails(perturbed):
    def change(graph, inputs, output):
        if graph == ADAPTERS[0] and inputs["mask"].min() > 0.8:
            output[0, 0, 0, 0] = np.nan
        return output

    found = perturbed(change)
    assert {ADAPTERS[0], "trajectory"} <= failed(found)
    with pytest.raises(ParityError, match=f"worst `{ADAPTERS[0]}`, which differs from torch by nan"):
        require(found)


def test_an_engine_of_another_shape_says_so(perturbed):
    message = r"nothing was verified: the engine returned shape \(4, 8, 16, 15\), expected \(4, 8, 16, 16\)"
    with pytest.raises(BackendError, match=message):
        perturbed(lambda graph, inputs, output: output[..., 1:] if len(output) == 4 else output)


@pytest.mark.parametrize("change", [{"latent_scale": 0.25}, {"prompts": {"tile+crack": "tile"}}])
def test_another_kind_of_model_is_refused_before_anything_runs(engine_folder, tmp_path, change):
    model = write_small_model(tmp_path / "model")
    path = model / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(
        EngineError, match=f"is of another model than .* whose `{next(iter(change))}` differs"
    ):
        verify(engine_folder, model)


def test_where_a_model_came_from_takes_no_part(engine_folder, tmp_path):
    model = write_small_model(tmp_path / "model")
    path = model / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": {"data": "elsewhere"}}))
    (model / "SHA256SUMS").unlink()
    require(verify(engine_folder, model, timesteps=2))


def test_fewest_steps_kept_in_an_engine_take_no_part(engine_folder, model_folder, tmp_path):
    engine = shutil.copytree(engine_folder, tmp_path / "engine")
    keep(engine, read_engine(engine), PROMPTS[0], 100)
    require(verify(engine, model_folder, timesteps=2, quick=True))


def test_a_model_with_guidance_is_verified_with_it(engine_folder, tmp_path):
    model, engine = small_model(), shutil.copytree(engine_folder, tmp_path / "engine")
    guided = model.spec.model_copy(update={"recipe": model.spec.recipe.guided(2.0)})
    save_model(replace(model, spec=guided), tmp_path / "model")
    rewrite(engine / ENGINE_FILE, model=guided.model_dump(mode="json"))
    require(verify(engine, tmp_path / "model", timesteps=2))


def test_a_folder_that_is_no_model_and_a_prompt_that_is_none(engine_folder, model_folder, tmp_path):
    with pytest.raises(ModelError, match="is not a model folder"):
        verify(engine_folder, tmp_path)
    with pytest.raises(PromptError, match=r"unknown prompt 'x': use one of tile\+crack, tile\+hole"):
        verify(engine_folder, model_folder, prompt="x")


def test_an_engine_that_cannot_run_here_is_not_verified(engine_folder, model_folder, tmp_path):
    engine = tmp_path / "engine"
    shutil.copytree(engine_folder, engine)
    rewrite(engine / ENGINE_FILE, library_version="0.1.0")
    with pytest.raises(EngineError, match=r"nothing was verified: .* was built with onnxruntime 0\.1\.0"):
        verify(engine, model_folder)


def test_a_damaged_engine_is_not_verified(engine_folder, model_folder, tmp_path):
    engine = tmp_path / "engine"
    shutil.copytree(engine_folder, engine)
    with (engine / PROMPTS_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(EngineError, match="nothing was verified"):
        verify(engine, model_folder)


def test_errors_by_hand():
    found = error_of(np.array([3.0, 0.0]), np.array([3.0, 4.0]))
    assert found == Error(4.0, 1.0, pytest.approx(0.6))
    assert error_of(np.zeros(2), np.zeros(2)) == Error(0.0, 0.0, 1.0)
    assert error_of(np.ones(2), np.zeros(2)) == Error(1.0, math.inf, 0.0)
    assert all(math.isnan(figure) for figure in error_of(np.array([1, np.inf]), np.ones(2)))


def test_the_plot_is_a_picture_also_of_errors_that_have_no_logarithm(report):
    assert plot_errors(report).startswith(b"\x89PNG")
    odd = [Error(0.0, 0.0, 1.0), Error(math.nan, math.nan, math.nan), Error(1.0, math.inf, 0.0)]
    states = dict(enumerate(odd))
    assert plot_errors(Report("fp32", "x", report.points, states, odd[0])).startswith(b"\x89PNG")


def test_an_error_that_is_not_finite_is_a_gap_in_the_plot(report, monkeypatch):
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    bad = Error(math.nan, math.nan, math.nan)
    points = [
        replace(point, error=bad) if point.timestep == 0 and point.graph == UNET else point
        for point in report.points
    ]
    plot_errors(replace(report, points=points, trajectory=report.trajectory | {0: bad}))
    graphs, trajectory = figures[0].axes
    for line in (graphs.lines[0], trajectory.lines[0]):
        steps, errors = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert steps[np.isnan(errors)].tolist() == [0]
    monkeypatch.undo()
    plots.plt.close(figures[0])
