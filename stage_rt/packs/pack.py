"""Finished runs merged into one data set, whole or not at all."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import combinations, count
from pathlib import Path

from stage_rt.errors import InputError
from stage_rt.files import check_apart, new_folder
from stage_rt.files import real as resolved
from stage_rt.folders import read_engine
from stage_rt.names import PackName
from stage_rt.packs import FORMATS
from stage_rt.packs.photographs import find
from stage_rt.packs.picture import SIDES, Picture, Side
from stage_rt.packs.pictures import good, pairs, real
from stage_rt.packs.real import SHOWN, Real, by_defect, by_model
from stage_rt.packs.runs import FinishedRun, opened, places
from stage_rt.packs.split import Counts, alike, held_out, kept_good
from stage_rt.packs.survey import LeftOut, Survey, check_any, left_out, survey
from stage_rt.progress import Progress, portion, silent
from stage_rt.run.sample import readable
from stage_rt.run.writer import GOOD
from stage_rt.spec import PACK_FILE, PairRecord

PROVENANCE_FILE = "provenance.jsonl"

_SURVEY = 0.1
"""Share of the progress that reading the manifests is."""
_COMPARED = 0.3
"""Share of the progress that comparing real photographs is, if there are any."""
_NO_JOB = {"count": 1, "batch": 1, "shard": None, "dtype": None}
_OF_A_RUN = {"engine", "backend", "sampler", "prompt", "count", "seed", "composite", "steps", "min_fill"}


@dataclass(frozen=True)
class Request:
    """What is to be packed, and how.

    ``split`` is the share to train on. ``normals`` are the folders of good photographs that the runs were given, if
    those are to go along. ``weak`` is whether pairs whose label stayed weak do.

    ``real`` is a data set in a layout of `stage_rt.images.layouts`, if its photographs are to go along: then every
    pair is to train on, and those photographs are split instead, as the training of the model of the folder
    ``engine`` split them, or by ``split`` without one.
    """

    runs: Sequence[Path]
    format: PackName
    split: float = 0.8
    seed: int = 0
    normals: Sequence[Path] = ()
    weak: bool = True
    real: Path | None = None
    engine: Path | None = None


@dataclass(frozen=True)
class Summary:
    """What a pack holds: ``pictures`` by side and type, good ones among them, and samples ``skipped`` by reason.

    ``real`` counts those of the pictures that are real photographs with a label, if any were to go along.
    """

    classes: list[str]
    pictures: dict[Side, dict[str, int]]
    skipped: dict[str, int]
    real: dict[Side, dict[str, int]] = field(default_factory=dict)

    def painted(self, side: Side) -> dict[str, int]:
        """How many pairs a side has of every type."""
        real = Counter(self.real.get(side, {}))
        counts = {kind: number - real[kind] for kind, number in self.pictures[side].items() if kind != GOOD}
        return {kind: number for kind, number in counts.items() if number}

    def pairs(self, side: Side) -> int:
        """How many pairs a side has."""
        return sum(self.painted(side).values())


@dataclass(frozen=True)
class _Contents:
    """What is to be written: the pairs of ``runs`` that ``reason_of`` names no reason for, the photographs they were
    painted into with their sha256, and the ``real`` ones."""

    runs: Sequence[FinishedRun]
    reason_of: LeftOut
    found: Survey
    photographs: Mapping[Path, str]
    real: Real | None

    @property
    def classes(self) -> list[str]:
        """The defect types in order."""
        return sorted({run.kind for run in self.runs} | (self.real.kinds if self.real is not None else set()))

    def __len__(self) -> int:
        return self.found.pairs + len(self.photographs) + (len(self.real) if self.real is not None else 0)


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
        InputError: the split is no share, ``output`` has content or lies in what is read, there is nothing to pack,
            two runs have the same pairs, or the format or the engine is none for real photographs.
        RunError: a folder is no finished run, or a file of it was changed.
        EngineError: ``engine`` is no engine.
        DatasetError, ImageError, MaskError: the photographs are not those of the runs, would stand on both sides, or
            cannot be read.
        MissingExtraError: the library of the format is not installed.
    """
    if not 0 <= request.split <= 1:
        raise InputError(f"the split must be a share to train on from 0 to 1, not {request.split:g}")
    _check_distinct(request.runs)
    _check_real(request)
    with ExitStack() as held:
        runs = [held.enter_context(opened(at)) for folder in request.runs for at in places(folder)]
        for read in (*(run.folder for run in runs), *([request.real] if request.real else ())):
            check_apart(read, output)
        with new_folder(output) as folder:
            compared = 0.0 if request.real is None else _COMPARED
            along = _real(request, runs, portion(progress, 0.0, compared))
            reason_of, start = _reasons(request, along), compared + _SURVEY
            found = survey(runs, reason_of, portion(progress, compared, start))
            _check_jobs(found.used)
            photographs = find(request.normals, found.used) if request.normals else {}
            if along is not None:
                photographs = _beside(along, found, photographs, portion(progress, start, start + _SURVEY))
                start += _SURVEY
            contents = _Contents(runs, reason_of, found, photographs, along)
            return _write(folder, request, contents, portion(progress, start, 1.0))


