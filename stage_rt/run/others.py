"""Types that lie in a folder already and that a command does not name: what they hold stays as it was."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from stage_rt.errors import RunError, printable
from stage_rt.files import sha256
from stage_rt.folders import read_description
from stage_rt.run import thumbnails
from stage_rt.run.contact_sheet import Chosen
from stage_rt.run.ledger import Place, read_line
from stage_rt.run.metrics import Counts, Outcome
from stage_rt.run.report import Part
from stage_rt.run.sample import readable
from stage_rt.run.shards import indices
from stage_rt.run.writer import defect_type
from stage_rt.spec import MANIFEST_FILE, RUN_FILE, PairRecord, RunSpec

ALL = "name all of its types by `--type` or `--jobs`"


class Others(NamedTuple):
    """The finished types of a folder as ``parts`` of its page, and of those that are not finished too all photographs
    that were ``painted`` into and ``counts`` of what each came to."""

    parts: list[Part]
    painted: set[Path]
    counts: dict[str, Counts]


def others(folder: Path, types: Path, named: Sequence[Path], photographs: Mapping[Path, str]) -> Others:
    """What is known of the runs in ``types`` that are not ``named``, whose pairs lie in ``folder``.

    ``photographs`` are those of the command with their sha256: what was painted into is found among them.

    Raises:
        RunError: one is damaged, or a picture of it that the page shows, or it was painted into a photograph that the
            command was not given.
    """
    known: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for path, digest in photographs.items():
        known[readable(path)].setdefault(digest, path)
    found = Others([], set(), {})
    for ledger in sorted(set(types.iterdir()) - set(named)):
        # Without a description nothing was painted.
        if (ledger / RUN_FILE).is_file():
            _add(found, Place(folder, ledger), known)
    return found


def _add(found: Others, place: Place, known: Mapping[str, Mapping[str, Path]]) -> None:
    spec = read_description(
        place.ledger / RUN_FILE,
        RunSpec,
        RunError,
        absent="is no run",
        remedy="start again in an empty folder",
    )
    numbers, shown = [], []
    came: dict[int, Outcome] = {}
    for record in _records(place.ledger / MANIFEST_FILE, spec.prompt):
        numbers.append(record.index)
        shown.append(_photograph(record, place, spec.prompt, known))
        # The last line of an index counts.
        came[record.index] = Outcome.of(record)
    found.painted.update(shown)
    planned = indices(spec.shard, spec.count).tolist() if spec.shard else list(range(spec.count))
    counts = found.counts[defect_type(spec.prompt)] = Counts(len(planned))
    counts.add_all(Counter(outcome for outcome in came.values() if outcome.status != "rejected"))
    if numbers == planned:
        _check_pictures(place, spec)
        found.parts.append(Part(place, spec, shown))


def _check_pictures(place: Place, spec: RunSpec) -> None:
    """See that what the page will be made of is as it was painted, before hours are spent on another type."""
    chosen = Chosen(len(indices(spec.shard, spec.count)) if spec.shard else spec.count)
    for number, record in enumerate(_records(place.ledger / MANIFEST_FILE, spec.prompt)):
        if record.status != "ok":
            continue
        drawn = (place.data / thumbnails.path(defect_type(spec.prompt), record)).is_file()
        if not chosen.takes(number) and drawn:
            continue
        for name, digest in ((record.image, record.image_sha256), (record.mask, record.mask_sha256)):
            if not _intact(place.data / str(name), digest):
                raise RunError(
                    f"`{place.data / str(name)}` of {spec.prompt!r} is missing or not as it was painted, and the "
                    "report shows it",
                    "name its type too, and it is painted again",
                )


def _intact(path: Path, digest: str | None) -> bool:
    try:
        return sha256(path) == digest
    except OSError:
        return False


def _records(manifest: Path, prompt: str) -> Iterator[PairRecord]:
    """The lines of a manifest, of which a crash may have cut off the last."""
    if not manifest.is_file():
        return
    with manifest.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield read_line(line, prompt)
            except ValueError as damage:
                raise RunError(f"`{manifest}` is damaged in line {number}", ALL) from damage


def _photograph(
    record: PairRecord, place: Place, prompt: str, known: Mapping[str, Mapping[str, Path]]
) -> Path:
    named = known.get(record.normal, {})
    # Older releases wrote no digest.
    found = named.get(record.normal_sha256) if record.normal_sha256 else next(iter(named.values()), None)
    if found is None:
        raise RunError(
            f"`{place.data}` also holds pairs of {prompt!r}, and `{printable(record.normal)}`, which they were "
            "painted into, is not among the photographs of this command as it was then",
            ALL,
        )
    return found
