"""Data sets of real defects."""

from pathlib import Path

from stage_rt.errors import DatasetError
from stage_rt.images.layouts import Dataset, datasets
from stage_rt.run.night import TYPES
from stage_rt.serve.kept import LIST
from stage_rt.spec import CLIENT_FILE, PACK_FILE, RUN_FILE

_PAINTED = (RUN_FILE, f"{TYPES}/*/{RUN_FILE}", PACK_FILE, CLIENT_FILE, LIST)
"""Files that only folders of painted pairs have."""


def real_datasets(root: Path) -> list[Dataset]:
    """The objects of ``root`` as `datasets` finds them, none of which stage-rt painted.

    Raises:
        DatasetError: nothing found, or the defects of one are painted.
    """
    found = datasets(root)
    for dataset in found:
        mark = next((path for mark in _PAINTED for path in dataset.folder.glob(mark)), None)
        if mark is not None:
            raise DatasetError(
                f"the defects in `{dataset.folder}` are painted, as its `{mark.relative_to(dataset.folder)}` tells",
                "give a data set of real ones",
            )
    return found
