"""A STAGE model as the authors' code leaves it: LDM checkpoint, embeddings, and two adapters a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from stage_rt.errors import CheckpointError
from stage_rt.files import new_folder
from stage_rt.recipe import Branch
from stage_rt.spec import ModelSpec

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
from .assemble import (
    DEFAULTS,
    Options,
    adapter_networks,
    ldm_networks,
    ldm_spec,
    make_contexts,
    open_ldm,
    write_all,
)
from .folder import adapter_name, file_origin, origin
from .ldm import TextEncoder
from .torchfile import StoredTensor

CAPTION = "Anomaly *"
"""The one text the authors train and paint with."""


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
    with new_folder(folder) as staged:
        checked = open_ldm(ldm, options)
        trained = read_runs(runs, step, checked.bert, checked.unet.in_channels, options)
        vectors = {prompt: part for run in trained.values() for prompt, part in run.vectors.items()}
        contexts = make_contexts(checked.bert, CAPTION, vectors, options)
        prompts = {prompt: name for name, run in trained.items() for prompt in run.vectors}
        adapters = {name: run.adapters for name, run in trained.items()}
        networks = {**ldm_networks(checked, options), **adapter_networks(adapters)}
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
