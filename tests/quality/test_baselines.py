"""Baselines change what is under the label and nothing else."""

import numpy as np
import pytest

from stage_rt.quality.baselines import BASELINES
from stage_rt.quality.baselines.textures import perlin


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A surface, two labels of which one touches the border, and another surface."""
    rng = np.random.default_rng(0)
    photo, other = (rng.integers(60, 200, (60, 90, 3)).astype(np.uint8) for _ in range(2))
    label = np.zeros((60, 90), dtype=bool)
    label[20:30, 40:60] = label[55:60, 0:9] = True
    return photo, label, other


@pytest.mark.parametrize("name", BASELINES)
def test_only_the_label_is_painted_and_the_same_seed_paints_the_same(name: str) -> None:
    photo, label, other = scene()
    before = photo.copy()
    painted = BASELINES[name](photo, label, other, np.random.default_rng(1))
    assert painted.dtype == np.uint8
    assert painted.shape == photo.shape
    np.testing.assert_array_equal(photo, before)
    np.testing.assert_array_equal(painted[~label], photo[~label])
    assert (painted[label] != photo[label]).any(axis=1).mean() > 0.5
    again = BASELINES[name](photo, label, other, np.random.default_rng(1))
    np.testing.assert_array_equal(painted, again)
    assert (BASELINES[name](photo, label, other, np.random.default_rng(2)) != painted).any()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", [(1, 1), (60, 90), (2, 90)])
def test_labels_of_any_size_are_painted(name: str, shape: tuple[int, int]) -> None:
    photo, _, other = scene()
    label = np.zeros((60, 90), dtype=bool)
    label[: shape[0], : shape[1]] = True
    assert BASELINES[name](photo, label, other, np.random.default_rng(0)).shape == photo.shape


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_label_as_thin_as_a_crack_is_painted(name: str, width: int) -> None:
    photo, _, other = scene()
    label = np.zeros((60, 90), dtype=bool)
    label[30 : 30 + width, 10:80] = True
    painted = [BASELINES[name](photo, label, other, np.random.default_rng(seed)) for seed in range(4)]
    changed = [np.abs(one[label].astype(int) - photo[label]).max(axis=1) > 8 for one in painted]
    assert np.mean(changed) > 0.5


def test_cutpaste_pastes_a_part_of_the_photograph() -> None:
    photo, label, other = scene()
    photo[:] = 120
    painted = BASELINES["cutpaste"](photo, label, other, np.random.default_rng(0))
    assert len(np.unique(painted[label], axis=0)) == 1


def test_poisson_blending_meets_the_photograph_at_the_outline() -> None:
    """On a flat photograph a flat patch disappears, whatever its shade."""
    photo, label, other = scene()
    photo[:], other[:] = 120, 30
    painted = BASELINES["nsa"](photo, label, other, np.random.default_rng(0))
    assert np.abs(painted.astype(int) - 120).max() <= 2


def test_gradient_noise_is_smooth_and_centred() -> None:
    noise = perlin((64, 64), 4, np.random.default_rng(0))
    assert abs(noise.mean()) < 0.1
    assert 0.4 < np.abs(noise).max() < 1
    assert np.abs(np.diff(noise, axis=1)).max() < 0.2
