"""The training stages in order, then STAGE's calibration, from a folder of photographs to a model folder."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from pydantic import JsonValue
from torch import Tensor, nn

from stage_rt.errors import InputError, amount
from stage_rt.files import LONGEST_NAME, locked, staged_for, write_atomic
from stage_rt.images.layouts import as_text
from stage_rt.names import PresetName, SystemName, ViewName
from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import LONGEST_PROMPT, ModelSpec, RegionView

from . import autoencoder, calibration, data, denoiser, fast, guidance, holdout
from .adapter import MaskGuidanceAdapter
from .folder import Autoencoder, Model, save_model
from .loop import Device, Report, fit, generator
from .plots import plot_losses
from .presets import PRESETS, Learned, Preset
from .prompts import fit_prompts
from .trial import Networks

TRAINED = ("autoencoder", "denoiser", "guidance", "foreground")
FINEST = 2
"""Pixels of a photograph that a latent cell of a crop is, at the least."""
SLENDER = 4.0
"""Defects more than so many times as long as wide are learned and painted in pieces."""
UNJUDGED = (
    "this model will have seen every labelled photograph, so that `stage-rt evaluate` has none to test its pairs on: "
    "to measure whether they help, train another with `--hold-out 0.67`"
)
_JOB = "job.json"
_DATA = "data"
WEIGHT_DTYPES: dict[Literal["fp32", "fp16"], torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def train(
    root: Path,
    folder: Path,
    *,
    preset: PresetName = "tiny",
    system: SystemName = "stage",
    view: ViewName = "region",
    turn: bool = True,
    rim: bool = False,
    hold_out: float = 0.0,
    seed: int = 0,
    dtype: Literal["fp32", "fp16"] = "fp32",
    report: Report,
    say: Callable[[str], None],
    notify: Callable[[str], None],
) -> None:
    """Train a model on an MVTec-layout folder and write it to ``folder``.

    The state of the training lies in ``<folder>.training`` until the model is written; the same call goes on
    from there. ``losses.png`` and ``reconstructions.png`` stay beside the weights in ``folder``.

    Args:
        root: one object's folder, or a folder of such folders.
        folder: model folder to write; must not exist.
        preset: size of the networks and length of the stages.
        system: whose adapters are trained on the UNet, STAGE's or FAST's (`stage_rt.training.fast`). Nothing is
            calibrated for FAST: there is no guidance to choose, and no pair is painted again by default.
        view: train on crops around defects at their own scale, or on whole photographs.
        turn: crops may be turned by quarters; not where up and down matter.
        rim: measure how defects fade out beyond their labels, for pairs that do (`stage_rt.training.rim`).
        hold_out: share of the labelled defects of every type that training does not see, from 0 to below 1; the
            model's provenance lists them.
        seed: seed of every random draw.
        dtype: dtype of the weights on disk.
        report: called after every step.
        say: called with one line a stage.
        notify: called with one sentence per thing that the user should know of the files.

    Raises:
        InputError: ``folder`` exists or is being trained by another process, ``hold_out`` is out of range, ``rim`` is
            asked of FAST, or what lies where the training keeps its state belongs to another training or to none.
        DatasetError: ``root`` cannot be trained on.
        ModelError: a loss became non-finite.
        StageError: the disk of ``folder`` is full or failed.
    """
    _require(folder, system, hold_out, rim=rim)
    whole = data.find(root)
    with _alone(folder):
        if not hold_out:
            notify(UNJUDGED)
        sizes, device = PRESETS[preset], Device.best()
        found, held_out = holdout.hold_out(
            whole,
            hold_out,
            seed,
            progress=lambda share: report("comparing", int(100 * share), 100, None),
        )
        data.tell_few(found, notify)
        channels: Literal[1, 3] = 1 if all(data.is_grey(dataset) for dataset in found) else 3
        spec = _spec(sizes, system, view, channels, [f"{d.name}+{kind}" for d in found for kind in d.defects])
        examples = data.load(
            found,
            spec,
            seed=seed,
            turn=turn,
            notify=notify,
            progress=lambda share: report("reading", int(100 * share), 100, None),
        )
        work = _open_work(folder, _job(examples, preset, system, view, seed, turn=turn))
        say(
            f"{len(examples.images)} {'photographs' if view == 'whole' else 'crops'} "
            f"({int((examples.prompt > 0).sum())} with defects), {amount(len(held_out), 'photograph')} held out, "
            f"{amount(len(examples.names) - 1, 'prompt')}, {amount(channels, 'channel')}, {sizes.image_size} px, "
            f"on {device.device}"
        )
        torch.manual_seed(seed)
        vae = _train_autoencoder(examples, sizes.autoencoder, seed, work, device, report)
        autoencoder.save_reconstructions(vae, examples, device, work / "reconstructions.png")
        latents = denoiser.Latents(vae, examples, spec.recipe, device)
        unet, contexts = _train_denoiser(examples, latents, sizes, seed, work, device, report)
        parts, measured = _guided(
            unet, vae, contexts, latents, spec, sizes, seed, work, device, report, reach=rim
        )
        provenance = _provenance(root, examples, holdout.learned(found), held_out, preset, seed)
        model = Model(
            unet=unet.cpu().eval(),
            vae=vae.cpu().eval(),
            adapters={name: {part: net.cpu() for part, net in each.items()} for name, each in parts.items()},
            contexts={name: contexts.table[k].detach().cpu() for k, name in enumerate(examples.names)},
            spec=spec.model_copy(update=measured | {"provenance": provenance}),
        )
        _write(model, folder, work, WEIGHT_DTYPES[dtype])


def _require(folder: Path, system: SystemName, hold_out: float, *, rim: bool) -> None:
    if len(os.fsencode(folder.name)) > LONGEST_NAME:
        raise InputError(f"`{folder.name}` is too long a name for a folder: choose a shorter `-o`")
    if not 0 <= hold_out < 1:
        raise InputError(f"`hold_out` must be from 0 to below 1, not {hold_out}")
    if rim and system != "stage":
        raise InputError(
            "how defects fade out is measured by a calibration that only STAGE has", "leave `--rim` out"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A block in which no other process trains ``folder``, and in which a failing disk becomes one sentence."""

    def taken() -> None:
        raise InputError(f"`{folder}` is being trained by another process: wait for it to end")

    with locked(folder, taken):
        if folder.exists():
            raise InputError(f"`{folder}` exists already; choose another `-o` or remove it")
        _require_own(_work_of(folder))
        yield


