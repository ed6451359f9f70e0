"""``stage-rt inspect``: what an engine folder holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stage_rt.cli import console
from stage_rt.errors import amount

if TYPE_CHECKING:
    from stage_rt.spec import EngineSpec


def inspect(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder made by `stage-rt build`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what ENGINE was built from and for, once every file was found to be as it was built.

    Needs neither the engine's inference library nor a GPU.
    """
    from stage_rt.folders import read_engine, verify_engine

    spec = read_engine(engine)
    verify_engine(engine, spec)
    fields = _fields(engine, spec)
    console.result(_table(fields), fields, as_json=as_json)


def _fields(folder: Path, spec: "EngineSpec") -> dict[str, Any]:
    sizes = {name: (folder / name).stat().st_size for name in sorted(spec.files)}
    return {
        "engine": str(folder),
        "backend": spec.backend,
        "library": spec.library,
        "library_version": spec.library_version,
        "targets": spec.devices,
        "gpu": spec.gpu,
        "dtype": spec.dtype,
        "batch": spec.batch,
        "workspace": spec.workspace,
        "fingerprint": spec.fingerprint,
        "graphs_fingerprint": spec.graphs_fingerprint,
        "size": sum(sizes.values()),
        "files": {name: {"size": size, "sha256": spec.files[name]} for name, size in sizes.items()},
        "image_size": spec.model.image_size,
        "image_channels": spec.model.image_channels,
        "region": spec.model.region.model_dump() if spec.model.region else None,
        "prompts": spec.model.prompts,
        "defaults": {name: one.model_dump() for name, one in spec.model.defaults.items()},
        "recipe": spec.model.recipe.model_dump(mode="json"),
        "provenance": spec.model.provenance,
    }


def _table(fields: dict[str, Any]) -> str:
    recipe, region = fields["recipe"], fields["region"]
    rows = [
        ("engine", fields["engine"]),
        ("backend", f"{fields['backend']} ({fields['library']} {fields['library_version']})"),
        ("targets", ", ".join(fields["targets"])),
        *([("tuned on", fields["gpu"])] if fields["gpu"] else []),
        ("dtype", fields["dtype"]),
        ("batch", ", ".join(map(str, fields["batch"]))),
        ("workspace", _bytes(fields["workspace"])),
        ("fingerprint", fields["fingerprint"]),
        ("graphs", fields["graphs_fingerprint"]),
        ("image size", fields["image_size"]),
        ("recipe", f"{recipe['name']}, {recipe['steps']} steps"),
        ("view", f"squares of at least {region['least']} px" if region else "whole photographs"),
        ("photographs", "grey" if fields["image_channels"] == 1 else "in colour"),
        *_origin(fields["provenance"]),
        ("prompts", len(fields["prompts"])),
    ]
    prompts = {
        name: _measured(fields["defaults"].get(name, {}), recipe.get("guidance", 1.0))
        for name in fields["prompts"]
    }
    files = {name: f"{_bytes(file['size']):>10}" for name, file in fields["files"].items()}
    shown = [f"{name:<12} {value}" for name, value in rows]
    return "\n".join(
        [*shown, *_indented(prompts), f"{'files':<12} {_bytes(fields['size'])}", *_indented(files)]
    )


def _origin(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the model was made of, as far as whoever made it has said."""
    if "imported" in provenance:
        return [("imported", f"by `stage-rt import {provenance['imported']}`")]
    if "trained_on" not in provenance:
        return []
    details = [f"{name} {provenance[name]}" for name in ("preset", "seed") if name in provenance]
    if "images" in provenance:
        details.append(f"{provenance['images']} pictures")
    held_out = provenance.get("held_out")
    count = len(held_out) if isinstance(held_out, list) else 0
    return [
        ("trained on", ", ".join([f"{provenance['trained_on']}", *details])),
        (
            "held out",
            amount(count, "photograph") if count else "none, so that `stage-rt evaluate` refuses it",
        ),
    ]


def _measured(defaults: Mapping[str, Any], guidance: float) -> str:
    """The defaults of a prompt; ``guidance`` is the recipe's, for one that has none of its own."""
    own = defaults.get("guidance")
    told = [f"guidance {guidance if own is None else own:g}"]
    if defaults.get("min_fill") is not None:
        told.append(f"least fill {defaults['min_fill']:g}")
    if defaults.get("outset"):
        told.append(f"outset {defaults['outset']:g} px")
    if defaults.get("rim"):
        told.append("fades out beyond its label")
    if defaults.get("steps"):
        told.append(f"{defaults['steps']} steps by `stage-rt calibrate`")
    return ", ".join(told)


def _indented(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in sorted(rows.items())]


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size else "none"
