"""Changes to ``model.json`` and ``engine.json`` that are meant, so that their own digest goes with them."""

import json
from pathlib import Path

from stage_rt.files import digests
from stage_rt.spec import GRAPHS_FILE


def rewrite(path: Path, **fields: object) -> None:
    """Change fields of a description."""
    content = json.loads(path.read_text()) | fields
    content.pop("sha256", None)
    path.write_text(json.dumps(content))


def relist(folder: Path) -> None:
    """Make ``model.json`` list every file as it is now."""
    files = digests(folder)
    del files[GRAPHS_FILE]
    rewrite(folder / GRAPHS_FILE, files=files)