def _require_own(work: Path) -> None:
    """What lies in ``work`` is removed in the end, and so must be of a training."""
    if not work.is_dir() or (work / _JOB).exists():
        return
    foreign = next((path for path in sorted(work.iterdir()) if staged_for(path) != _JOB), None)
    if foreign is not None:
        raise InputError(
            f"`{work}` is where the training keeps its state, and holds something else (`{foreign.name}`)",
            "choose another `-o` or move that folder",
        )


def _work_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.training")


def _write(model: Model, folder: Path, work: Path, dtype: torch.dtype) -> None:
    """The model folder with the pictures of its training, whose state goes."""
    curves = {stage: work / f"{stage}.csv" for stage in TRAINED}
    plot_losses({stage: path for stage, path in curves.items() if path.exists()}, work / "losses.png")
    save_model(model, folder, dtype, extra=[work / "losses.png", work / "reconstructions.png"])
    shutil.rmtree(work)


def _spec(
    preset: Preset, system: SystemName, view: ViewName, channels: Literal[1, 3], names: list[str]
) -> ModelSpec:
    return ModelSpec(
        region=RegionView(least=FINEST * preset.latent_size, slender=SLENDER) if view == "region" else None,
        image_size=preset.image_size,
        image_channels=channels,
        latent_channels=preset.latent_channels(channels),
        latent_size=preset.latent_size,
        latent_scale=1.0,
        tokens=preset.tokens,
        context_dim=preset.context_dim,
        recipe=Recipe.masked() if system == "stage" else Recipe.fast(),
        prompts=dict(zip(names, _adapter_names(names), strict=True)),
        surface=data.GOOD,
        system=system,
    )


def _adapter_names(prompts: Sequence[str]) -> list[str]:
    """The prompts as folder names; numbered where two would be the same or one would start with a sign."""
    names = [re.sub(r"[^A-Za-z0-9_+-]", "_", prompt) for prompt in prompts]
    if len(set(names)) == len(names) and all(name[0].isalnum() for name in names):
        return names
    return [f"{k}_{name}"[:LONGEST_PROMPT] for k, name in enumerate(names)]


def _provenance(
    root: Path, examples: data.Examples, learned: list[str], held_out: list[str], preset: str, seed: int
) -> dict[str, JsonValue]:
    return {
        "trained_on": as_text(root.resolve().name),
        "held_out": list(held_out),
        "learned": list(learned),
        "images": len(examples.images),
        "preset": preset,
        "seed": seed,
        "torch": torch.__version__,
    }


def _job(
    examples: data.Examples, preset: str, system: SystemName, view: ViewName, seed: int, *, turn: bool
) -> dict[str, object]:
    """What tells a training from another."""
    digest = hashlib.sha256(f"{view} {turn}".encode())
    for part in (examples.images, examples.labels, examples.masks, examples.prompt):
        digest.update(part.numpy().data)
    # By numpy: torch would copy the images to sum them up.
    pixels = int(examples.images.numpy().sum(dtype=np.int64)) ^ len(examples.images)
    job = {"preset": preset, "seed": seed, "names": examples.names, "pixels": pixels}
    return job | ({} if system == "stage" else {"system": system}) | {_DATA: digest.hexdigest()}


