"""The shards of a run, joined to the run that one process would have painted."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path

from stage_rt.errors import DatasetError, RunError
from stage_rt.files import check_apart, new_folder, write_atomic
from stage_rt.packs.photographs import Folder, check
from stage_rt.packs.runs import FinishedRun, opened, places
from stage_rt.progress import Progress, portion, silent
from stage_rt.run.fill import Summary, conclude
from stage_rt.run.ledger import Manifest, Place, describe, line_of
from stage_rt.run.publish import publish
from stage_rt.run.report import Part
from stage_rt.run.sample import readable
from stage_rt.spec import MANIFEST_FILE, RUN_FILE, PairRecord

_MAY_DIFFER = {"shard", "backend", "dtype"}


def merge(
    shards: Sequence[Path], normals: Sequence[Path], folder: Path, progress: Progress = silent
) -> dict[str, Summary]:
    """Make ``folder`` the run whose shards are given; what it came to, by its prompts.

    Pairs are held to the digests of the manifests and linked where the file system allows it. ``normals`` are the
    folders of the photographs, which the report shows. The folder appears when it is complete.

    Raises:
        RunError: a shard is missing, given twice, not finished, damaged or of another run.
        DatasetError: ``normals`` are not the folders that the run was given, or a photograph is not as it was.
        InputError: ``folder`` has content, or lies in a shard.
    """
    with ExitStack() as stack:
        found = [[stack.enter_context(opened(place)) for place in places(shard)] for shard in shards]
        for run in chain.from_iterable(found):
            check_apart(run.folder, folder)
        staged = stack.enter_context(new_folder(folder))
        types, given = _by_type(found), [Folder(folder) for folder in normals]
        check(given, [parts[0] for parts in types])
        photographs = _Photographs(given)
        total, done, summaries = sum(parts[0].spec.count for parts in types), 0, {}
        joined = []
        for parts in types:
            spec = parts[0].spec
            place = Place(staged, staged / parts[0].ledger.relative_to(parts[0].folder))
            share = portion(progress, done / total, (done + spec.count) / total)
            summaries[spec.prompt], part = _join(parts, photographs, place, share)
            joined.append(part)
            done += spec.count
        publish(staged, joined, photographs.contents)
    progress(1.0)
    return {prompt: _moved(summary, staged, folder) for prompt, summary in summaries.items()}


def _by_type(found: Sequence[Sequence[FinishedRun]]) -> list[list[FinishedRun]]:
    """The shards of every type, in order.

    Raises:
        RunError: they are not all shards of one run.
    """
    kinds = [[run.ledger.relative_to(run.folder) for run in runs] for runs in found]
    if any(kind != kinds[0] for kind in kinds):
        other = found[next(n for n, kind in enumerate(kinds) if kind != kinds[0])][0].folder
        raise RunError(
            f"`{found[0][0].folder}` and `{other}` hold other types", "give the shards of one command"
        )
    return [_in_order(parts) for parts in zip(*found, strict=True)]


def _in_order(parts: Sequence[FinishedRun]) -> list[FinishedRun]:
    first = parts[0]
    by_number: dict[int, FinishedRun] = {}
    for run in parts:
        shard = run.spec.shard
        if shard is None or first.spec.shard is None:
            whole = run if shard is None else first
            raise RunError(f"`{whole.ledger}` is no shard but a whole run", "leave it out")
        for field, value in first.spec:
            if field not in _MAY_DIFFER and getattr(run.spec, field) != value:
                raise RunError(
                    f"`{first.ledger}` and `{run.ledger}` are not of one run: their {field} differs",
                    "give the shards of one command",
                )
        if (shard.of, shard.together) != (first.spec.shard.of, first.spec.shard.together):
            raise RunError(
                f"`{first.ledger}` is shard {first.spec.shard} and `{run.ledger}` shard {shard}",
                "give the shards of one command",
            )
        if shard.number in by_number:
            raise RunError(
                f"`{by_number[shard.number].ledger}` and `{run.ledger}` are both shard {shard.number}/{shard.of}",
                "leave one out",
            )
        by_number[shard.number] = run
    shard = first.spec.shard
    assert shard is not None
    lacking = [number for number in range(1, shard.of + 1) if number not in by_number]
    if lacking:
        names = ", ".join(f"{number}/{shard.of}" for number in lacking[:10])
        raise RunError(f"of the shards of `{first.ledger}` {names} are not given", "give all of them")
    return [by_number[number] for number in sorted(by_number)]


def _join(
    parts: Sequence[FinishedRun], photographs: "_Photographs", place: Place, progress: Progress
) -> tuple[Summary, Part]:
    spec = parts[0].spec.model_copy(update={"shard": None})
    shown: list[Path] = []

    def lines() -> Iterator[bytes]:
        for record, run in _records(parts):
            progress(record.index / spec.count)
            shown.append(photographs.of(record))
            if record.image is not None and record.mask is not None:
                image, mask = run.files(record)
                mask.put(place.data / record.mask)
                image.put(place.data / record.image)
            yield line_of(record)

    write_atomic(place.ledger / RUN_FILE, describe(spec))
    write_atomic(place.ledger / MANIFEST_FILE, lines())
    manifest = Manifest(place.ledger / MANIFEST_FILE, spec.prompt)
    return conclude(spec, range(spec.count), manifest, place, written=0), Part(place, spec, shown)


def _records(parts: Sequence[FinishedRun]) -> Iterator[tuple[PairRecord, FinishedRun]]:
    """Every sample's record in order, and the shard it is of."""
    shard, records = parts[0].spec.shard, [run.records() for run in parts]
    assert shard is not None
    for index in range(parts[0].spec.count):
        number = index // shard.together % shard.of
        yield next(records[number]), parts[number]
    for rest in records:
        # Says what is wrong where one holds more or less than it should.
        for _ in rest:
            pass


class _Photographs:
    """The photographs of folders by name and content, each read when it is asked for."""

    def __init__(self, folders: Sequence[Folder]) -> None:
        self._folders = folders
        self._named: dict[str, list[tuple[Folder, Path]]] = {}
        for folder in folders:
            for path in folder.headers:
                self._named.setdefault(readable(path), []).append((folder, path))

    @property
    def contents(self) -> dict[Path, str]:
        """All of them, with their sha256."""
        return {path: folder.content(path) for folder in self._folders for path in folder.headers}

    def of(self, record: PairRecord) -> Path:
        for folder, path in self._named.get(record.normal, ()):
            if record.normal_sha256 in (None, folder.content(path)):
                return path
        names = ", ".join(f"`{folder.path}`" for folder in self._folders)
        raise DatasetError(
            f"{names} does not hold `{record.normal}` as it was when it was painted into",
            "give the folders that `stage-rt synth` was given",
        )


def _moved(summary: Summary, staged: Path, folder: Path) -> Summary:
    """``summary`` with the paths that its files have in the end."""
    sheet, page = (folder / path.relative_to(staged) for path in (summary.contact_sheet, summary.report))
    return replace(summary, contact_sheet=sheet, report=page, written=summary.pairs)
