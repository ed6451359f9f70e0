"""A STAGE model as the authors' code leaves it: LDM checkpoint, embeddings, and two adapters a training run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import JsonValue, ValidationError
from torch import Tensor

from stage_rt.errors import CheckpointError
from stage_rt.files import staged_folder
from stage_rt.recipe import Branch, MaskRule, Recipe
from stage_rt.spec import ModelSpec

from ...training.adapter import MaskGuidanceAdapter
from ...training.folder import write_description
from .adapters import (
    Adapter,
    RunFiles,
    TrainingRun,
    find_files,
    names_of,
    read_adapter,
    read_embeddings,
    trained_prompt,
    vectors_of,
)
from .folder import Network, adapter_name, file_origin, origin, write_network
from .ldm import LATENT_SCALE, LatentDiffusion, TextEncoder, check_ldm
from .torchfile import MAX_BYTES, StoredTensor, TorchFile, read_torch_file
from .unpickle import printable

CAPTION = "Anomaly *"
"""The one text the authors train and paint with."""


@dataclass(frozen=True)
class Options:
    """What the files do not say, and what to do with them.

    ``image_size`` is in pixels; ``heads`` are the UNet's attention heads; ``say`` is told what is being done,
    ``notify`` what the user should know.
    """

    image_size: int = 256
    heads: int = 8
    mask_rule: MaskRule = "cover"
    dtype: torch.dtype = torch.float32
    max_bytes: int = MAX_BYTES
    say: Callable[[str], None] = field(default=lambda line: None)
    notify: Callable[[str], None] = field(default=lambda line: None)

    def read(self, path: Path) -> TorchFile:
        """`read_torch_file` within the limit; what the file wanted to call is told."""
        file = read_torch_file(path, max_bytes=self.max_bytes)
        if file.calls:
            self.notify(
                f"`{path}` asks for calls of names that are no part of a checkpoint; none was made: "
                f"{', '.join(file.calls[:3])}"
            )
        return file


DEFAULTS = Options()


@dataclass(frozen=True)
class Trained:
    """A training run, checked."""

    files: RunFiles
    adapters: dict[Branch, Adapter]
    vectors: dict[str, Tensor]


def import_stage(
    ldm: Path,
    runs: Sequence[TrainingRun],
    folder: Path,
    *,
    step: int | None = None,
    options: Options = DEFAULTS,
) -> ModelSpec:
    """Make a model folder of the authors' files; it appears whole or not at all.

    Args:
        ldm: the ``model.ckpt`` that every run started from.
        runs: one or more training runs.
        folder: the model folder.
        step: training step of the adapters; the newest that is complete if None.
        options: what the files do not say.

    Raises:
        InputError: ``folder`` has content.
        CheckpointError: a file is not what it has to be, or not safe.
    """
    with staged_folder(folder) as staged:
        checked = open_ldm(ldm, options)
        trained = read_runs(runs, step, checked.bert, checked.unet.in_channels, options)
        vectors = {prompt: part for run in trained.values() for prompt, part in run.vectors.items()}
        contexts = make_contexts(checked.bert, CAPTION, vectors, options)
        prompts = {prompt: name for name, run in trained.items() for prompt in run.vectors}
        networks = {**ldm_networks(checked, options), **adapter_networks(trained)}
        options.say("computing sha256")
        sources: dict[str, JsonValue] = {
            "ldm": file_origin(ldm),
            "adapters": run_origins(trained),
            "caption": CAPTION,
        }
        spec = ldm_spec(checked, prompts, contexts, origin("stage", **sources), options)
        write_all(networks, staged, options)
        write_description(staged, spec, contexts)
    return spec


def open_ldm(path: Path, options: Options) -> LatentDiffusion:
    """Read and check the LDM checkpoint, and tell what of it is left out. Raises `CheckpointError`."""
    options.say(f"reading {path.name}")
    checked = check_ldm(options.read(path))
    if checked.left_out:
        options.notify(
            f"{len(checked.left_out)} tensors of `{path}` belong to no part of a model and were left out, the "
            f"first is `{printable(checked.left_out[0])}`"
        )
    return checked


def make_contexts(
    bert: TextEncoder, caption: str, vectors: Mapping[str, Tensor], options: Options
) -> dict[str, Tensor]:
    """The context float32 ``[tokens, dim]`` of every prompt from its learned vectors."""
    contexts = {}
    for prompt, learned in vectors.items():
        options.say(f"encoding {prompt}")
        contexts[prompt] = bert.context(caption, learned)
    return contexts


def ldm_networks(ldm: LatentDiffusion, options: Options) -> dict[str, Network]:
    """UNet and autoencoder by their places in the model folder. Raises `CheckpointError` for odd sizes."""
    if options.image_size % ldm.downscale:
        raise CheckpointError(
            f"`{ldm.path}` makes latents {ldm.downscale} times smaller than the image: {options.image_size} pixels "
            "do not divide by that, give another `--image-size`"
        )
    if odd := [width for width in ldm.unet.widths if width % options.heads]:
        raise CheckpointError(
            f"`{ldm.path}` has a UNet {odd[0]} wide, which {options.heads} heads do not divide: give `--heads`"
        )
    unet = ldm.unet_config(options.image_size // ldm.downscale, options.heads)
    vae = ldm.vae_config(options.image_size)
    return {
        "unet": Network(UNet2DConditionModel, unet, lambda: ldm.unet_weights(unet), ldm.path),
        "vae": Network(AutoencoderKL, vae, lambda: ldm.vae_weights(vae), ldm.path),
    }


def adapter_networks(trained: Mapping[str, "Trained"]) -> dict[str, Network]:
    """The adapters by their places in the model folder."""
    return {
        f"adapters/{name}/{branch}": Network(
            MaskGuidanceAdapter,
            {"latent_channels": adapter.latent_channels, "hidden_channels": adapter.hidden_channels},
            adapter.weights,
            adapter.path,
        )
        for name, run in trained.items()
        for branch, adapter in run.adapters.items()
    }


def ldm_spec(
    ldm: LatentDiffusion,
    prompts: Mapping[str, str | None],
    contexts: Mapping[str, Tensor],
    provenance: dict[str, JsonValue],
    options: Options,
) -> ModelSpec:
    """``stage.json`` of a model made from an LDM checkpoint. Raises `CheckpointError`."""
    tokens, dim = next(iter(contexts.values())).shape
    return make_spec(
        image_size=options.image_size,
        image_channels=ldm.vae.image_channels,
        latent_channels=ldm.vae.latent_channels,
        latent_size=options.image_size // ldm.downscale,
        latent_scale=LATENT_SCALE,
        tokens=tokens,
        context_dim=dim,
        recipe=Recipe.authors().model_copy(update={"mask_rule": options.mask_rule}),
        prompts=dict(prompts),
        provenance=provenance,
    )


def make_spec(**fields: Any) -> ModelSpec:
    """A `ModelSpec`. Raises `CheckpointError` naming the field that cannot be."""
    try:
        return ModelSpec(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"the model cannot be described, {'.'.join(map(str, first['loc'])) or 'its sizes'}: {first['msg']}"
        ) from None


def write_all(networks: Mapping[str, Network], folder: Path, options: Options) -> None:
    """Write every network at its place in the model folder."""
    for place, network in networks.items():
        options.say(f"writing {place}")
        write_network(network, folder / place, options.dtype)


def read_runs(
    runs: Sequence[TrainingRun], step: int | None, bert: TextEncoder, latent_channels: int, options: Options
) -> dict[str, Trained]:
    """Read and check training runs, for contexts of ``bert``; by the names of their adapters.

    Raises:
        CheckpointError: a file is not what it has to be, or the runs do not go together.
    """
    trained: dict[str, Trained] = {}
    taken: dict[str, Path] = {}
    for run in runs:
        options.say(f"reading {run.folder}")
        read = _read_run(run, step, bert, latent_channels, options, alone=len(runs) == 1)
        for prompt in read.vectors:
            if prompt in taken:
                raise CheckpointError(
                    f"prompt {prompt!r} is asked of `{taken[prompt]}` and of `{run.folder}`: leave one out"
                )
            taken[prompt] = run.folder
        trained[adapter_name(next(iter(read.vectors)), trained)] = read
    _require_one_width([adapter for run in trained.values() for adapter in run.adapters.values()])
    return trained


def _read_run(
    run: TrainingRun,
    step: int | None,
    bert: TextEncoder,
    latent_channels: int,
    options: Options,
    *,
    alone: bool,
) -> Trained:
    files, incomplete = find_files(run.folder, step)
    if incomplete:
        options.notify(
            f"step {incomplete[-1]} in `{run.folder}` lacks files, step {files.step} is the newest that is complete"
        )
    embeddings = read_embeddings(files.embeddings, options.read)
    prompts = run.prompts or _found_prompts(files.embeddings, embeddings, options, alone=alone)
    adapters = {
        branch: read_adapter(path, latent_channels, options.read) for branch, path in files.adapters.items()
    }
    return Trained(files, adapters, vectors_of(files.embeddings, embeddings, prompts, bert.sizes.dim))


def _found_prompts(
    path: Path, embeddings: Mapping[str, StoredTensor], options: Options, *, alone: bool
) -> tuple[str, ...]:
    """The prompt the run was trained for; if the file does not tell, all of a run that is ``alone``."""
    found = trained_prompt(embeddings)
    if found is not None:
        return (found,)
    advice = f"name it as `--adapters NAME=DIR`: {names_of(embeddings)}"
    if not alone:
        raise CheckpointError(f"`{path}` does not tell for which prompt the run was trained, {advice}")
    if len(embeddings) > 1:
        options.notify(
            f"`{path}` does not tell for which prompt the run was trained, so its adapters are there for all of its "
            f"{len(embeddings)} names; to have one, {advice}"
        )
    return tuple(sorted(embeddings))


def _require_one_width(adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    for other in adapters:
        if other.hidden_channels != first.hidden_channels:
            raise CheckpointError(
                f"`{first.path}` is an adapter with layers {_widths(first)} wide and `{other.path}` one with layers "
                f"{_widths(other)} wide: adapters of one model have one width"
            )


def _widths(adapter: Adapter) -> str:
    return "-".join(map(str, adapter.hidden_channels))


def run_origins(trained: Mapping[str, Trained]) -> dict[str, JsonValue]:
    """Provenance of adapters by their names."""
    return {
        name: {"step": run.files.step, "files": [file_origin(path) for path in run.files.paths]}
        for name, run in trained.items()
    }
