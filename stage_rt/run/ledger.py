"""What of a run is done: the manifest it resumes from, and the lock and description of its folder.

A pair is in place before its line is appended to ``manifest.jsonl``; the line is what makes it done.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from stage_rt.errors import InputError, RunError
from stage_rt.files import disk_failures, holds, identity, staged_for, unreadable, write_atomic
from stage_rt.noise import stream
from stage_rt.run.checks import CHECKS_FILE
from stage_rt.run.differences import Given, difference, fields_of
from stage_rt.run.index import INDEX_FILE, Index
from stage_rt.run.writer import pair_paths
from stage_rt.spec import MANIFEST_FILE, RUN_FILE, PairRecord, RunSpec, is_newer

LOCK_FILE = ".lock"
INDEXED = 50_000
"""Lines after which the index is written; what a crash loses of it is read again from the manifest."""
_OWN = re.compile("|".join(map(re.escape, (RUN_FILE, MANIFEST_FILE, INDEX_FILE, CHECKS_FILE))))
_PAIR = re.compile(r"\d{6,}(_mask)?\.png")
_CHECK = b',"check":"'
_CONTENTS = {"normal_sha256": "normal", "label_sha256": "label"}


class Place(NamedTuple):
    """Where a run lies: its pairs in the MVTec layout of ``data``, description, manifest and report in ``ledger``.

    The runs of several types share one ``data``.
    """

    data: Path
    ledger: Path

    @classmethod
    def of(cls, folder: Path) -> "Place":
        """Both in one folder."""
        return cls(folder, folder)


class Manifest:
    """``manifest.jsonl``: one line a pair, synced to disk one by one; the last line of an index counts.

    ``records`` maps index to record, each read when it is asked for. Opening drops a last line that has no end, as a
    crash leaves it, and reads only what its `Index` does not know. ``look``: nothing is written, as another process
    may be at work on it.

    Raises:
        RunError: any other line is damaged.
    """

    def __init__(self, path: Path, prompt: str, *, count: int = 0, look: bool = False) -> None:
        self._path, self._prompt = path, prompt
        if not look:
            path.touch()
        self._index = Index.kept(path)
        self._index.reserve(count)
        with path.open("rb") as file:
            file.seek(self._index.size)
            for line in file:
                if line.endswith(b"\n"):
                    record = self._parse(line, self._index.lines + 1)
                    self._index.orderly &= line_of(record) == line
                    self._index.add(record.index, line)
        if not look and self._index.size < path.stat().st_size:
            os.truncate(path, self._index.size)

    @property
    def records(self) -> Mapping[int, PairRecord]:
        """What is known of each sample."""
        return _Records(self._path, self._prompt, self._index)

    def append(self, record: PairRecord) -> None:
        """Add a line and sync it.

        Raises:
            OSError: the disk is full or failed; the line is not there.
        """
        line = line_of(record)
        try:
            with self._path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # What came of it would be part of the next line, or move it from where the index has it.
            with suppress(OSError):
                os.truncate(self._path, self._index.size)
            raise
        self._index.add(record.index, line)
        if self._index.new >= INDEXED:
            self.save()

    def seal(self, index: int, folder: Path, planned: Mapping[str, object]) -> None:
        """Remember that a sample is `done`: its files were just written, or were held to their digests."""
        self._index.seal(index, self._seal(index, folder, planned))

    def save(self) -> None:
        """Leave the next process less to read; a manifest serves without."""
        with suppress(OSError):
            self._index.save()

    def tidy(self, indices: Sequence[int] | NDArray[np.int64]) -> None:
        """One line for each of ``indices``, so that a resumed run leaves the bytes of an uninterrupted one."""
        if not self._index.in_order(indices):
            records, tidied = self.records, Index(self._path)
            tidied.reserve(len(self._index.offsets))

            def lines() -> Iterator[bytes]:
                for index in map(int, indices):
                    line = line_of(records[index])
                    tidied.add(index, line, int(self._index.seals[index]))
                    yield line

            write_atomic(self._path, lines())
            self._index = tidied

    def done(self, index: int, folder: Path, planned: Mapping[str, object]) -> bool:
        """Whether the pair was left out, or written and both of its files still have the bytes that were.

        A record whose fields are not those ``planned`` is not believed. Files that have the sizes, times and inodes
        they had when they were held to their digests are not read again.

        Raises:
            RunError: the pair was made from a file of that name with another content.
        """
        if self._index.offset(index) < 0:
            return False
        if self._index.seals[index] and self._index.seals[index] == self._seal(index, folder, planned):
            return True
        done = self._checked(self.records[index], folder, planned)
        if done:
            self.seal(index, folder, planned)
        return done

    def _checked(self, record: PairRecord, folder: Path, planned: Mapping[str, object]) -> bool:
        other = [field for field, value in planned.items() if getattr(record, field) != value]
        if other and set(other) <= set(_CONTENTS):
            name = f"another `{getattr(record, _CONTENTS[other[0]])}` (pair {record.index})"
            raise RunError(
                f"`{self._path.parent}` holds another run, which was made from {name}: give "
                "the files it was started with or another `-o`"
            )
        if other:
            return False
        if record.status == "left out":
            return True
        if record.image is None or record.mask is None:
            return False
        files = ((folder / record.image, record.image_sha256), (folder / record.mask, record.mask_sha256))
        return all(holds(path, digest) for path, digest in files)

    def _seal(self, index: int, folder: Path, planned: Mapping[str, object]) -> int:
        """A number that tells what was planned for a sample and the files there are of it; never 0."""
        told = repr(
            (*planned.values(), *(identity(f"{folder}/{path}") for path in pair_paths(self._prompt, index)))
        )
        return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest()) or 1

    def _parse(self, line: bytes, number: int) -> PairRecord:
        try:
            record = read_line(line, self._prompt)
            stream(record.index)
        except (ValueError, InputError) as damage:
            raise RunError(
                f"`{self._path}` is damaged in line {number}: delete that line and run the same command again"
            ) from damage
        return record


class _Records(Mapping[int, PairRecord]):
    """The records of a manifest by index; none is kept in memory."""

    def __init__(self, path: Path, prompt: str, index: Index) -> None:
        self._path, self._prompt, self._index = path, prompt, index

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[int]:
        return iter(self._index.numbers().tolist())

    def __getitem__(self, index: int) -> PairRecord:
        offset = self._index.offset(index)
        if offset < 0:
            raise KeyError(index)
        with self._path.open("rb") as file:
            file.seek(offset)
            return read_line(file.readline(), self._prompt)


def read_line(line: bytes, prompt: str) -> PairRecord:
    """The record of a line of ``manifest.jsonl`` of a run of ``prompt``.

    Raises:
        ValueError: the line is not as it was written.
    """
    content, check = _split(line.removesuffix(b"\n"))
    record = PairRecord.model_validate_json(content)
    if check not in (None, _check(content)):
        raise ValueError("not as it was written")
    if record.image is not None and (record.image, record.mask) != pair_paths(prompt, record.index):
        raise ValueError("not the paths of this pair")
    return record


def records_of(place: Place, prompt: str) -> Iterator[PairRecord]:
    """The lines of a manifest that is tidy, one at a time.

    Raises:
        ValueError: a line is not as it was written.
    """
    with (place.ledger / MANIFEST_FILE).open("rb") as lines:
        for line in lines:
            yield read_line(line, prompt)


@contextmanager
def open_run(place: Place, spec: RunSpec, given: Callable[[], Given] = dict) -> Iterator[Manifest]:
    """Start the run at ``place``, or go on with it, and keep other processes out of it meanwhile.

    ``given`` tells the job's files, to say which of them are others.

    Raises:
        RunError: the folder cannot be written, holds other files or another run, is damaged or in use.
        StageError: the disk is full or failed while the run was open.
    """
    folder = place.ledger
    claim(folder, RUN_FILE)
    with disk_failures(folder), locked_run(folder):
        content = describe(spec)
        if same_job(folder / RUN_FILE, spec, given) != content:
            write_atomic(folder / RUN_FILE, content)
        for staged in _left_by_a_crash(place, spec.prompt):
            staged.unlink()
        manifest = Manifest(folder / MANIFEST_FILE, spec.prompt, count=spec.count)
        try:
            yield manifest
        finally:
            manifest.save()


def _left_by_a_crash(at: Place, prompt: str) -> Iterator[Path]:
    """Staged files of the run's own, found where it makes them; nobody else's."""
    pair = [(at.data / path).parent for path in pair_paths(prompt, 0)]
    folders = dict.fromkeys(at, _OWN) | dict.fromkeys(pair, _PAIR)
    for place, own in folders.items():
        for path in place.glob(".*.tmp"):
            if own.fullmatch(staged_for(path) or ""):
                yield path


def claim(folder: Path, description: str) -> None:
    """Make a folder, which may be there already if it holds ``description`` or nothing.

    Raises:
        RunError: it cannot be made, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as refusal:
        raise RunError(f"`{folder}` cannot be made a folder: give another `-o`") from refusal
    check_claim(folder, description)


