"""Finished runs, read and checked and left as they are."""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stage_rt.errors import ImageError, RunError
from stage_rt.files import real, unreadable
from stage_rt.folders import read_description
from stage_rt.images.inputs import read_header
from stage_rt.packs.picture import File
from stage_rt.run.ledger import LOCK_FILE, Place, read_line
from stage_rt.run.night import TYPES
from stage_rt.run.shards import indices
from stage_rt.run.writer import defect_type
from stage_rt.spec import MANIFEST_FILE, RUN_FILE, PairRecord, RunSpec

AGAIN = "run its `stage-rt synth` again"
MAKE = "make one with `stage-rt synth`"


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run and what it was made by: its pairs lie in ``folder``, its manifest in ``ledger``."""

    folder: Path
    ledger: Path
    spec: RunSpec

    @property
    def kind(self) -> str:
        """The defect type of its pairs."""
        return defect_type(self.spec.prompt)

    @property
    def every(self) -> Sequence[int]:
        """The indices of its samples: all, or those of a shard."""
        if self.spec.shard is None:
            return range(self.spec.count)
        found: list[int] = indices(self.spec.shard, self.spec.count).tolist()
        return found

    def records(self) -> Iterator[PairRecord]:
        """Its samples in order, one at a time.

        Raises:
            RunError: a line of the manifest is damaged, or the run is not finished.
        """
        path, every = self.ledger / MANIFEST_FILE, self.every
        done, again = 0, set()
        with path.open("rb") if path.is_file() else open(os.devnull, "rb") as lines:
            for number, line in enumerate(lines):
                try:
                    record = read_line(line, self.spec.prompt)
                except ValueError as damage:
                    if not line.endswith(b"\n"):
                        # Cut off by a crash.
                        break
                    raise RunError(
                        f"`{path}` is damaged in line {number + 1}", f"delete that line and {AGAIN}"
                    ) from damage
                if number >= len(every):
                    # Of a pair that was rejected, or failed, whose next attempt is not over.
                    again.add(record.index)
                    continue
                if record.index != every[number]:
                    break
                yield record
                done += 1
        done -= len(again)
        if done != len(every):
            raise RunError(
                f"`{self.ledger}` is not finished ({done} of {len(every)} samples)", f"{AGAIN} to go on"
            )

    def size(self, record: PairRecord) -> tuple[int, int]:
        """Width and height of a pair's image, by its header.

        Raises:
            RunError: the image is missing, cannot be read or was changed.
        """
        path = self._path(record.image)
        try:
            header = read_header(path)
        except ImageError as broken:
            raise _changed(path) from broken
        return header.width, header.height

    def files(self, record: PairRecord) -> tuple[File, File]:
        """Image and mask of a pair, with the digests that the manifest lists.

        Raises:
            RunError: one is missing, cannot be read or was changed.
        """
        image = self._file(record.image, record.image_sha256)
        return image, self._file(record.mask, record.mask_sha256)

    def _file(self, place: str | None, digest: str | None) -> File:
        path = self._path(place)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise _changed(path)
        return File(content, path)

    def _path(self, place: str | None) -> Path:
        path = self.folder / (place or "")
        try:
            path.open("rb").close()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise RunError(f"`{path}` is missing", f"{AGAIN}, which paints it anew") from None
        except PermissionError:
            raise unreadable(path, RunError) from None
        except OSError as refusal:
            raise RunError(
                f"`{path}` cannot be read ({refusal.strerror})", "mend that and pack again"
            ) from refusal
        return path


def places(folder: Path) -> list[Place]:
    """The run that ``folder`` is, or those of the types in it; or the one whose ledger it is, among several types.

    Raises:
        RunError: it holds no type.
    """
    types = folder / TYPES
    if (ledger := real(folder)).parent.name == TYPES and not (ledger / "test").is_dir():
        return [Place(ledger.parents[1], ledger)]
    if (folder / RUN_FILE).is_file() or not types.is_dir():
        return [Place.of(folder)]
    found = [Place(folder, ledger) for ledger in sorted(types.iterdir()) if ledger.is_dir()]
    if not found:
        raise RunError(f"`{folder}` is not a run (its `{TYPES}` is empty)", MAKE)
    return found


@contextmanager
def opened(place: Place) -> Iterator[FinishedRun]:
    """The run at ``place``, which nobody fills meanwhile.

    Raises:
        RunError: it is no run, or is being filled.
    """
    spec = read_description(
        place.ledger / RUN_FILE,
        RunSpec,
        RunError,
        absent=f"is not a run (no {RUN_FILE}): {MAKE}",
        remedy="start the run again in an empty folder",
    )
    with _held(place.ledger / LOCK_FILE):
        yield FinishedRun(*place, spec)


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Keep writers out; copies of runs may lack the hidden file, and need no lock."""
    there = lock.is_file()
    try:
        if there:
            lock.open("rb").close()
    except PermissionError:
        raise unreadable(lock, RunError) from None
    with lock.open("rb") if there else open(os.devnull, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise RunError(
                f"`{lock.parent}` is being filled", "wait for its `stage-rt synth` to end"
            ) from taken
        yield


def _changed(path: Path) -> RunError:
    return RunError(f"`{path}` was changed after it was written", f"{AGAIN}, which paints it anew")
