"""What a pair costs, counted and not timed: a slower loop shows here on any machine."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from stage_rt.engine import Engine
from stage_rt.executor import HostExecutor
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import sample
from stage_rt.spec import UNET, VAE_DECODER, VAE_ENCODER, EngineSpec, ModelSpec, adapter_graph

SHAPE = (8, 4, 32, 32)
RECIPE = Recipe(name="short", steps=120, ema_stop=20, only_intervals=((80, 99), (30, 39)))
MODEL = ModelSpec(
    image_size=64,
    latent_size=32,
    latent_scale=1,
    tokens=2,
    context_dim=3,
    recipe=RECIPE,
    prompts={"tile+crack": "tile", "tile+bare": None},
    surface="good",
)
CONTEXTS = {name: np.zeros((2, 3), np.float32) for name in ("tile+crack", "tile+bare", "good")}


class Counting:
    """A backend whose networks do nothing, and are counted."""

    def __init__(self):
        self.calls = Counter()

    def run(self, graph, **inputs):
        self.calls[graph] += 1
        shape = (len(next(iter(inputs.values()))), *SHAPE[1:])
        if graph == VAE_ENCODER:
            return np.zeros((shape[0], 8, 32, 32), np.float32)
        return np.zeros((shape[0], 3, 64, 64) if graph == VAE_DECODER else shape, np.float32)

    def close(self):
        pass


def calls_of(prompt, recipe, steps):
    backend = Counting()
    spec = EngineSpec(
        model=MODEL,
        backend="onnxruntime",
        library="onnxruntime",
        library_version="1",
        devices=["cpu"],
        dtype="fp32",
        batch=[8],
        graphs_fingerprint="0" * 64,
        files={},
    )
    engine = Engine(spec, HostExecutor(MODEL, backend), CONTEXTS)
    images, masks = np.zeros((8, 3, 64, 64), np.float32), np.zeros((8, 1, 32, 32), np.float32)
    masks[:, :, 4:9, 5:12] = 1
    engine.paint(images, masks, prompt=prompt, noise=PhiloxNoise(range(8)), recipe=recipe, steps=steps)
    return dict(backend.calls)


@pytest.mark.parametrize("solver", ["ancestral", "dpmpp-2m", "dpmpp-2m-sde", "unipc"])
def test_a_step_of_a_batch_is_one_call_of_the_unet_and_one_of_an_adapter(solver):
    steps = 40
    recipe = RECIPE.solved(solver)
    levels = recipe.respaced(steps).schedule.timesteps.tolist()
    only = sum(RECIPE.branch(level) is Branch.ONLY for level in levels)
    assert calls_of("tile+crack", recipe, steps) == {
        VAE_ENCODER: 1,
        UNET: steps,
        adapter_graph("tile", "only"): only,
        adapter_graph("tile", "aware"): steps - only,
        VAE_DECODER: 1,
    }
    assert 0 < only < steps


def test_guidance_by_the_prompt_is_one_unet_call_more_and_no_adapters_are_none():
    assert calls_of("tile+bare", RECIPE.contrasted(2), 20) == {VAE_ENCODER: 1, UNET: 40, VAE_DECODER: 1}
    assert calls_of("tile+bare", RECIPE, 20) == {VAE_ENCODER: 1, UNET: 20, VAE_DECODER: 1}


def arrays_alive():
    """Bytes of NumPy's arrays alone: another thread of the test's process may open a file meanwhile."""
    arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    traces = tracemalloc.take_snapshot().filter_traces([arrays]).traces
    return sum(trace.size for trace in traces)


@pytest.mark.parametrize(("solver", "most"), [("ancestral", 2), ("dpmpp-2m", 7), ("unipc", 8)])
def test_the_loop_allocates_few_states_and_keeps_none(solver, most):
    """The next state and the soft mask, of a quarter of its size; the network allocates nothing here."""
    clean, mask = np.zeros(SHAPE, np.float32), np.ones((8, 1, 32, 32), np.float32)
    eps = np.full(SHAPE, 0.1, np.float32)
    kept, peaks = [], []

    def watch(i, state):
        if i in (25, 115):
            kept.append(arrays_alive())
        peaks.append(tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0])
        tracemalloc.reset_peak()

    recipe = RECIPE.solved(solver)
    tracemalloc.start()
    try:
        sample(
            lambda x, i, m, branch: eps,
            clean,
            mask,
            recipe=recipe,
            noise=PhiloxNoise(range(8)),
            callback=watch,
        )
    finally:
        tracemalloc.stop()
    # Two steps alike in all but their number, behind those that make the tables.
    assert kept[0] == kept[1]
    assert max(peaks[20:]) < most * clean.nbytes
