"""The sampler against trajectories recorded from the authors' loop, at every logged step."""

from typing import Any

import closed_form
import numpy as np
import pytest
import two_state
from conftest import Golden
from numpy.typing import NDArray

from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import sample

Array = NDArray[Any]

TAG = "8x8_b3_tiny_large_blobs"
BOUNDS = {
    ("A", np.float32): 1e-4,
    ("A", np.float64): 1e-10,
    ("B", np.float32): 2e-5,
    ("B", np.float64): 1e-10,
}
"""Largest allowed error: absolute for net A, relative to max |x| for net B, whose state is not bounded."""

FILES = [
    *[
        (f"out_{TAG}_eps{net}_{variant}", net, variant, np.float32)
        for net in "AB"
        for variant in ("code", "paper")
    ],
    (f"out_{TAG}_epsA_none", "A", "none", np.float32),
    *[
        (f"f64_{TAG}_eps{net}_{variant}", net, variant, np.float64)
        for net in "AB"
        for variant in ("code", "paper")
    ],
]


def assert_close(actual: Array, expected: Array, net: str, dtype: type) -> None:
    scale = 1.0 if net == "A" else float(np.abs(expected).max())
    assert np.abs(actual - expected).max() <= BOUNDS[net, dtype] * scale


@pytest.mark.parametrize(("name", "net", "variant", "dtype"), FILES, ids=[file[0] for file in FILES])
def test_single_state_at_every_logged_step(
    golden: Golden, name: str, net: str, variant: str, dtype: type
) -> None:
    inputs, stored = golden(f"in_{TAG}"), golden(name)
    recipe = closed_form.RECIPES[variant]
    states: dict[int, Array] = {}
    final = sample(
        closed_form.NETS[net],
        inputs["clean"].astype(dtype),
        inputs["mask"].astype(dtype),
        recipe=recipe,
        noise=closed_form.recorded(inputs, dtype),
        callback=lambda i, state: states.__setitem__(i, state),
    )
    assert final.dtype == dtype
    assert len(states) == 1000
    for row, i in enumerate(stored["steps"]):
        assert_close(states[int(i)], two_state.state_of(stored, row, recipe), net, dtype)
    assert_close(final, stored["final"], net, dtype)


@pytest.mark.parametrize(("name", "net", "variant", "dtype"), FILES, ids=[file[0] for file in FILES])
def test_two_state_witness_has_both_states(
    golden: Golden, name: str, net: str, variant: str, dtype: type
) -> None:
    inputs, stored = golden(f"in_{TAG}"), golden(name)
    recipe = closed_form.RECIPES[variant]
    states: dict[int, tuple[Array, Array]] = {}
    final = two_state.sample(
        closed_form.NETS[net],
        inputs["clean"].astype(dtype),
        inputs["mask"].astype(dtype),
        recipe=recipe,
        noise=closed_form.recorded(inputs, dtype),
        callback=lambda i, x, aux, ema: states.__setitem__(i, (x, aux)),
    )
    for row, i in enumerate(stored["steps"]):
        x, aux = states[int(i)]
        assert_close(x, stored["x"][row], net, dtype)
        assert_close(aux, stored["aux"][row], net, dtype)
    assert_close(final, stored["final"], net, dtype)


@pytest.mark.parametrize("variant", ["code", "paper", "none"])
def test_branch_plan_is_the_recorded_one(golden: Golden, variant: str) -> None:
    recorded = golden(f"out_{TAG}_epsA_{variant}")["only_branch"]
    recipe = closed_form.RECIPES[variant]
    assert [recipe.branch(999 - k) is Branch.ONLY for k in range(1000)] == recorded.tolist()


def test_full_size_latent(golden: Golden) -> None:
    stored = golden("sampler_32x32_b3_tiny_large_blobs_epsA_code")
    noise = closed_form.streamed(
        np.random.Generator(np.random.PCG64(int(stored["seed"]))), stored["clean"].shape
    )
    recipe = closed_form.RECIPES["code"]
    states: dict[int, Array] = {}
    final = sample(
        closed_form.net_a,
        stored["clean"],
        stored["mask"],
        recipe=recipe,
        noise=noise,
        callback=lambda i, state: states.__setitem__(i, state),
    )
    for row, i in enumerate(stored["steps"]):
        assert_close(states[int(i)], two_state.state_of(stored, row, recipe), "A", np.float32)
    assert_close(final, stored["final"], "A", np.float32)


def test_ema_masks(golden: Golden) -> None:
    stored = golden(f"ema_{TAG}")
    mask = stored["mask"]
    recipe = closed_form.RECIPES["code"]
    for i in range(1, 1000):
        held = mask + np.float32(recipe.ema(i - 1)) * (1 - mask)
        np.testing.assert_allclose(held, stored["after_iter"][i], atol=1e-6, err_msg=f"after iteration {i}")
    assert recipe.ema(999) == 1


def test_draws_of_torch_s_generator(golden: Golden) -> None:
    torch = pytest.importorskip("torch", reason="draws from torch's generator")
    stored = golden("torchseed_8x8_b2_epsA_code")
    torch.manual_seed(int(stored["seed"]))

    class TorchNoise:
        def initial(self, shape: tuple[int, ...]) -> Array:
            return np.asarray(torch.randn(shape).numpy())

        def background(self, i: int, shape: tuple[int, ...]) -> Array:
            return self.initial(shape)

        mask = posterior = background

    final = two_state.sample(
        closed_form.net_a, stored["clean"], stored["mask"], recipe=Recipe.authors(), noise=TorchNoise()
    )
    assert_close(final, stored["final"], "A", np.float32)
