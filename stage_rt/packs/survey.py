"""What runs hold, by their manifests, before a picture is read."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stage_rt.errors import InputError, RunError
from stage_rt.packs.real import LABELLED
from stage_rt.packs.runs import FinishedRun
from stage_rt.progress import Progress
from stage_rt.run.writer import GOOD
from stage_rt.spec import PairRecord

Sizes = set[tuple[int, int]]
LeftOut = Callable[[FinishedRun, PairRecord], str | None]
"""Why a sample of a run is no picture of a pack; None for one that is."""


@dataclass
class Survey:
    """``painted`` counts by the name of a good photograph the pairs of each type that were painted into it.

    ``used`` maps the names of the photographs every run took to the sha256 of all that had one, which names that are
    no text can be; ``contents`` are both of all runs. ``skipped`` counts samples by why they are left out.
    """

    painted: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    used: dict[FinishedRun, defaultdict[str, set[str | None]]] = field(default_factory=dict)
    contents: set[tuple[str, str | None]] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def pairs(self) -> int:
        """How many pairs were painted and are not left out."""
        return sum(counts.total() for counts in self.painted.values())


def left_out(record: PairRecord, *, weak: bool) -> str | None:
    """Why a sample is no picture of a pack; pairs that stayed weak are one if ``weak``."""
    if record.status != "ok":
        return record.status
    return "weak" if record.weak and not weak else None


def survey(runs: Sequence[FinishedRun], reason_of: LeftOut, progress: Progress) -> Survey:
    """Go through the manifests of all runs, and through the headers of their images.

    Raises:
        RunError: a run is damaged or not finished, or shows an object of another size than the first.
        InputError: nothing is left to be packed.
    """
    found, sizes, done = Survey(), dict[Path, Sizes](), 0
    total = sum(len(run.every) for run in runs)
    for run in runs:
        if run.kind == GOOD:
            raise RunError(
                f"the defects of `{run.folder}` are called `{GOOD}`, as good parts are", "rename the prompt"
            )
        found.used[run], sizes[run.ledger] = defaultdict(set), set()
        for record in run.records():
            progress(done / total)
            done += 1
            found.used[run][record.normal].add(record.normal_sha256)
            found.contents.add((record.normal, record.normal_sha256))
            if reason := reason_of(run, record):
                found.skipped[reason] += 1
                continue
            found.painted[record.normal][run.kind] += 1
            sizes[run.ledger].add(run.size(record))
    check_any(found.pairs, found.skipped)
    _check_sizes(sizes)
    return found


def check_any(pairs: int, skipped: Mapping[str, int]) -> None:
    """Refuse a pack without a pair.

    Raises:
        InputError: there is none.
    """
    if not pairs and not skipped:
        raise InputError("there is no pair to pack: the runs have no samples")
    if not pairs:
        reasons = ", ".join(f"{count} are {reason}" for reason, count in skipped.items())
        remedy = "paint with the masks of photographs that train" if LABELLED in skipped else None
        raise InputError(f"there is no pair to pack: of the samples {reasons}", remedy)


def _check_sizes(sizes: Mapping[Path, Sizes]) -> None:
    """Runs of one size each are of one object if it is the same; an object may as well come in many sizes."""
    uniform = [(folder, min(its)) for folder, its in sizes.items() if len(its) == 1]
    for folder, size in uniform[1:]:
        first, its = uniform[0]
        if size != its:
            raise RunError(
                f"the pictures of `{first}` are {its[0]}x{its[1]} and those of `{folder}` {size[0]}x{size[1]}, so "
                "that they show different objects",
                "pack them apart",
            )
