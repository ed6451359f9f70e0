"""``stage-rt inspect``: what an engine folder holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stage_rt.cli import console

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
        ("prompts", ", ".join(sorted(fields["prompts"]))),
        ("files", _bytes(fields["size"])),
    ]
    lines = [f"{name:<12} {value}" for name, value in rows]
    files = fields["files"].items()
    width = max(len(name) for name, _ in files)
    return "\n".join([*lines, *(f"  {name:<{width}}  {_bytes(file['size']):>10}" for name, file in files)])


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size else "none"
