"""FAST beside STAGE on one frozen UNet: ``python benchmarks/fast.py MODEL DATA OUT [--json PATH]``.

MODEL is one of STAGE's, as ``models/demo``, and DATA the object's folder it was trained on
(``models/make_demo_data.py`` makes the demo's). FAST's foreground networks and adapters are trained on MODEL's UNet
and contexts, exported and built under OUT; a call that was cut off goes on where it was. Then each paints under the
same labels on surface that training never saw, once, and ``OUT/sheet.png`` shows all of it. Measured are, of every
pair, the share of its label that was painted and of what lies around it (`stage_rt.images.labels`), the change
under the label in grey levels, and how far the painted defects look from rendered ones
(`stage_rt.training.calibration.distance`; rendered against others rendered is what there is to reach).
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labels import SEED, scenes
from make_demo_data import DEFECTS
from options import keep
from painting import painted
from PIL import Image, ImageDraw

import stage_rt
from stage_rt.engine import Engine
from stage_rt.engines.build import build
from stage_rt.export.graphs import export
from stage_rt.images.labels import measure
from stage_rt.machine import cpu_name
from stage_rt.method import Method
from stage_rt.names import SamplerName
from stage_rt.recipe import Recipe
from stage_rt.run.job import Job, resolve
from stage_rt.training import data, fast
from stage_rt.training.calibration import appearance, distance
from stage_rt.training.denoiser import Contexts, Latents
from stage_rt.training.folder import load_model, save_model
from stage_rt.training.loop import Device
from stage_rt.training.presets import PRESETS

WAYS: tuple[tuple[SamplerName, int], ...] = (
    ("stage", 50),
    ("fast", 50),
    ("fast-published", 50),
    ("stage", 10),
    ("fast", 10),
    ("fast-published", 10),
)
MARGIN = 20
"""Pixels of a row's caption on the sheet."""


def train(model: Path, root: Path, folder: Path, steps: int | None) -> None:
    """A model of FAST's in ``folder``, with the UNet, autoencoder and first contexts of a model of STAGE's."""
    base, device, preset = load_model(model), Device.best(), PRESETS["tiny"]
    preset = replace(preset, foreground=replace(preset.foreground, steps=steps or preset.foreground.steps))
    examples = data.load(data.find(root), base.spec, seed=0, turn=True, notify=print)
    latents = Latents(device.place(base.vae), examples, base.spec.recipe, device)
    contexts = Contexts(len(examples.names), base.spec.tokens, base.spec.context_dim, torch.Generator())
    contexts.table.data = torch.stack([base.contexts[name] for name in examples.names])
    spec = base.spec.model_copy(
        update={"system": "fast", "recipe": Recipe.fast(), "defaults": {}, "round_trip": None}
    )
    work = folder.with_name(f"{folder.name}.training")
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    unet = device.place(base.unet.requires_grad_(False))
    start = time.perf_counter()

    def report(stage: str, step: int, steps: int, loss: float | None) -> None:
        if step % 100 == 0:
            print(f"{stage} {step}/{steps} {loss:.4f} {time.perf_counter() - start:.0f} s", flush=True)

    parts = fast.train(
        *(unet, contexts.to(device.device), latents, spec, preset, 0, work, device),
        report=report,
    )
    learned = {name: contexts.table[k].detach().cpu() for k, name in enumerate(examples.names)}
    save_model(replace(base, adapters=parts, contexts=learned, spec=spec), folder)


def engine_of(model: Path, folder: Path) -> Engine:
    """The engine of a model, built under ``folder`` if it is not there."""
    if not (folder / "engine").exists():
        export(model, folder / "graphs", dtype="fp32")
        build(folder / "graphs", folder / "engine", backend="onnxruntime", batch=[8])
    return stage_rt.load(folder / "engine")


def method(engine: Engine, prompt: str, sampler: SamplerName, steps: int) -> Method:
    """How a user paints, every pair kept as it comes."""
    job = Job([], [], prompt, 1, 0, composite=True, batch=1, sampler=sampler, steps=steps, min_fill=0.0)
    return resolve(job, engine.spec.model)


def looks(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array([appearance(image[None], label) for image, label in zip(images, labels, strict=True)])


def row(good: np.ndarray, shown: np.ndarray, labels: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """The figures of pictures uint8 ``[N, H, W]``; ``real`` are looks of rendered defects."""
    each = [
        measure(*(np.repeat(picture[..., None], 3, axis=2) for picture in pair), label, good.shape[1] // 2)
        for *pair, label in zip(good, shown, labels, strict=True)
    ]
    fills = [one.fill for one in each]
    return {
        "fill": round(float(np.mean(fills)), 3),
        "weakest": round(min(fills), 3),
        "contrast": round(float(np.mean([one.contrast for one in each])), 1),
        "looks": round(distance(looks(shown, labels), real), 2),
    }


def sheet(rows: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Every row's pictures side by side under its caption."""
    count, side, _ = rows[0][1].shape
    canvas = Image.new("L", (count * side, len(rows) * (side + MARGIN)), 255)
    draw = ImageDraw.Draw(canvas)
    for n, (caption, pictures) in enumerate(rows):
        top = n * (side + MARGIN)
        draw.text((4, top + 4), caption, fill=0)
        for k, picture in enumerate(pictures):
            canvas.paste(Image.fromarray(picture), (k * side, top + MARGIN))
    canvas.save(path)


def main(options: argparse.Namespace) -> None:
    out: Path = options.out
    if not (out / "model").exists():
        train(options.model, options.data, out / "model", options.steps)
    engines = {
        "stage": engine_of(options.model, out / "stage"),
        "fast": engine_of(out / "model", out / "fast"),
    }
    result: dict[str, Any] = {
        "machine": cpu_name(),
        "pairs_a_type": options.count,
        "training_steps_a_type": options.steps or PRESETS["tiny"].foreground.steps,
        "rows": [],
    }
    shown: list[tuple[str, np.ndarray]] = []
    for kind in DEFECTS:
        good, rendered, labels = scenes(kind, options.count)
        real = looks(rendered, labels)
        _, others, their = scenes(kind, 2 * options.count)
        shown.append((f"{kind}: rendered", rendered))
        result["rows"].append(
            {
                "type": kind,
                "way": "rendered",
                **row(good, rendered, labels, real),
                "looks": round(distance(looks(others, their)[options.count :], real), 2),
            }
        )
        for sampler, steps in WAYS:
            engine = engines["stage" if sampler == "stage" else "fast"]
            start = time.perf_counter()
            made = painted(engine, good, labels, method(engine, f"brick+{kind}", sampler, steps), SEED)
            seconds = (time.perf_counter() - start) / len(good)
            figures = row(good, made.images, labels, real)
            # As a run measures it, before the paint is put into the photograph.
            figures["fill"] = round(float(np.mean([each.figures.fill for each in made.results])), 3)
            figures["weakest"] = round(min(each.figures.fill for each in made.results), 3)
            leak = round(float(np.mean([each.figures.leak for each in made.results])), 3)
            result["rows"].append(
                {
                    "type": kind,
                    "way": sampler,
                    "calls": steps,
                    **figures,
                    "leak": leak,
                    "seconds": round(seconds, 2),
                }
            )
            print(result["rows"][-1], flush=True)
            shown.append((f"{kind}: {sampler}, {steps} calls", made.images))
            keep(result, options.json)
    sheet(shown, out / "sheet.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=8, help="pairs a type and way")
    parser.add_argument("--steps", type=int, help="of the training, a type")
    parser.add_argument("--json", type=Path)
    main(parser.parse_args())
