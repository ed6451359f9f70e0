"""The good photographs that runs were painted into, found again and known by their contents."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stage_rt.errors import DatasetError, InputError
from stage_rt.files import sha256
from stage_rt.images import layouts
from stage_rt.images.inputs import Header, read_header
from stage_rt.packs.runs import FinishedRun
from stage_rt.run.plan import files_digest
from stage_rt.run.sample import readable


def find(folders: Sequence[Path], runs: Mapping[FinishedRun, set[str]]) -> list[Path]:
    """All photographs of ``folders``, each of which some run was given as its ``--normals``.

    ``runs`` maps every run to the names of the photographs that it used.

    Raises:
        DatasetError: a folder is missing or empty, or is not as a run was given it.
        InputError: a run has no pixels of its photographs.
    """
    known = [_Folder(folder) for folder in folders]
    left = set(folders)
    for run, used in runs.items():
        if not run.spec.composite:
            raise InputError(
                f"`{run.folder}` was painted with `--no-composite`, so that its pairs do not look like photographs",
                "leave out `--normals`",
            )
        given = [each for each in known if each.digest(used) == run.spec.normals]
        if not given:
            names = ", ".join(f"`{folder}`" for folder in folders)
            raise DatasetError(
                f"{names} does not hold the photographs of `{run.folder}` as they were when it was painted",
                "give the folder that its `stage-rt synth` was given",
            )
        left -= {each.path for each in given}
    if left:
        raise DatasetError(f"no run was painted into the photographs of `{min(left)}`", "leave it out")
    return [path for each in known for path in each.headers]


class _Folder:
    """Photographs whose contents are read when they are asked for, once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.headers: dict[Path, Header] = {file: read_header(file) for file in layouts.normals(path)}
        self._contents: dict[Path, str] = {}

    def digest(self, used: set[str]) -> str:
        """As a run that used these has it in its description."""
        for path in self.headers:
            if readable(path) in used and path not in self._contents:
                self._contents[path] = sha256(path)
        contents = {path: self._contents[path] if readable(path) in used else "" for path in self.headers}
        return files_digest(self.headers, contents)
