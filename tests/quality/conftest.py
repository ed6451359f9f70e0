"""A small data set and a lesson of three batches."""

from pathlib import Path

import numpy as np
import pytest
from micro import write_dataset
from PIL import Image

from stage_rt.quality import trials
from stage_rt.quality.learning import Lesson
from stage_rt.quality.sizes import SIZES, Size


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SIZES, "cpu", Size(32, 4, 10, Lesson("unet", 3, 4, 1e-3, 16)))
    monkeypatch.setattr(trials, "cores", lambda: 1)
    root = write_dataset(tmp_path / "part", defects=6)
    (root / "test" / "good").mkdir()
    surface = np.random.default_rng(9).integers(90, 110, (40, 40)).astype(np.uint8)
    Image.fromarray(surface).save(root / "test" / "good" / "0.png")
    return root
