"""The package ``defect-synthesis``: procedural scratches, cracks, stains, pits and burns, with labels of its own.

It draws anywhere on the part: of a crack of 60 to 200 px that wanders and forks only specks are left inside a label
that is as thin as a crack.
"""

import random
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import InputError
from stage_rt.images.objects import find_object

GENERATORS = {
    "crack": "CrackGenerator",
    "scratch": "ScratchGenerator",
    "stain": "StainGenerator",
    "hole": "PittingGenerator",
    "pit": "PittingGenerator",
    "burn": "BurnGenerator",
}
"""Its generators by what the name of a type holds; for other types any of them."""
TRIES = 8
"""Of a pit that falls on the outline of the part nothing may be left."""

Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def release() -> str:
    """The version of the package, or nothing where it is not installed as one."""
    try:
        return version("defect-synthesis")
    except PackageNotFoundError:
        return ""


def painter(kind: str) -> Callable[..., Pair]:
    """What paints a pair of a type with the package, on the part in the photograph.

    Raises:
        InputError: the package is not installed.
    """
    try:
        package = import_module("defect_synthesis")
    except ImportError:
        raise InputError(
            "source `procedural` is the package defect-synthesis, which is not installed: "
            "`pip install --no-deps defect-synthesis`"
        ) from None
    fitting = [generator for word, generator in GENERATORS.items() if word in kind.lower()]

    def paint(
        photo: NDArray[np.uint8], label: NDArray[np.bool_], other: NDArray[np.uint8], rng: np.random.Generator
    ) -> Pair:
        random.seed(int(rng.integers(2**32)))
        # It draws from NumPy's global generator too.
        np.random.seed(int(rng.integers(2**32)))
        part = find_object(photo).astype(np.uint8) * 255
        result: Any = None
        for _ in range(TRIES):
            name = fitting[0] if fitting else str(rng.choice(sorted(set(GENERATORS.values()))))
            result = getattr(package, name)().apply(photo.copy(), roi_mask=part)
            if (result.anomaly_mask > 0).any():
                break
        return np.asarray(result.image, dtype=np.uint8), np.asarray(result.anomaly_mask) > 0

    return paint
