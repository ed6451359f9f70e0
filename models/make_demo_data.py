"""Write the demo's data: crops of a CC0 photograph of bricks with rendered defects and their masks.

Usage: ``python models/make_demo_data.py FOLDER`` writes ``FOLDER/brick`` in the MVTec AD layout for training,
from the left three quarters of the photograph, and ``FOLDER/inputs`` (good crops and masks for ``stage-rt
demo``) from the right quarter, which training never sees. The photograph is ``skimage.data.brick()`` (CC0, from
CC0Textures), 512x512 grey. Everything follows from the seed.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import data

SIDE = 128
SEED = 20261123
TRAIN_GOOD, TEST_GOOD, PER_DEFECT = 240, 24, 120
SEEN_COLUMNS = 384
INPUT_SIDE, INPUTS = 192, 4

Grey = NDArray[np.float64]
Mask = NDArray[np.bool_]


def crop(photo: NDArray[np.uint8], rng: np.random.Generator, size: int = SIDE) -> Grey:
    """A random window of 110..170 px, resized to ``size``, randomly mirrored, with a small change of exposure."""
    side = int(rng.integers(110, min(170, *photo.shape) + 1))
    top, left = rng.integers(0, np.array(photo.shape) - side + 1)
    window = Image.fromarray(photo[top : top + side, left : left + side]).resize(
        (size, size), Image.Resampling.LANCZOS
    )
    grey = np.asarray(window, dtype=np.float64) / 255
    for axis in (0, 1):
        if rng.random() < 0.5:
            grey = np.flip(grey, axis)
    return np.clip(grey * rng.uniform(0.9, 1.12), 0, 1)


def smooth_noise(rng: np.random.Generator, sigma: float) -> Grey:
    """Gaussian-filtered noise of unit deviation, ``[SIDE, SIDE]``."""
    field = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), sigma, mode="wrap")
    return field / field.std()


def blob(rng: np.random.Generator, radius: float, roughness: float) -> Mask:
    """One connected blob of about ``radius`` px with a wavy outline, clear of the border."""
    margin = radius + 6
    centre = rng.uniform(margin, SIDE - margin, 2)
    y, x = np.indices((SIDE, SIDE)) - centre[:, None, None]
    angle = rng.uniform(0, np.pi)
    stretch = rng.uniform(1.0, 1.5)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    inside = np.hypot(u / stretch, v * stretch) < radius * (1 + roughness * smooth_noise(rng, 5))
    labels, count = ndimage.label(inside)
    if count > 1:
        inside = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return ndimage.binary_fill_holes(inside)


def crack(grey: Grey, rng: np.random.Generator) -> tuple[Grey, Mask]:
    """A dark wandering line of 2..4 px, with a fork half of the time."""
    drawing = Image.new("L", (SIDE * 4, SIDE * 4))
    pen = ImageDraw.Draw(drawing)
    heading = rng.uniform(0, 2 * np.pi)
    start = rng.uniform(SIDE * 0.3, SIDE * 0.7, 2)
    width = rng.uniform(2.0, 3.5)
    walk(pen, start, heading, rng.uniform(25, 60), width, rng)
    walk(pen, start, heading + np.pi + rng.normal(0, 0.3), rng.uniform(15, 45), width, rng)
    if rng.random() < 0.5:
        walk(
            pen,
            start,
            heading + rng.choice([-1, 1]) * rng.uniform(0.6, 1.2),
            rng.uniform(15, 30),
            width * 0.7,
            rng,
        )
    cover = np.asarray(drawing.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64) / 255
    dark = grey * rng.uniform(0.15, 0.3)
    lit = np.roll(cover, 1, (0, 1)) * (1 - cover) * 0.12
    return np.clip(grey * (1 - cover) + dark * cover + lit, 0, 1), ndimage.binary_dilation(cover > 0.15)


def walk(
    pen: ImageDraw.ImageDraw,
    start: Grey,
    heading: float,
    length: float,
    width: float,
    rng: np.random.Generator,
) -> None:
    """Draw one arm of a crack at four times the size, thinning towards its end."""
    point = start.copy()
    travelled = 0.0
    while travelled < length:
        heading += rng.normal(0, 0.28)
        step = rng.uniform(2.5, 5)
        following = point + step * np.array([np.cos(heading), np.sin(heading)])
        taper = max(0.45, 1 - 0.6 * travelled / length)
        line = [tuple(4 * point), tuple(4 * following)]
        pen.line(line, fill=255, width=max(3, round(4 * width * taper)), joint="curve")
        point, travelled = following, travelled + step


def hole(grey: Grey, rng: np.random.Generator) -> tuple[Grey, Mask]:
    """A pit: dark inside, deepest in the upper left, a lit rim in the lower right."""
    mask = blob(rng, rng.uniform(6, 12), 0.12)
    depth = ndimage.distance_transform_edt(mask)
    wall = np.clip(depth / 3.5, 0, 1)
    slope = np.array(np.gradient(ndimage.gaussian_filter(mask.astype(np.float64), 1.5)))
    light = -(slope[0] + slope[1]) * 0.8
    floor = rng.uniform(0.03, 0.1) + 0.015 * smooth_noise(rng, 1.5)
    pitted = grey * (1 - wall) + floor * wall + np.clip(light, -0.15, 0.25) * mask
    return np.clip(np.where(mask, pitted, grey), 0, 1), ndimage.binary_dilation(mask)


def stain(grey: Grey, rng: np.random.Generator) -> tuple[Grey, Mask]:
    """A pale salt bloom: cloudy, lighter than brick and mortar, the surface faintly visible through it."""
    mask = blob(rng, rng.uniform(11, 22), 0.16)
    edge = np.clip(ndimage.distance_transform_edt(mask) / 4, 0, 1)
    opacity = edge * np.clip(0.8 + 0.1 * smooth_noise(rng, 3), 0.5, 0.95)
    pale = rng.uniform(0.8, 0.92) + 0.05 * smooth_noise(rng, 1.2)
    return np.clip(grey * (1 - opacity) + pale * opacity, 0, 1), mask


DEFECTS: dict[str, Callable[[Grey, np.random.Generator], tuple[Grey, Mask]]] = {
    "crack": crack,
    "hole": hole,
    "stain": stain,
}


def save(path: Path, grey: Grey | Mask) -> None:
    """Write values in 0..1 as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(grey * 255.0).astype(np.uint8)).save(path)


