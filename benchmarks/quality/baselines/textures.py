"""Where DRAEM and GLASS take what is not of the surface: gradient noise, or another photograph estranged.

Both papers use the Describable Textures Dataset, which nobody ships with an engine.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

GRIDS = (3, 6)
"""Logarithms to base 2 of the cells of a noise lattice, first and past the last."""


def estranged(
    other: NDArray[np.uint8], shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float64]:
    """A texture float64 ``[H, W, 3]``: three of DRAEM's augmentations of another photograph, or noise (half each)."""
    if rng.random() < 0.5:
        cells = int(2 ** rng.integers(*GRIDS))
        noise = rng.uniform(0, 255) + rng.uniform(20, 120) * perlin((shape[0], shape[1]), cells, rng)
        return np.repeat(np.clip(noise, 0, 255)[..., None], 3, axis=2)
    picture = Image.fromarray(other).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    ways = [
        lambda image: ImageOps.posterize(image, int(rng.integers(2, 5))),
        lambda image: ImageOps.solarize(image, int(rng.integers(32, 128))),
        ImageOps.invert,
        ImageOps.equalize,
        ImageOps.autocontrast,
        lambda image: image.rotate(float(rng.uniform(-45, 45)), Image.Resampling.BILINEAR),
        lambda image: ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.5, 1.5))),
    ]
    for way in rng.choice(len(ways), 3, replace=False):
        picture = ways[way](picture)
    return np.asarray(picture, dtype=np.float64)


def perlin(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gradient noise (Perlin, 1985) of ``cells`` lattice cells a side, about -0.7 to 0.7, ``[H, W]``."""
    angle = rng.uniform(0, 2 * np.pi, (cells + 1, cells + 1))
    y, x = (np.linspace(0, cells, length, endpoint=False) for length in shape)
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    v, u = (y - row)[:, None], (x - column)[None]

    def corner(down: int, right: int) -> NDArray[np.float64]:
        turn = angle[np.ix_(row + down, column + right)]
        return np.asarray(np.sin(turn) * (v - down) + np.cos(turn) * (u - right))

    top = corner(0, 0) + _fade(u) * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + _fade(u) * (corner(1, 1) - corner(1, 0))
    return np.asarray(top + _fade(v) * (bottom - top))


def _fade(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(t**3 * (t * (6 * t - 15) + 10))


def blended(
    photo: NDArray[np.uint8], texture: NDArray[np.float64], label: NDArray[np.bool_], opacity: float
) -> NDArray[np.uint8]:
    """``photo`` with ``texture`` under its label, so opaque."""
    mixed = (1 - opacity) * photo + opacity * texture
    result = photo.copy()
    result[label] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)[label]
    return result