def _check_distinct(folders: Sequence[Path]) -> None:
    ((folder, times),) = Counter(map(resolved, folders)).most_common(1)
    if times > 1:
        raise InputError(f"`{folder}` is given {times} times", "name every run once")


def _check_real(request: Request) -> None:
    if request.real is None and request.engine is not None:
        raise InputError(
            "an engine says which real photographs validate, and none are given",
            "give `--real DATA` too, or leave out `--engine`",
        )
    if request.real is not None and request.format == "mvtec":
        raise InputError(
            "readers of `mvtec` learn from good photographs alone, so that pairs to train on have no place in it",
            "leave out `--real`, or take another `--format`",
        )


def _real(request: Request, runs: Sequence[FinishedRun], progress: Progress) -> Real | None:
    prompts = {run.spec.prompt for run in runs}
    if request.real is None:
        return None
    if request.engine is None:
        return by_defect(request.real, prompts, request.split, request.seed, progress)
    engine = read_engine(request.engine)
    for run in runs:
        if run.spec.engine != engine.graphs_fingerprint:
            raise InputError(
                f"`{run.ledger}` was not painted by `{request.engine}`",
                "give its engine, and pack runs of other engines apart",
            )
    return by_model(request.real, prompts, engine.model, progress)


def _reasons(request: Request, along: Real | None) -> LeftOut:
    def reason_of(run: FinishedRun, record: PairRecord) -> str | None:
        reason = left_out(record, weak=request.weak)
        return along.hides(run, record) if along is not None and reason is None else reason

    return reason_of


def _beside(
    along: Real, found: Survey, photographs: Mapping[Path, str], progress: Progress
) -> dict[Path, str]:
    """Those of the good ``photographs`` that may be trained on beside real ones that validate."""
    kept = {path: digest for path, digest in photographs.items() if digest not in along.shown}
    if shown := len(photographs) - len(kept) + len(along.bad):
        found.skipped[SHOWN] += shown
    along.check({digest for _, digest in found.contents}, kept, progress)
    return kept


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


def _write(folder: Path, request: Request, contents: _Contents, progress: Progress) -> Summary:
    skipped = contents.found.skipped.copy()
    written, real_ones = ({side: Counter[str]() for side in SIDES} for _ in range(2))
    with (
        closing(FORMATS[request.format](folder, contents.classes)) as writer,
        (folder / PROVENANCE_FILE).open("w", encoding="utf-8") as provenance,
    ):
        for picture in _pictures(request, contents, skipped):
            progress(picture.number / len(contents))
            kind = picture.kind or GOOD
            said = {"file": writer.add(picture), "side": picture.side, "type": kind, **picture.provenance}
            provenance.write(json.dumps(said, ensure_ascii=False) + "\n")
            written[picture.side][kind] += 1
            real_ones[picture.side][kind] += picture.kind is not None and "real" in picture.provenance
        writer.finish()
    pictures, labelled = ({side: dict(+each[side]) for side in SIDES} for each in (written, real_ones))
    summary = Summary(
        contents.classes, pictures, dict(skipped), labelled if contents.real is not None else {}
    )
    check_any(sum(map(summary.pairs, SIDES)), skipped)
    (folder / PACK_FILE).write_text(
        json.dumps(_description(request, contents.runs, summary), indent=2) + "\n"
    )
    progress(1.0)
    return summary


def _pictures(request: Request, contents: _Contents, skipped: Counter[str]) -> Iterator[Picture]:
    numbers = count()
    # Real photographs validate, so that whatever was painted is to train on.
    sides = _sides(
        replace(request, split=1.0) if contents.real is not None else request,
        contents.found,
        contents.photographs,
    )
    yield from pairs(contents.runs, contents.reason_of, sides.of_pairs, numbers, skipped)
    yield from good(contents.photographs, sides.of_good, numbers)
    if contents.real is not None:
        yield from real(contents.real, numbers)


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
    split = {"train": request.split, "seed": request.seed}
    return {
        "format": request.format,
        "split": split if request.engine is None else {"engine": runs[0].spec.engine},
        "classes": summary.classes,
        "pictures": summary.pictures,
        **({"real": summary.real} if summary.real else {}),
        "skipped": summary.skipped,
        "runs": made_by,
    }
