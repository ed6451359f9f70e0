"""Do the pairs help? ``python benchmarks/labels_help.py ENGINE [--json PATH]``.

A small U-Net learns to segment the demo's defects from 8 rendered images a type, which stand for the real ones, and
60 good ones, alone and with 70 pairs a type more: of the engine, of CutPaste (Li et al., CVPR 2021: a patch of the
photograph pasted under the label), of Perlin textures (noise blended in, as DRAEM, ICCV 2021, does with pictures from
elsewhere), or of more rendered images. Pairs share photographs and labels.
Mean IoU over the three types on 40 held-out rendered images a type, on surface that training never saw. This says
whether labels do harm; it is not the paper's protocol.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from options import engine_parser, keep
from painting import method_of, painted
from skimage import data
from torch import Tensor, nn

import stage_rt
from stage_rt.machine import cpu_name
from stage_rt.quality.baselines.textures import perlin
from stage_rt.recipe import Recipe
from stage_rt.training.loop import Device

sys.path.append(str(Path(__file__).parents[1] / "models"))
from make_demo_data import DEFECTS, SEEN_COLUMNS, crop

REAL, GOOD, PAIRS, HELD_OUT, STEPS, BATCH = 8, 60, 70, 40, 900, 16
Scenes = tuple[np.ndarray, np.ndarray]


def levels(greys: Any) -> np.ndarray:
    return np.rint(255 * np.stack(greys)).astype(np.uint8)


def rendered(kind: str, count: int, photo: np.ndarray, rng: np.random.Generator) -> Scenes:
    drawn = [DEFECTS[kind](crop(photo, rng), rng) for _ in range(count)]
    return levels([grey for grey, _ in drawn]), np.stack([mask for _, mask in drawn])


def cut_paste(good: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Under each label another part of its photograph, a little brighter or darker."""
    result = good.copy()
    for image, label in zip(result, labels, strict=True):
        shift = rng.integers(20, 108, 2)
        patch = np.roll(image, shift, (0, 1)).astype(np.float64) * rng.uniform(0.6, 1.4)
        image[label] = np.clip(patch, 0, 255).astype(np.uint8)[label]
    return result


