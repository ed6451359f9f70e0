"""The good photographs that runs were painted into, found again and known by their contents."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stage_rt.errors import DatasetError, InputError
from stage_rt.files import sha256
from stage_rt.images import layouts
from stage_rt.images.inputs import Header, read_header
from stage_rt.packs.runs import FinishedRun
from stage_rt.run.plan import files_digest
from stage_rt.run.sample import readable


def find(
    folders: Sequence[Path], runs: Mapping[FinishedRun, Mapping[str, Collection[str | None]]]
) -> dict[Path, str]:
    """All photographs of ``folders`` and their sha256; some run was given each folder as its ``--normals``.

    ``runs`` maps every run to the photographs that it used, by their names, and the sha256 of all that had one.

    Raises:
        DatasetError: a folder is missing or empty, or is not as a run was given it.
        InputError: a run has no pixels of its photographs.
    """
    known = [Folder(folder) for folder in folders]
    left = set(folders)
    for run, used in runs.items():
        if not run.spec.composite:
            raise InputError(
                f"`{run.folder}` was painted with `--no-composite`, so that its pairs do not look like photographs",
                "leave out `--normals`",
            )
        given = [each for each in known if each.digest == run.spec.normals and each.holds(used)]
        if not given:
            raise _lacking(folders, run.folder)
        left -= {each.path for each in given}
    if left:
        raise _needless(min(left))
    return {path: each.content(path) for each in known for path in each.headers}


def check(folders: Sequence["Folder"], runs: Sequence[FinishedRun]) -> None:
    """See that every run was given one of ``folders`` as its ``--normals``, and each was given to one.

    Raises:
        DatasetError: it is not so.
    """
    digests = {folder.digest for folder in folders}
    for run in runs:
        if run.spec.normals not in digests:
            raise _lacking([folder.path for folder in folders], run.ledger)
    wanted = {run.spec.normals for run in runs}
    for folder in folders:
        if folder.digest not in wanted:
            raise _needless(folder.path)


def _lacking(folders: Sequence[Path], run: Path) -> DatasetError:
    names = ", ".join(f"`{folder}`" for folder in folders)
    return DatasetError(
        f"{names} does not hold the photographs of `{run}` as they were when it was painted",
        "give the folder that its `stage-rt synth` was given",
    )


def _needless(folder: Path) -> DatasetError:
    return DatasetError(f"no run was painted into the photographs of `{folder}`", "leave it out")


class Folder:
    """Photographs whose contents are read when they are asked for, once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.headers: dict[Path, Header] = {file: read_header(file) for file in layouts.normals(path)}
        self._contents: dict[Path, str] = {}

    @property
    def digest(self) -> str:
        """As a run that was given these has it in its description."""
        return files_digest(self.headers)

    def holds(self, used: Mapping[str, Collection[str | None]]) -> bool:
        """Whether those that a run used, by name, are here with the contents that they had."""
        found = defaultdict[str, set[str | None]](set)
        for path in self.headers:
            if readable(path) in used:
                found[readable(path)].add(self.content(path))
        return all(found[name].issuperset(contents) for name, contents in used.items())

    def content(self, path: Path) -> str:
        """sha256 of one of its photographs."""
        if path not in self._contents:
            self._contents[path] = sha256(path)
        return self._contents[path]
