"""What one training run of STAGE leaves: a mask-guidance adapter for each branch and the learned embeddings."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stage_rt.errors import CheckpointError
from stage_rt.recipe import Branch

from .bert import PLACEHOLDER
from .checks import compare, describe, require_finite, require_floats
from .keys import Entries
from .torchfile import StoredTensor, TorchFile, read_torch_file
from .unpickle import Stub, printable

Read = Callable[[Path], TorchFile]

EMBEDDINGS = "embeddings_gs"
_BRANCH_FILES = {Branch.AWARE: "fine_image", Branch.ONLY: "fine_mask"}
_FINAL = {EMBEDDINGS: "embeddings.pt", **{stem: f"{stem}.pt" for stem in _BRANCH_FILES.values()}}
_STEP = re.compile(r"-(\d{1,12})\.pt$")


class TrainingRun(NamedTuple):
    """A folder with the files of a training run, and the prompts its adapters shall paint; () to find out."""

    prompts: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class RunFiles:
    """The three files of one step; ``step`` is None for those without a number, written when training ended."""

    step: int | None
    embeddings: Path
    adapters: dict[Branch, Path]

    @property
    def paths(self) -> list[Path]:
        """All three."""
        return [self.embeddings, *self.adapters.values()]


@dataclass(frozen=True)
class Adapter:
    """A checked adapter: its sizes and its tensors by the names of `MaskGuidanceAdapter`."""

    path: Path
    latent_channels: int
    hidden_channels: tuple[int, ...]
    _tensors: dict[str, StoredTensor]

    def weights(self) -> dict[str, Tensor]:
        """Its tensors. Raises `CheckpointError` if one is not finite."""
        return {
            name: require_finite(self.path, name, tensor.load()) for name, tensor in self._tensors.items()
        }


def find_files(folder: Path, step: int | None) -> tuple[RunFiles, list[int]]:
    """The files of a training run at ``step``, or at the newest step that all three have.

    ``folder`` is the run's own or its ``checkpoints``. Returns also the newer steps that only some files have.

    Raises:
        CheckpointError: there is no such step; the message lists what there is.
    """
    if not folder.is_dir():
        raise CheckpointError(f"`{folder}` is no folder: name the folder of a training run")
    inner = folder / "checkpoints"
    folder = inner if inner.is_dir() else folder
    steps = {stem: _steps(folder, stem) for stem in _FINAL}
    whole = sorted(set.intersection(*map(set, steps.values())))
    if step is None and not whole and all((folder / name).is_file() for name in _FINAL.values()):
        return _files(folder, None), []
    if step is None and not whole:
        raise CheckpointError(
            f"`{folder}` has no step of which there are `{EMBEDDINGS}-N.pt`, `fine_image-N.pt` and `fine_mask-N.pt`"
        )
    if step is not None and step not in whole:
        lacking = [f"{stem}-{step}.pt" for stem in steps if step not in steps[stem]]
        raise CheckpointError(
            f"`{folder}` has no `{'`, no `'.join(lacking)}`: the steps of which all three files are there are "
            f"{', '.join(map(str, whole)) or 'none'}"
        )
    chosen = whole[-1] if step is None else step
    partial = set().union(*steps.values()) - set(whole)
    return _files(folder, chosen), sorted(n for n in partial if step is None and n > chosen)


def read_adapter(path: Path, latent_channels: int, read: Read = read_torch_file) -> Adapter:
    """Read and check the adapter in a ``fine_image`` or ``fine_mask`` file, pickled whole or as a state dict.

    Raises:
        CheckpointError: the file is something else, or the adapter is for other latents.
    """
    file = read(path)
    found = _module_tensors(file.value)
    convolutions = [tensor.shape for _, tensor in sorted(_convolutions(found))]
    if len(convolutions) < 2:
        raise CheckpointError(f"`{path}` is {describe(file.value)}, a mask-guidance adapter was wanted")
    channels, hidden = convolutions[0][1] // 2, tuple(shape[0] for shape in convolutions[:-1])
    compare(
        path,
        "a mask-guidance adapter",
        {name: tensor.shape for name, tensor in found.items()},
        dict(_entries(channels, hidden)),
    )
    if channels != latent_channels:
        raise CheckpointError(
            f"`{path}` is an adapter for latents of {channels} channels, the UNet has {latent_channels}"
        )
    return Adapter(path, channels, hidden, found)


def read_embeddings(path: Path, read: Read = read_torch_file) -> dict[str, StoredTensor]:
    """The learned vectors of every name in an embeddings file, each ``[n, dim]``.

    Raises:
        CheckpointError: the file is something else, or its vectors stand for another token than ``*``.
    """
    file = read(path)
    value = file.value if isinstance(file.value, dict) else {}
    held = value.get("string_to_param")
    named = held.state.get("_parameters") if isinstance(held, Stub) else held
    if not isinstance(named, dict):
        raise CheckpointError(f"`{path}` is {describe(file.value)}, learned embeddings were wanted")
    found = {
        name: tensor
        for name, tensor in named.items()
        if isinstance(name, str) and isinstance(tensor, StoredTensor) and len(tensor.shape) == 2
    }
    if not found:
        raise CheckpointError(f"`{path}` holds no learned embeddings: its list of names is empty")
    _check_placeholder(file, value.get("string_to_token"))
    return found


def vectors_of(
    path: Path, embeddings: Mapping[str, StoredTensor], prompts: Sequence[str], dim: int
) -> dict[str, Tensor]:
    """The vectors of ``prompts``.

    Raises:
        CheckpointError: a prompt is not in the file, or its vectors are not ``dim`` wide, not finite or quantised.
    """
    for prompt in prompts:
        if prompt not in embeddings:
            raise CheckpointError(
                f"`{path}` has no embedding named {prompt!r}, it has {names_of(embeddings)}"
            )
        if embeddings[prompt].shape[1] != dim:
            raise CheckpointError(
                f"`{path}` holds vectors {embeddings[prompt].shape[1]} wide for {prompt!r}, the text encoder is "
                f"{dim} wide"
            )
    return {
        prompt: require_finite(path, prompt, require_floats(path, prompt, embeddings[prompt].load()))
        for prompt in prompts
    }


def trained_prompt(embeddings: Mapping[str, StoredTensor]) -> str | None:
    """The one name whose vectors training moved, if that can be told: all start alike when they start as a word."""
    # As bytes, since NumPy has no bfloat16.
    contents = {
        name: tensor.load().view(torch.uint8).numpy().tobytes() for name, tensor in embeddings.items()
    }
    counts = Counter(contents.values())
    odd = [name for name, content in contents.items() if counts[content] == 1]
    return odd[0] if len(odd) == 1 else None


def names_of(embeddings: Mapping[str, StoredTensor]) -> str:
    """The names in an embeddings file, for a message."""
    return ", ".join(map(printable, sorted(embeddings)))


def _steps(folder: Path, stem: str) -> list[int]:
    found = (_STEP.fullmatch(path.name.removeprefix(stem)) for path in folder.glob(f"{stem}-*.pt"))
    return [int(match[1]) for match in found if match]


def _files(folder: Path, step: int | None) -> RunFiles:
    names = {stem: final if step is None else f"{stem}-{step}.pt" for stem, final in _FINAL.items()}
    return RunFiles(
        step,
        folder / names[EMBEDDINGS],
        {branch: folder / names[stem] for branch, stem in _BRANCH_FILES.items()},
    )


def _module_tensors(value: Any) -> dict[str, StoredTensor]:
    """Every tensor of a pickled module or a state dict by its name."""
    if isinstance(value, dict):
        return {name: tensor for name, tensor in value.items() if isinstance(tensor, StoredTensor)}
    found: dict[str, StoredTensor] = {}
    seen: set[int] = set()
    waiting = [("", value)]
    while waiting:
        prefix, module = waiting.pop()
        # A module can be made to hold itself.
        if not isinstance(module, Stub) or id(module) in seen:
            continue
        seen.add(id(module))
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _items(module, kind):
                if isinstance(tensor, StoredTensor):
                    found[f"{prefix}{name}"] = tensor
        waiting += [(f"{prefix}{name}.", child) for name, child in _items(module, "_modules")]
    return found


def _items(module: Stub, kind: str) -> list[tuple[Any, Any]]:
    held = module.state.get(kind)
    return list(held.items()) if isinstance(held, dict) else []


def _convolutions(found: Mapping[str, StoredTensor]) -> list[tuple[int, StoredTensor]]:
    matches = ((re.fullmatch(r"conv\.(\d{1,4})\.weight", name), tensor) for name, tensor in found.items())
    return [(int(match[1]), tensor) for match, tensor in matches if match and len(tensor.shape) == 4]


def _entries(latent_channels: int, hidden: Sequence[int]) -> Entries:
    """Name and shape of every tensor of an adapter (spec, section f)."""
    width = 2 * latent_channels
    for n, out in enumerate(hidden):
        yield f"conv.{3 * n}.weight", (out, width, 3, 3)
        yield f"conv.{3 * n}.bias", (out,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield f"conv.{3 * n + 1}.{name}", (out,)
        yield f"conv.{3 * n + 1}.num_batches_tracked", ()
        width = out
    yield f"conv.{3 * len(hidden)}.weight", (latent_channels, width, 1, 1)
    yield f"conv.{3 * len(hidden)}.bias", (latent_channels,)


def _check_placeholder(file: TorchFile, tokens: Any) -> None:
    token = tokens.get("*") if isinstance(tokens, dict) else None
    found = token.load().item() if isinstance(token, StoredTensor) and token.shape == () else token
    if found != PLACEHOLDER:
        raise CheckpointError(
            f"`{file.path}` holds vectors for token {found} of the text, those for `*` (token {PLACEHOLDER}) were "
            "wanted"
        )