def check_claim(folder: Path, description: str) -> None:
    """See that a folder, which is there, holds ``description`` or nothing.

    Raises:
        RunError: it holds something else.
    """
    others = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if others and not (folder / description).exists():
        raise RunError(f"`{folder}` holds files that are no run of stage-rt: give an empty folder as `-o`")


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, once it is there.

    Raises:
        RunError: another process is in it, or it may not be written.
    """
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as refusal:
        raise RunError(
            f"`{folder}` may not be written: give yourself permission or another `-o`"
        ) from refusal
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise RunError(f"`{folder}` is being filled by another process: wait for it to end") from taken
        yield
    finally:
        os.close(lock)


def same_job(path: Path, spec: RunSpec, given: Callable[[], Given] = dict) -> bytes | None:
    """The ``run.json`` at ``path``, which the job of ``spec`` goes on with; None where there is none.

    ``given`` tells the job's files, to say which of them are others.

    Raises:
        RunError: it is of another job, or damaged.
    """
    if not path.exists():
        return None
    try:
        old = path.read_bytes()
        there = RunSpec.model_validate_json(old)
        fields_of(there)
    except PermissionError:
        raise unreadable(path, RunError) from None
    except (ValidationError, InputError) as damage:
        if isinstance(damage, ValidationError) and is_newer(damage):
            raise RunError(f"`{path}` was made by a newer stage-rt", "update this one") from damage
        raise RunError(f"`{path}` is damaged: start again in an empty folder") from damage
    found = difference(there, spec, given, lambda: _readable(path.with_name(MANIFEST_FILE), there.prompt))
    if found is not None:
        told, way_back = found
        raise RunError(f"`{path.parent}` holds another run, {told}", f"{way_back} or give another `-o`")
    if spec.count < there.count:
        raise RunError(
            f"`{path.parent}` holds a run of {there.count} pairs",
            f"give `--count {there.count}` or more, or another `-o`",
        )
    return old


def _readable(manifest: Path, prompt: str) -> Iterator[PairRecord]:
    """The lines of a manifest that are as they were written."""
    with manifest.open("rb") if manifest.is_file() else open(os.devnull, "rb") as lines:
        for line in lines:
            with suppress(ValueError):
                yield read_line(line, prompt)


def describe(spec: RunSpec) -> bytes:
    """The content of ``run.json``."""
    return spec.model_dump_json(indent=2).encode() + b"\n"


def line_of(record: PairRecord) -> bytes:
    """A record as JSON whose last field is the digest of the others: an edited one is as wrong as an edited image."""
    content = record.model_dump_json(exclude_none=True).encode()
    return content[:-1] + _CHECK + _check(content) + b'"}\n'


def _split(line: bytes) -> tuple[bytes, bytes | None]:
    """The JSON of a record and its digest, which older releases did not write."""
    content, found, end = line.rpartition(_CHECK)
    if not found:
        return line, None
    return content + b"}", end.removesuffix(b'"}')


def _check(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()
