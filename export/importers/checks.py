"""What a checkpoint is, and whether it is what was wanted, before anything of it is used."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stage_rt.errors import CheckpointError

from .keys import Entries, Shape, Shapes
from .torchfile import StoredTensor
from .unpickle import Stub, printable

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

SHOWN = 3
"""How many of a list of differences a message names."""

_KINDS = (
    ("conditioner.embedders.", "a Stable Diffusion XL checkpoint"),
    ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    (
        "cond_stage_model.transformer.text_model.",
        "a Stable Diffusion 1 checkpoint, with CLIP as its text encoder",
    ),
    ("cond_stage_model.model.", "a Stable Diffusion 2 checkpoint, with OpenCLIP as its text encoder"),
    ("cond_stage_model.transformer.attn_layers.", "a latent-diffusion text2img checkpoint"),
    ("down_blocks.", "the UNet of a diffusers folder"),
    ("encoder.down_blocks.", "the autoencoder of a diffusers folder"),
    ("encoder.down.", "an autoencoder"),
    ("conv.0.", "the weights of a mask-guidance adapter"),
)


def describe(value: Any) -> str:
    """What an unpickled object is, in words."""
    if isinstance(value, Stub):
        layers = value.state.get("_modules")
        adapter = isinstance(layers, dict) and list(layers) == ["conv"]
        return f"a pickled `{value.of}`" + (", a mask-guidance adapter" if adapter else "")
    if isinstance(value, StoredTensor):
        return f"one tensor of shape {list(value.shape)}"
    if not isinstance(value, dict):
        return f"a pickled {type(value).__name__}"
    if "string_to_param" in value:
        return "learned embeddings"
    if isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    for prefix, kind in _KINDS:
        if any(isinstance(key, str) and key.startswith(prefix) for key in value):
            return kind
    return f"a dictionary with {_some(map(str, value))}" if value else "an empty dictionary"


def tensors(values: Mapping[Any, Any], prefix: str) -> dict[str, StoredTensor]:
    """The tensors under ``prefix``, by what follows it."""
    return {
        key.removeprefix(prefix): value
        for key, value in values.items()
        if isinstance(key, str) and key.startswith(prefix) and isinstance(value, StoredTensor)
    }


def compare(path: Path, part: str, found: Shapes, expected: Shapes, *, extra: bool = False) -> list[str]:
    """Hold the tensors of a network against those it must have.

    Returns:
        The names that are too many, if ``extra`` ones are allowed.

    Raises:
        CheckpointError: tensors are missing, of another shape or too many; the first of them are named.
    """
    problems: list[tuple[str, list[str]]] = [
        ("missing", [name for name in expected if name not in found]),
        (
            "of another shape",
            [_mismatch(name, found, expected) for name in expected if _differs(name, found, expected)],
        ),
    ]
    superfluous = [name for name in found if name not in expected]
    if not extra:
        problems.append(("not known", superfluous))
    said = [f"{len(names)} {what} ({_some(names)})" for what, names in problems if names]
    if said:
        raise CheckpointError(
            f"`{path}` does not hold {part} as its own sizes ask for: of {len(expected)} tensors {', '.join(said)}"
        )
    return superfluous


def sizes_of(
    path: Path,
    part: str,
    shapes: Shapes,
    of: Callable[[Shapes], Any],
    entries: Callable[[Any], Entries],
    *,
    extra: bool = False,
) -> tuple[Any, list[str]]:
    """The sizes of a network, once its tensors were found to be those that the sizes ask for; see `compare`.

    Raises:
        CheckpointError: they are not, or a tensor that the sizes are read off is missing.
    """
    try:
        sizes = of(shapes)
        expected = dict(entries(sizes))
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"`{path}` does not hold {part} of latent diffusion ({error})") from None
    return sizes, compare(path, part, shapes, expected, extra=extra)


def require_finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """``tensor``. Raises `CheckpointError` if it holds a value that is not finite."""
    if tensor.dtype in _FLOATS and not torch.isfinite(tensor).all():
        raise CheckpointError(f"`{path}` holds values that are not finite in `{name}`: its training diverged")
    return tensor


def require_floats(path: Path, name: str, tensor: Tensor) -> Tensor:
    """``tensor``, a weight. Raises `CheckpointError` if it is quantised: what its numbers stand for is not said."""
    if tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"`{path}` holds `{printable(name)}` as {kind}, weights in float32, float16 or bfloat16 were wanted: "
            "take the file that was not quantised"
        )
    return tensor


def _differs(name: str, found: Shapes, expected: Shapes) -> bool:
    return name in found and tuple(found[name]) != tuple(expected[name])


def _mismatch(name: str, found: Shapes, expected: Shapes) -> str:
    return f"{name} {_shape(found[name])} instead of {_shape(expected[name])}"


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    rest = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(f"`{printable(name)}`" for name in listed[:SHOWN]) + rest
