"""A graphs folder, checked before anything in it is used."""

from pathlib import Path

from pydantic import ValidationError

from stage_rt.errors import GraphsError
from stage_rt.files import verify
from stage_rt.spec import GRAPHS_FILE, PROMPTS_FILE, GraphsSpec, first_fault

REMEDY = "export the model again with `stage-rt export`"


def read_graphs(folder: Path) -> GraphsSpec:
    """``model.json`` of a graphs folder, once every file was found to be as it lists them.

    Raises:
        GraphsError: the folder is incomplete, changed or inconsistent.
    """
    path = folder / GRAPHS_FILE
    try:
        graphs = GraphsSpec.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise GraphsError(
            f"`{folder}` is not a graphs folder (no {GRAPHS_FILE}): make one with `stage-rt export`"
        ) from None
    except ValidationError as error:
        where, why = first_fault(error)
        raise GraphsError(f"`{path}` is not valid at {where} ({why}): {REMEDY}") from None
    for needed in (*(f"{graph}.onnx" for graph in graphs.model.graphs), PROMPTS_FILE):
        if needed not in graphs.files:
            raise GraphsError(f"`{path}` does not list `{needed}`: {REMEDY}")
    verify(folder, graphs.files, GRAPHS_FILE, GraphsError, REMEDY)
    return graphs
