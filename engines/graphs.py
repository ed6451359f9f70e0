"""A graphs folder, checked before anything in it is used."""

from pathlib import Path

from stage_rt.errors import GraphsError
from stage_rt.folders import read_contexts, read_description, verify
from stage_rt.spec import GRAPHS_FILE, PROMPTS_FILE, GraphsSpec

REMEDY = "export the model again with `stage-rt export`"


def read_graphs(folder: Path) -> GraphsSpec:
    """``model.json`` of a graphs folder, once every file was found to be as it lists them.

    Raises:
        GraphsError: the folder is incomplete, changed or inconsistent.
    """
    path = folder / GRAPHS_FILE
    absent = f"is not a graphs folder (no {GRAPHS_FILE}): make one with `stage-rt export`"
    graphs = read_description(path, GraphsSpec, GraphsError, absent=absent, remedy=REMEDY)
    for needed in (*(f"{graph}.onnx" for graph in graphs.model.graphs), PROMPTS_FILE):
        if needed not in graphs.files:
            raise GraphsError(f"`{path}` does not list `{needed}`: {REMEDY}")
    verify(folder, graphs.files, GRAPHS_FILE, GraphsError, REMEDY)
    read_contexts(folder / PROMPTS_FILE, graphs.model, GraphsError, REMEDY)
    return graphs
