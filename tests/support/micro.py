"""A dataset and a preset small enough to train on in seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

from stage_rt.training.presets import Learned, Preset, Stage, Trials

MICRO = Preset(
    image_size=32,
    autoencoder=Learned(widths=(8, 16), layers=1, crop=16, stage=Stage(steps=6, batch=2, rate=1e-3)),
    unet_widths=(8, 16),
    unet_layers=1,
    attention=(1,),
    norm_groups=4,
    adapter_widths=(16, 16),
    tokens=2,
    context_dim=8,
    denoiser=Stage(steps=4, batch=2, rate=1e-3),
    guidance=Stage(steps=4, batch=2, rate=1e-3),
    calibration=Trials(pairs=2, calls=10),
    foreground_width=8,
    foreground=Stage(steps=3, batch=2, rate=1e-3),
)


def write_dataset(root: Path, side: int = 40, defects: int = 3) -> Path:
    """Six good photographs and ``defects`` of each of two defect types, grey, with masks."""
    rng = np.random.default_rng(0)
    for k in range(6):
        _save(root / "train" / "good" / f"{k}.png", rng.integers(90, 110, (side, side)))
    for kind, shade in (("dent", 20), ("spot", 230)):
        for k in range(defects):
            photo = rng.integers(90, 110, (side, side))
            mask = np.zeros((side, side))
            mask[10 + k : 18 + k, 12:20] = 255
            photo[mask > 0] = shade
            _save(root / "test" / kind / f"{k}.png", photo)
            _save(root / "ground_truth" / kind / f"{k}_mask.png", mask)
    return root


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
