"""Finished runs merged into one data set, whole or not at all."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, combinations, count
from pathlib import Path

from stage_rt.errors import InputError
from stage_rt.files import real, staged_folder
from stage_rt.names import PackName
from stage_rt.packs import FORMATS
from stage_rt.packs.photographs import find
from stage_rt.packs.picture import SIDES, Side
from stage_rt.packs.pictures import good, pairs
from stage_rt.packs.runs import FinishedRun, opened, places
from stage_rt.packs.split import Counts, alike, held_out, kept_good
from stage_rt.packs.survey import Survey, check_any, survey
from stage_rt.progress import Progress, portion, silent
from stage_rt.run.sample import readable
from stage_rt.run.writer import GOOD
from stage_rt.spec import PACK_FILE

PROVENANCE_FILE = "provenance.jsonl"

_SURVEY = 0.1
"""Share of the progress that reading the manifests is."""
_NO_JOB = {"count": 1, "batch": 1, "shard": None, "dtype": None}
_OF_A_RUN = {"engine", "backend", "sampler", "prompt", "count", "seed", "composite", "steps", "min_fill"}


@dataclass(frozen=True)
class Request:
    """What is to be packed, and how.

    ``split`` is the share to train on. ``normals`` are the folders of good photographs that the runs were given, if
    those are to go along. ``weak`` is whether pairs whose label stayed weak do.
    """

    runs: Sequence[Path]
    format: PackName
    split: float = 0.8
    seed: int = 0
    normals: Sequence[Path] = ()
    weak: bool = True


@dataclass(frozen=True)
class Summary:
    """What a pack holds: ``pictures`` by side and type, good ones among them, and samples ``skipped`` by reason."""

    classes: list[str]
    pictures: dict[Side, dict[str, int]]
    skipped: dict[str, int]

    def pairs(self, side: Side) -> int:
        """How many pairs a side has."""
        return sum(number for kind, number in self.pictures[side].items() if kind != GOOD)


@dataclass(frozen=True)
class _Sides:
    """Where photographs stand: ``out`` are held out, and what was painted into those ``taken`` has no place.

    Both are known by the first name they have, which ``first`` tells of every name.
    """

    first: Mapping[str, str]
    out: frozenset[str]
    taken: frozenset[str] = frozenset()

    def of_good(self, name: str) -> Side:
        return "val" if self.first[name] in self.out else "train"

    def of_pairs(self, name: str) -> Side | None:
        return None if self.first[name] in self.taken else self.of_good(name)


def pack(request: Request, output: Path, progress: Progress = silent) -> Summary:
    """Write the pairs of finished runs as one data set into ``output``; the same runs give the same files.

    Pictures are read one after the other and held to the digests of their manifests. ``progress`` is told the share
    that is done; what it raises leaves nothing behind.

    Raises:
        InputError: the split is no share, ``output`` has content, there is nothing to pack, or two runs have the same
            pairs.
        RunError: a folder is no finished run, or a file of it was changed.
        DatasetError, ImageError: the photographs are not those of the runs, or cannot be read.
        MissingExtraError: the library of the format is not installed.
    """
    if not 0 <= request.split <= 1:
        raise InputError(f"the split must be a share to train on from 0 to 1, not {request.split:g}")
    _check_distinct(request.runs)
    with ExitStack() as held:
        runs = [held.enter_context(opened(at)) for folder in request.runs for at in places(folder)]
        with staged_folder(output) as folder:
            found = survey(runs, weak=request.weak, progress=portion(progress, 0.0, _SURVEY))
            _check_jobs(found.used)
            photographs = find(request.normals, found.used) if request.normals else {}
            return _write(folder, request, runs, found, photographs, portion(progress, _SURVEY, 1.0))


def _check_distinct(folders: Sequence[Path]) -> None:
    ((folder, times),) = Counter(map(real, folders)).most_common(1)
    if times > 1:
        raise InputError(f"`{folder}` is given {times} times", "name every run once")


def _check_jobs(used: Mapping[FinishedRun, Mapping[str, set[str | None]]]) -> None:
    """Refuse two runs of one job, which have the same pairs, unless they are different shards of it.

    ``used`` are the photographs of every run with their sha256: other ones may have the same names and sizes.
    """
    for one, other in combinations(used, 2):
        jobs = [run.spec.model_copy(update={**_NO_JOB, "backend": one.spec.backend}) for run in (one, other)]
        if jobs[0] != jobs[1] or _shards(one, other):
            continue
        if all(digests == used[other].get(name, digests) for name, digests in used[one].items()):
            raise InputError(
                f"`{one.ledger}` and `{other.ledger}` are runs of one job and have the same pairs",
                "leave one out",
            )


def _shards(one: FinishedRun, other: FinishedRun) -> bool:
    first, second = one.spec.shard, other.spec.shard
    if first is None or second is None:
        return False
    parts = [(shard.of, shard.together) for shard in (first, second)]
    return parts[0] == parts[1] and first.number != second.number


def _write(
    folder: Path,
    request: Request,
    runs: Sequence[FinishedRun],
    found: Survey,
    photographs: Mapping[Path, str],
    progress: Progress,
) -> Summary:
    classes = sorted({run.kind for run in runs})
    sides = _sides(request, found, photographs)
    skipped, written = found.skipped.copy(), {side: Counter[str]() for side in SIDES}
    numbers, total = count(), found.pairs + len(photographs)
    painted = pairs(runs, sides.of_pairs, numbers, skipped, weak=request.weak)
    with (
        closing(FORMATS[request.format](folder, classes)) as writer,
        (folder / PROVENANCE_FILE).open("w", encoding="utf-8") as provenance,
    ):
        for picture in chain(painted, good(list(photographs), sides.of_good, numbers)):
            progress(picture.number / total)
            kind = picture.kind or GOOD
            said = {"file": writer.add(picture), "side": picture.side, "type": kind, **picture.provenance}
            provenance.write(json.dumps(said, ensure_ascii=False) + "\n")
            written[picture.side][kind] += 1
        writer.finish()
    summary = Summary(classes, {side: dict(written[side]) for side in SIDES}, dict(skipped))
    check_any(sum(map(summary.pairs, SIDES)), skipped)
    (folder / PACK_FILE).write_text(json.dumps(_description(request, runs, summary), indent=2) + "\n")
    progress(1.0)
    return summary


def _sides(request: Request, found: Survey, photographs: Mapping[Path, str]) -> _Sides:
    """The sides of all photographs; ``photographs``, with their sha256, go along as good ones."""
    named = [(readable(path), digest) for path, digest in photographs.items()]
    first = alike([*found.contents, *named])
    goods = Counter(first[name] for name in dict(named))
    painted: dict[str, Counter[str]] = {name: Counter() for name in goods}
    for name in sorted(found.painted):
        painted.setdefault(first[name], Counter()).update(found.painted[name])
    if request.format == "mvtec":
        # Readers of the layout learn from `train/good` alone, so that all pairs are for tests.
        kept = kept_good({name: painted[name] for name in goods}, request.split, request.seed)
        return _Sides(first, frozenset(painted) - kept, kept)
    if len(painted) == 1 and 0 < request.split < 1:
        raise InputError(
            "every pair was painted into the same photograph, which a split would put on both sides",
            "take `--split 1`",
        )
    counts: Counts = {
        name: {**its, GOOD: goods[name]} if name in goods else its for name, its in painted.items()
    }
    return _Sides(first, held_out(counts, request.split, request.seed))


def _description(request: Request, runs: Sequence[FinishedRun], summary: Summary) -> dict[str, object]:
    """What the pack says of itself; paths are left out, so that the same runs give the same bytes."""
    made_by = [
        run.spec.model_dump(mode="json", include=_OF_A_RUN) | {"recipe": run.spec.recipe.name} for run in runs
    ]
    return {
        "format": request.format,
        "split": {"train": request.split, "seed": request.seed},
        "classes": summary.classes,
        "pictures": summary.pictures,
        "skipped": summary.skipped,
        "runs": made_by,
    }
