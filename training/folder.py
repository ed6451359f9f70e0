"""The model folder: trained weights in the diffusers layout plus ``stage.json``."""

import copy
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stage_rt.errors import ModelError, StageError
from stage_rt.files import inside, sha256, staged_folder
from stage_rt.folders import read_description
from stage_rt.spec import FOREGROUND, MODEL_FILE, PROMPTS_FILE, ModelSpec

from .adapter import MaskGuidanceAdapter
from .foreground import ForegroundNetwork
from .lossless import HaarAutoencoder

Network = TypeVar("Network", bound=nn.Module)
Autoencoder: TypeAlias = AutoencoderKL | HaarAutoencoder
_CLASSES: dict[type[Autoencoder], tuple[str, str]] = {
    AutoencoderKL: ("diffusers", "AutoencoderKL"),
    HaarAutoencoder: ("stage_rt.training.lossless", "HaarAutoencoder"),
}

SUMS_FILE = "SHA256SUMS"
_SUMMED = (".json", ".safetensors")
AGAIN = "train or import the model again"
"""What to do about a model folder that is not whole."""
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Description:
    """All of a model but its networks; ``contexts`` maps prompts, and the surface, to float32 ``[tokens, dim]``."""

    contexts: dict[str, Tensor]
    spec: ModelSpec


@dataclass(frozen=True)
class Model(Description):
    """A trained model in memory; ``adapters`` has the parts of each by `ModelSpec.parts`."""

    unet: UNet2DConditionModel
    vae: Autoencoder
    adapters: Mapping[str, Mapping[str, nn.Module]]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every network by its place in the folder."""
        parts = {
            f"adapters/{name}/{part}": module
            for name, each in self.adapters.items()
            for part, module in each.items()
        }
        return {"unet": self.unet, "vae": self.vae, **parts}


def save_model(
    model: Model, folder: Path, dtype: torch.dtype = torch.float32, extra: Iterable[Path] = ()
) -> None:
    """Write a model folder; it appears whole or not at all.

    Args:
        model: the networks, contexts and spec.
        folder: destination, which must not exist yet.
        dtype: dtype of the network weights on disk (contexts stay float32).
        extra: files to copy into the folder.

    Raises:
        InputError: ``folder`` exists already.
        StageError: the weights cannot be written, as to a disk that is full.
    """
    with staged_folder(folder) as staged:
        try:
            for place, module in model.modules.items():
                _converted(module, dtype).save_pretrained(staged / place)
            write_description(staged, model.spec, model.contexts, type(model.vae))
        except SafetensorError as failure:
            raise StageError(
                f"writing `{folder}` failed ({_reason(failure)})", "mend that and run the same command again"
            ) from failure
        for path in extra:
            shutil.copy(path, staged)


def write_description(
    folder: Path,
    spec: ModelSpec,
    contexts: Mapping[str, Tensor],
    autoencoder: type[Autoencoder] = AutoencoderKL,
) -> None:
    """Write what a model folder holds beside its networks: contexts, ``model_index.json``, ``stage.json``."""
    index = {
        "_class_name": "StagePipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": list(_CLASSES[autoencoder]),
    }
    save_file({name: c.float().contiguous() for name, c in contexts.items()}, folder / PROMPTS_FILE)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    # The library lets nobody but the owner read what it writes.
    shutil.copymode(folder / "model_index.json", folder / PROMPTS_FILE)
    (folder / MODEL_FILE).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_sums(folder)


def write_sums(folder: Path) -> None:
    """Write `SUMS_FILE`: the digests of a model folder's weights and descriptions, as ``sha256sum -c`` reads them."""
    lines = [f"{sha256(folder / path)}  {path}\n" for path in inside(folder) if path.suffix in _SUMMED]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Hold a model folder against its `SUMS_FILE`; one without, as others write them, is taken as it is.

    Raises:
        ModelError: names the first file that is missing or not as it was written.
    """
    path = folder / SUMS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"`{path}` cannot be read ({_reason(error)})", AGAIN) from None
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
    here = {str(name) for name in inside(folder) if name.suffix in _SUMMED}
    if len(listed) < len(lines):
        raise ModelError(f"`{path}` does not list every file of the model", AGAIN)
    if strangers := sorted(here - set(listed)):
        raise ModelError(
            f"`{folder / strangers[0]}` is not listed in {SUMS_FILE}",
            f"move it out of the model's folder, or {AGAIN}",
        )
    for name, digest in listed.items():
        if name not in here or not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ModelError(
                f"`{folder / name}` is not the file that {SUMS_FILE} lists",
                f"{AGAIN}, or remove {SUMS_FILE} if it was changed on purpose",
            )


def _converted(module: nn.Module, dtype: torch.dtype) -> Any:
    # nn.Module's own `to`: the one of diffusers warns about every plain cast. Its stubs lack `memory_format`.
    kept = copy.deepcopy(module)
    return nn.Module.to(kept, dtype=dtype, memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def read_spec(folder: Path) -> ModelSpec:
    """``stage.json`` of a model folder.

    Raises:
        ModelError: the file is missing or does not follow :class:`~stage_rt.spec.ModelSpec`.
    """
    absent = f"is not a model folder (no {MODEL_FILE}): make one with `stage-rt train`"
    return read_description(folder / MODEL_FILE, ModelSpec, ModelError, absent=absent, remedy=AGAIN)


def load_description(folder: Path) -> Description:
    """Read what a model folder holds beside its networks.

    Raises:
        ModelError: a file is missing, unreadable, changed or disagrees with ``stage.json``.
    """
    spec = read_spec(folder)
    check_sums(folder)
    return Description(contexts=_load_contexts(folder / PROMPTS_FILE, spec), spec=spec)


def load_model(folder: Path) -> Model:
    """Read a model folder into float32 networks in eval mode, on the CPU.

    Raises:
        ModelError: a file is missing, unreadable or disagrees with ``stage.json``.
    """
    description = load_description(folder)
    spec = description.spec
    adapters = {
        name: {part: load_part(folder / "adapters" / name / part) for part in spec.parts}
        for name in spec.adapters
    }
    return Model(
        unet=load_network(UNet2DConditionModel, folder / "unet"),
        vae=load_autoencoder(folder / "vae"),
        adapters=adapters,
        contexts=description.contexts,
        spec=spec,
    )


def load_part(folder: Path, dtype: torch.dtype = torch.float32) -> MaskGuidanceAdapter | ForegroundNetwork:
    """A part of an adapter, of the class that its folder's name tells.

    Raises:
        ModelError: as `load_network`.
    """
    kind = ForegroundNetwork if folder.name == FOREGROUND else MaskGuidanceAdapter
    part: MaskGuidanceAdapter | ForegroundNetwork = load_network(kind, folder, dtype)
    return part


def load_network(kind: type[Network], folder: Path, dtype: torch.dtype = torch.float32) -> Network:
    """Read one network in eval mode, on the CPU; its weights are never there twice.

    Raises:
        ModelError: its configuration or a weight is missing, unreadable or of another network.
    """
    try:
        config = kind.load_config(folder, local_files_only=True)  # type: ignore[attr-defined]
        if not isinstance(config, dict):
            # What is no dictionary diffusers takes for the name of a model, and asks the network for it.
            raise ValueError("config.json holds no configuration")
        with torch.device("meta"):
            module: Network = kind.from_config(config)  # type: ignore[attr-defined]
        module.load_state_dict(_weights(folder / WEIGHTS_FILE, dtype), assign=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"`{folder}` holds no usable {kind.__name__} weights ({_reason(error)})", AGAIN
        ) from None
    return module.eval()


def _reason(error: Exception) -> str:
    """The first thing a library found wrong: torch lists them all, under a heading."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    heading = len(told) > 1 and told[0].endswith(":")
    return told[int(heading)].rstrip(".") if told else type(error).__name__


