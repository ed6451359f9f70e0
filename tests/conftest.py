"""Golden vectors: recorded from the authors' released code, in the repository or beside it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Golden = Callable[[str], dict[str, NDArray[Any]]]

FOLDER = Path(__file__).parent / "golden"
ELSEWHERE = "STAGE_RT_GOLDEN"


@pytest.fixture(scope="session")
def golden() -> Golden:
    """``golden(name)`` loads ``<name>.npz``; a test of a file that is nowhere is skipped."""

    def load(name: str) -> dict[str, NDArray[Any]]:
        for folder in (FOLDER, Path(os.environ.get(ELSEWHERE) or FOLDER)):
            path = folder / f"{name}.npz"
            if path.is_file():
                with np.load(path, allow_pickle=False) as arrays:
                    return {key: arrays[key] for key in arrays}
        pytest.skip(f"{name}.npz is too large for the repository: name its folder in {ELSEWHERE}")

    return load