def perlin_textures(good: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Under each label Perlin noise of some mean, contrast and grain, blended with the photograph."""
    result = good.copy()
    for image, label in zip(result, labels, strict=True):
        noise = perlin(label.shape, int(2 ** rng.integers(3, 6)), rng)
        texture = rng.uniform(0, 255) + rng.uniform(20, 120) * noise
        share = rng.uniform(0.2, 1.0)
        image[label] = np.clip((1 - share) * image + share * texture, 0, 255).astype(np.uint8)[label]
    return result


def block(channels: int, out: int) -> nn.Module:
    layers = [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class UNet(nn.Module):
    """Three levels, 16 to 64 channels, one class a defect type and one for none."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(1, 16), block(16, 32), block(32, 64)])
        self.up = nn.ModuleList([block(64 + 32, 32), block(32 + 16, 16)])
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(x if not kept else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for level, skip in zip(self.up, kept[-2::-1], strict=True):
            grown = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
            x = level(torch.cat([grown, skip], 1))
        return self.head(x)


def tensors(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(images).float() / 127.5 - 1)[:, None]


def trained(images: np.ndarray, classes: np.ndarray, seed: int) -> UNet:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = UNet(len(DEFECTS) + 1).to(memory_format=torch.channels_last).train()
    device = Device.best()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    for _ in range(STEPS):
        pick = rng.integers(0, len(images), BATCH)
        x, y = tensors(images[pick]), torch.from_numpy(classes[pick]).long()
        for axis in (-1, -2):
            if rng.random() < 0.5:
                x, y = x.flip(axis), y.flip(axis)
        optimizer.zero_grad()
        with device.precision():
            scores = network(x * rng.uniform(0.9, 1.1))
        nn.functional.cross_entropy(scores.float(), y).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def mean_iou(network: UNet, images: np.ndarray, classes: np.ndarray) -> list[float]:
    found = np.concatenate([network(tensors(part)).argmax(1).numpy() for part in np.array_split(images, 8)])
    return [
        float(((found == c) & (classes == c)).sum() / ((found == c) | (classes == c)).sum())
        for c in range(1, len(DEFECTS) + 1)
    ]


def sources(
    engine: stage_rt.engine.Engine, seed: int, steps: int, *, authors: bool
) -> dict[str, list[Scenes]]:
    """By name, 70 images a type with their labels; all but ``more real`` on the same photographs and labels."""
    seen = data.brick()[:, :SEEN_COLUMNS]
    made: dict[str, list[Scenes]] = {"real only": []}
    for kind in DEFECTS:
        rng = np.random.default_rng([seed, 7])
        good = levels([crop(seen, rng) for _ in range(PAIRS)])
        labels = np.stack([DEFECTS[kind](np.zeros((128, 128)), rng)[1] for _ in range(PAIRS)])
        made.setdefault("ours", []).append((paint(engine, kind, good, labels, seed, steps, None), labels))
        if authors:
            pairs = paint(engine, kind, good, labels, seed, steps, Recipe.authors())
            made.setdefault("ours, authors", []).append((pairs, labels))
        made.setdefault("CutPaste", []).append((cut_paste(good, labels, rng), labels))
        made.setdefault("Perlin", []).append((perlin_textures(good, labels, rng), labels))
        made.setdefault("more real", []).append(rendered(kind, PAIRS, seen, rng))
    return made


def paint(
    engine: stage_rt.engine.Engine,
    kind: str,
    good: np.ndarray,
    labels: np.ndarray,
    seed: int,
    steps: int,
    recipe: Recipe | None,
) -> np.ndarray:
    """Pairs of the engine as a user starts it, or of a recipe without refill."""
    return painted(engine, good, labels, method_of(engine, f"brick+{kind}", steps, recipe), seed).images


def main(options: argparse.Namespace) -> None:
    engine = stage_rt.load(options.engine)
    photo = data.brick()
    rng = np.random.default_rng(99)
    held_out = [rendered(kind, HELD_OUT, photo[:, SEEN_COLUMNS:], rng) for kind in DEFECTS]
    test_images = np.concatenate([images for images, _ in held_out])
    test_classes = np.concatenate([masks * (c + 1) for c, (_, masks) in enumerate(held_out)])
    result: dict[str, Any] = {"machine": cpu_name(), "steps": options.steps, "rows": []}
    authors = not options.sources or "ours, authors" in options.sources
    for seed in range(options.seeds):
        rng = np.random.default_rng([seed, 1])
        real = [rendered(kind, REAL, photo[:, :SEEN_COLUMNS], rng) for kind in DEFECTS]
        good = levels([crop(photo[:, :SEEN_COLUMNS], rng) for _ in range(GOOD)])
        for name, pairs in sources(engine, seed, options.steps, authors=authors).items():
            if options.sources and name not in options.sources:
                continue
            parts = [(images, masks * (c % 3 + 1)) for c, (images, masks) in enumerate([*real, *pairs])]
            images = np.concatenate([good, *(images for images, _ in parts)])
            classes = np.concatenate([np.zeros_like(good), *(classes for _, classes in parts)])
            each = mean_iou(trained(images, classes, seed), test_images, test_classes)
            row = {"source": name, "seed": seed, "miou": round(float(np.mean(each)), 4)}
            result["rows"].append(row | {"iou": dict(zip(DEFECTS, np.round(each, 3).tolist(), strict=True))})
            print(result["rows"][-1], flush=True)
            keep(result, options.json)


if __name__ == "__main__":
    parser = engine_parser(__doc__)
    parser.add_argument("--sources", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    main(parser.parse_args())