def load_autoencoder(folder: Path, dtype: torch.dtype = torch.float32) -> Autoencoder:
    """The autoencoder of a model folder's ``vae``, of the class that its configuration names.

    Raises:
        ModelError: as `load_network`.
    """
    try:
        named = json.loads((folder / "config.json").read_bytes()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        named = None
    kinds = {kind.__name__: kind for kind in _CLASSES}
    network: Autoencoder = load_network(kinds.get(named, AutoencoderKL), folder, dtype)
    return network


def _weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    return {name: _weight(path, name, dtype) for name in names}


def _weight(path: Path, name: str, dtype: torch.dtype) -> Tensor:
    # Opened for every tensor: the pages read of a mapped file count as memory until it is closed.
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def _load_contexts(path: Path, spec: ModelSpec) -> dict[str, Tensor]:
    try:
        contexts = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"`{path}` cannot be read ({_reason(error)})", AGAIN) from None
    if missing := sorted(set(spec.contexts) - set(contexts)):
        raise ModelError(
            f"`{path}` lacks the context of prompt {missing[0]!r} that {MODEL_FILE} names", AGAIN
        )
    shape = (spec.tokens, spec.context_dim)
    for name in spec.contexts:
        if tuple(contexts[name].shape) != shape:
            found = tuple(contexts[name].shape)
            raise ModelError(f"`{path}` holds {name!r} with shape {found}, not {shape}", AGAIN)
        if not torch.isfinite(contexts[name]).all():
            raise ModelError(f"`{path}` holds a context that is not finite for prompt {name!r}", AGAIN)
    return {name: contexts[name].float() for name in spec.contexts}
