"""The adapter with the authors' layout against outputs of the authors' module."""

import numpy as np
import pytest
import torch
from conftest import Golden

from stage_rt.training.adapter import MaskGuidanceAdapter


def test_parameter_count_and_names_are_the_authors() -> None:
    adapter = MaskGuidanceAdapter()
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 2_662_532
    convolutions = [f"conv.{k}.weight" for k in (0, 3, 6, 9, 12, 15)]
    assert set(convolutions) <= set(dict(adapter.named_parameters()))
    assert "conv.13.running_var" in dict(adapter.named_buffers())


@pytest.mark.parametrize(
    ("prefix", "mask", "output"),
    [
        ("fine_image", "mga_in_mask_soft", "mga_image_out"),
        ("fine_mask", "mga_in_mask_bin", "mga_mask_out"),
    ],
)
def test_outputs_equal_the_authors(golden: Golden, prefix: str, mask: str, output: str) -> None:
    weights, modules = golden("mga_weights"), golden("tiny_modules")
    adapter = MaskGuidanceAdapter().eval()
    state = {
        name.removeprefix(f"{prefix}."): torch.from_numpy(value.astype(np.float32))
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    adapter.load_state_dict(state)
    with torch.no_grad():
        guided = adapter(torch.from_numpy(modules["mga_in_eps"]), torch.from_numpy(modules[mask]))
    np.testing.assert_allclose(guided.numpy(), modules[output], atol=1e-5)
