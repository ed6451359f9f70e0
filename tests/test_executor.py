"""How the host puts the estimates of a step together."""

import numpy as np
import pytest
from mock_networks import spec

from stage_rt.estimator import Condition
from stage_rt.executor import HostExecutor
from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import UNET

MODEL = spec(Recipe.authors()).model

X = np.ones((2, 4, 3, 3), np.float32)
MASK = np.ones((2, 1, 3, 3), np.float32)
PROMPT, SURFACE = (np.full((3, 5), value, np.float32) for value in (2, 0.5))


class Backend:
    """A UNet that says its context's mean, and an adapter that adds 10."""

    def __init__(self):
        self.calls = []

    def run(self, graph, **inputs):
        self.calls.append(graph)
        if graph == UNET:
            return np.ones_like(inputs["sample"]) * inputs["context"].mean(axis=(1, 2))[:, None, None, None]
        return inputs["eps"] + 10


@pytest.mark.parametrize(
    ("adapter", "guidance", "prompt_guidance", "expected", "unets"),
    [
        (None, 1, 1, 2.0, 1),
        ("a", 1, 1, 12.0, 1),
        ("a", 3, 1, 32.0, 1),
        (None, 1, 3, 0.5 + 3 * 1.5, 2),
        ("a", 3, 3, 0.5 + 3 * 1.5 + 30, 2),
        ("a", 1, 0, 0.5 + 10, 2),
    ],
)
def test_both_guidances_are_moves_of_the_estimate(adapter, guidance, prompt_guidance, expected, unets):
    backend = Backend()
    condition = Condition(PROMPT, adapter, SURFACE)
    executor = HostExecutor(MODEL, backend)
    denoise = executor.denoiser(condition, guidance=guidance, prompt_guidance=prompt_guidance)
    np.testing.assert_allclose(denoise(X, 400, MASK, Branch.AWARE), np.full_like(X, expected))
    assert backend.calls.count(UNET) == unets