def _open_work(folder: Path, job: dict[str, object]) -> Path:
    work = _work_of(folder)
    path = work / _JOB
    if not path.exists():
        write_atomic(path, json.dumps(job, indent=2).encode())
        return work
    try:
        known = json.loads(path.read_bytes())
    except ValueError:
        known = None
    # Trainings begun before labels were digested go on, told by their pixels.
    if known not in (job, {name: value for name, value in job.items() if name != _DATA}):
        raise InputError(
            f"`{work}` holds another training (of other files, `--hold-out`, `--preset`, `--seed`, "
            "`--system`, `--turn` or `--view`)",
            "give what it was begun with, remove it or choose another `-o`",
        )
    return work


def _train_autoencoder(
    examples: data.Examples, learned: Learned | None, seed: int, work: Path, device: Device, report: Report
) -> Autoencoder:
    """A trained one, or wavelets for a preset that has nothing ``learned``."""
    if learned is None:
        return autoencoder.wavelets(examples, device)
    _, channels, size, _ = examples.images.shape
    vae = device.place(autoencoder.build(learned, channels, size))
    fit(
        "autoencoder",
        vae,
        lambda draws: autoencoder.loss(vae, examples, learned, device, draws),
        learned.stage,
        seed=seed,
        work=work,
        report=report,
    )
    vae.eval().requires_grad_(False)
    autoencoder.standardise(vae, examples, device)
    return vae


def _train_denoiser(
    examples: data.Examples,
    latents: denoiser.Latents,
    preset: Preset,
    seed: int,
    work: Path,
    device: Device,
    report: Report,
) -> tuple[UNet2DConditionModel, denoiser.Contexts]:
    unet = device.place(denoiser.build(preset, preset.latent_channels(examples.images.shape[1])))
    contexts = denoiser.Contexts(
        len(examples.names), preset.tokens, preset.context_dim, generator(seed, "contexts")
    ).to(device.device)
    fit(
        "denoiser",
        nn.ModuleDict({"unet": unet, "contexts": contexts}),
        lambda draws: denoiser.loss(unet, contexts, latents, preset.denoiser.batch, device, draws),
        preset.denoiser,
        seed=seed,
        work=work,
        report=report,
    )
    unet.eval().requires_grad_(False)
    return unet, contexts


def _guided(
    unet: UNet2DConditionModel,
    vae: Autoencoder,
    contexts: denoiser.Contexts,
    latents: denoiser.Latents,
    spec: ModelSpec,
    preset: Preset,
    seed: int,
    work: Path,
    device: Device,
    report: Report,
    *,
    reach: bool,
) -> tuple[dict[str, dict[str, nn.Module]], dict[str, object]]:
    """The parts of every adapter by their names, trained on the UNet, and what is calibrated of the spec."""
    trained = (unet, contexts, latents, spec, preset, seed, work, device, report)
    if spec.system == "fast":
        return fast.train(*trained), {}
    adapters = _train_guidance(*trained)
    networks = Networks(unet, vae, adapters, contexts)
    defaults, round_trip = calibration.calibrate(
        networks, latents, spec.prompts, spec.recipe, preset.calibration, seed, device, report, reach=reach
    )
    parts: dict[str, dict[str, nn.Module]] = {
        name: {str(b): adapter for b, adapter in pair.items()} for name, pair in adapters.items()
    }
    return parts, {"defaults": defaults, "round_trip": round_trip}


def _train_guidance(
    unet: UNet2DConditionModel,
    contexts: denoiser.Contexts,
    latents: denoiser.Latents,
    spec: ModelSpec,
    preset: Preset,
    seed: int,
    work: Path,
    device: Device,
    report: Report,
) -> dict[str, dict[Branch, MaskGuidanceAdapter]]:
    """The adapters of every prompt by their name; each step trains those of one prompt, drawn at random."""
    adapters = {name: guidance.build(preset, spec.latent_channels) for name in spec.adapters}
    nets = {
        name: nn.ModuleDict({str(b): adapter for b, adapter in pair.items()})
        for name, pair in adapters.items()
    }

    def loss_of(name: str, prompt: int, draws: torch.Generator) -> Tensor:
        batch = preset.guidance.batch
        return guidance.loss(
            unet, adapters[name], contexts, latents, spec.recipe, prompt, batch, device, draws
        )

    fit_prompts(
        "guidance",
        nets,
        contexts,
        loss_of,
        latents.examples.names,
        spec,
        preset.guidance,
        seed=seed,
        work=work,
        device=device,
        report=report,
    )
    return adapters
