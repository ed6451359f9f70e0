"""What a training reads of a data set before its crops."""

from pathlib import Path

import numpy as np
from micro import write_dataset
from PIL import Image

from stage_rt.images.layouts import datasets
from stage_rt.training.data import is_grey


def test_a_surface_without_colour_whose_defects_have_one_is_not_grey(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "part", defects=2)
    for n in range(20):
        Image.new("L", (40, 40), 100 + n).save(root / "train" / "good" / f"more{n}.png")
    assert is_grey(datasets(root)[0])
    rust = np.zeros((40, 40, 3), np.uint8)
    rust[10:20, 10:20] = 160, 70, 30
    Image.fromarray(rust).save(root / "test" / "spot" / "1.png")
    assert not is_grey(datasets(root)[0])
