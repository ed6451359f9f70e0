"""Closed-form stand-ins for UNet and adapter, and noise sources that serve recorded draws."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import Denoiser

Array = NDArray[Any]

RECIPES = {
    "code": Recipe.authors(),
    "paper": Recipe.paper(),
    "none": Recipe(name="none", only_intervals=()),
}


def net_a(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    """Bounded: the state stays below 7."""
    c = np.arange(x.shape[1], dtype=x.dtype).reshape(1, -1, 1, 1)
    if branch is Branch.AWARE:
        return (0.8 + 0.2 * mask) * (i / (i + 60)) * x + 0.3 * np.sin(x + 0.01 * i + 0.5 * c)
    return (1 - 0.3 * mask) * (i / (i + 80)) * x + 0.2 * np.cos(1.3 * x + 0.013 * i + 0.7 * c)


def net_b(x: Array, i: int, mask: Array, branch: Branch) -> Array:
    """No denoiser at all: the state grows to 58."""
    wave = np.sin if branch is Branch.AWARE else np.cos
    return np.asarray(wave(0.7 * x + 0.01 * i) * (0.5 + 0.5 * mask))


NETS: dict[str, Denoiser] = {"A": net_a, "B": net_b}


class RecordedNoise:
    """Draws stored in iteration order, served by network index."""

    def __init__(
        self, initial: Array, background: Sequence[Array], mask: Sequence[Array], posterior: Sequence[Array]
    ) -> None:
        self._initial, self._draws = initial, {"n1": background, "n2": mask, "n3": posterior}

    def initial(self, shape: tuple[int, ...]) -> Array:
        return self._served(self._initial, shape)

    def background(self, i: int, shape: tuple[int, ...]) -> Array:
        return self._draw("n1", i, shape)

    def mask(self, i: int, shape: tuple[int, ...]) -> Array:
        return self._draw("n2", i, shape)

    def posterior(self, i: int, shape: tuple[int, ...]) -> Array:
        return self._draw("n3", i, shape)

    def _draw(self, name: str, i: int, shape: tuple[int, ...]) -> Array:
        draws = self._draws[name]
        return self._served(draws[len(draws) - 1 - i], shape)

    @staticmethod
    def _served(values: Array, shape: tuple[int, ...]) -> Array:
        assert values.shape == shape
        return values


def recorded(arrays: dict[str, Array], dtype: type) -> RecordedNoise:
    """The draws of an ``in_8x8`` file."""
    names = ("x_T", "noise_img", "noise_mask", "noise_p")
    return RecordedNoise(*(arrays[name].astype(dtype) for name in names))


def streamed(generator: np.random.Generator, shape: tuple[int, ...], steps: int = 1000) -> RecordedNoise:
    """Draws taken in the authors' order from a NumPy generator: ``x_T``, then n1, n2, n3 an iteration."""
    one = (shape[0], 1, *shape[2:])

    def draw(size: tuple[int, ...]) -> Array:
        return generator.standard_normal(size, dtype=np.float32)

    initial = draw(shape)
    rounds = [(draw(shape), draw(one), draw(shape)) for _ in range(steps)]
    return RecordedNoise(initial, *zip(*rounds, strict=True))
