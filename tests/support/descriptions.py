"""Changes to ``model.json`` and ``engine.json`` that are meant, so that their own digest goes with them."""

import json
from pathlib import Path

from pydantic import ValidationError

from stage_rt.files import digests
from stage_rt.spec import ENGINE_FILE, GRAPHS_FILE, EngineSpec, GraphsSpec

KINDS = {GRAPHS_FILE: GraphsSpec, ENGINE_FILE: EngineSpec}


def rewrite(path: Path, **fields: object) -> None:
    """Change fields of a description; one that is no longer valid has a digest that fits nothing."""
    content = json.loads(path.read_text()) | fields
    del content["sha256"]
    try:
        path.write_text(KINDS[path.name].model_validate(content).sealed())
    except ValidationError:
        path.write_text(json.dumps(content | {"sha256": "0" * 64}))


def relist(folder: Path) -> None:
    """Make ``model.json`` list every file as it is now."""
    files = digests(folder)
    del files[GRAPHS_FILE]
    rewrite(folder / GRAPHS_FILE, files=files)