def write_training_data(root: Path, photo: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Good crops, and crops with each defect and its mask."""
    for split, count in (("train", TRAIN_GOOD), ("test", TEST_GOOD)):
        for k in range(count):
            save(root / split / "good" / f"{k:03}.png", crop(photo, rng))
    for kind, render in DEFECTS.items():
        for k in range(PER_DEFECT):
            grey, mask = render(crop(photo, rng), rng)
            save(root / "test" / kind / f"{k:03}.png", grey)
            save(root / "ground_truth" / kind / f"{k:03}_mask.png", mask)


def write_inputs(root: Path, photo: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Good crops larger than the model's images, and masks of that size."""
    for k in range(INPUTS):
        save(root / "normals" / f"{k:03}.png", crop(photo, rng, INPUT_SIDE))
    for kind, render in DEFECTS.items():
        for k in range(INPUTS):
            _, mask = render(np.zeros((SIDE, SIDE)), rng)
            large = Image.fromarray(mask).resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.NEAREST)
            save(root / "masks" / kind / f"{k:03}.png", np.asarray(large))


def main(folder: Path) -> None:
    """Write both parts under ``folder``."""
    photo = data.brick()
    rng = np.random.default_rng(SEED)
    write_training_data(folder / "brick", photo[:, :SEEN_COLUMNS], rng)
    write_inputs(folder / "inputs", photo[:, SEEN_COLUMNS:], rng)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
