"""An engine without networks that darkens what is under the mask, and files for it to work on.

``idle`` says of a stream's number whether nothing is painted from it.

Run as a script it is the command line with that engine in place of the real one:
``python fake_engine.py DELAY MARK synth ENGINE ...``. Every step of the loop takes ``DELAY`` seconds; the
file ``MARK`` appears when painting begins.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from stage_rt.errors import BackendError
from stage_rt.recipe import Recipe
from stage_rt.run.job import Job
from stage_rt.run.watch import LOG, METRICS, PROMETHEUS, TIMES
from stage_rt.spec import EngineSpec, ModelSpec

PROMPT = "tile+hole"
WATCHED = (LOG, METRICS, PROMETHEUS, TIMES)


class Painted(NamedTuple):
    images: np.ndarray
    finite: np.ndarray


class FakeEngine:
    def __init__(
        self,
        *,
        channels=3,
        mask_rule="cover",
        poisoned=(),
        delay=0.0,
        mark=None,
        fingerprint="0" * 64,
        batch=4,
        steps=10,
        region=None,
        round_trip=None,
        defaults=None,
        idle=lambda stream: False,
    ):
        recipe = Recipe(name="test", steps=steps, ema_stop=2, only_intervals=(), mask_rule=mask_rule)
        model = ModelSpec(
            image_size=32,
            image_channels=channels,
            latent_size=8,
            latent_scale=1.0,
            tokens=1,
            context_dim=1,
            recipe=recipe,
            region=region,
            round_trip=round_trip,
            defaults=defaults or {},
            prompts={PROMPT: "a", "tile+crack": "a"},
        )
        self.spec = EngineSpec(
            model=model,
            backend="onnxruntime",
            library="none",
            library_version="0",
            devices=["cpu"],
            dtype="fp32",
            batch=[1, batch],
            graphs_fingerprint=fingerprint,
            files={},
        )
        self.prompts = list(model.prompts)
        self.batches: list[list[int]] = []
        self._poisoned = poisoned
        self._delay = delay
        self._mark = mark
        self._idle = idle
        self.closed = 0

    def close(self):
        self.closed += 1

    def paint(self, images, masks, *, prompt, noise, sampler, recipe, steps, progress, labels=None):
        self.batches.append(noise.samples.tolist())
        if self._mark is not None:
            self._mark.touch()
        for step in range(steps):
            time.sleep(self._delay)
            progress((step + 1) / steps)
        cell = self.spec.model.image_size // self.spec.model.latent_size
        mask = np.kron(masks, np.ones((1, 1, cell, cell), dtype=np.float32))
        texture = np.clip(noise.initial(images.shape) * 0.1 - 0.8, -1, 1)
        mask *= np.array([not self._idle(n) for n in noise.samples.tolist()])[:, None, None, None]
        finite = ~np.isin(noise.samples, self._poisoned)
        painted = images * (1 - mask) + texture * mask
        return Painted(np.where(finite[:, None, None, None], painted, np.nan).astype(np.float32), finite)


def photographs(folder: Path, count: int, size=(40, 30), *, mode="RGB", suffix=".png", seed=0) -> list[Path]:
    """Noise images ``000.png`` ... of ``size`` (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3)
    paths = [folder / f"{n:03d}{suffix}" for n in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert(mode).save(path)
    return paths


def labels(folder: Path, count: int, size=(40, 30)) -> list[Path]:
    """Masks ``000_mask.png`` ..., each with a rectangle of another place."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{n:03d}_mask.png" for n in range(count)]
    for n, path in enumerate(paths):
        label = np.zeros((size[1], size[0]), dtype=np.uint8)
        label[8 : 14 + n % 3, 10 + n % 7 : 20] = 255
        Image.fromarray(label).save(path)
    return paths


def opened(path: Path) -> Image.Image:
    """An image with its pixels in memory and its file closed."""
    with Image.open(path) as image:
        image.load()
        return image


def ten_pairs(folder: Path) -> Job:
    """A job of ten pairs of five photographs in ``folder / "normals"`` and four masks in ``folder / "masks"``."""
    return Job(
        normals=photographs(folder / "normals", 5),
        masks=labels(folder / "masks", 4),
        prompt=PROMPT,
        count=10,
        seed=7,
        composite=True,
        batch=4,
    )


def manifest(folder: Path) -> list[dict]:
    """The lines of a run's manifest."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by relative path, but for those that hold times or only save work."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if name not in WATCHED and path.name not in (".index", ".checks")
    }


def on_device(notify, *, sick: str) -> FakeEngine:
    """The engine of a worker that says which device it was given; that of the ``sick`` one cannot be loaded."""
    device = os.environ["CUDA_VISIBLE_DEVICES"]
    notify(f"on {device}")
    if device == sick:
        raise BackendError("CUDA failed: ECC")
    return FakeEngine()


def command(inputs: Path, run: Path, count: int, *options: str, delay: float = 0) -> list[str]:
    """`stage-rt synth` as this script, on the ``normals`` and ``masks`` in ``inputs``; the mark is beside them."""
    return [
        *(sys.executable, __file__, str(delay), str(inputs / "painting"), "synth", "engine"),
        *("--normals", str(inputs / "normals"), "--masks", str(inputs / "masks"), "--prompt", PROMPT),
        *("--count", str(count), "-o", str(run), *options),
    ]


def stand_in(engine: FakeEngine) -> ModuleType:
    """A `stage_rt.loading` that loads ``engine`` whatever the folder."""
    module = ModuleType("stage_rt.loading")
    module.load = lambda folder, **options: engine  # type: ignore[attr-defined]
    return module


if __name__ in ("__main__", "__mp_main__"):
    # In a worker that the command starts as well, which runs this script by its second name.
    engine = FakeEngine(delay=float(sys.argv[1]), mark=Path(sys.argv[2]), batch=2)
    sys.modules["stage_rt.loading"] = stand_in(engine)
    import stage_rt.folders

    stage_rt.folders.read_engine = lambda folder: engine.spec

if __name__ == "__main__":
    from stage_rt.cli import main

    main(sys.argv[3:])
