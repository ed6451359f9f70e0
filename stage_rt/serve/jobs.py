"""Night jobs: each is a run on disk from the moment it is accepted, so that neither a crash nor a reboot loses it.

A job's folder holds ``job.json``, the ``masks`` that were sent and ``run``, which is a run as any other. The file is
synced before the job is accepted; jobs are painted one after the other in the order in which they came, by
`stage_rt.run.fill.fill`, which goes on where it was cut off. A hidden file beside them keeps what the run came to, so
that no start reads the manifests of all jobs there ever were.
"""

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stage_rt.errors import (
    DatasetError,
    InputError,
    MaskError,
    StageError,
    first_line,
    printable,
    unforeseen,
)
from stage_rt.files import identity, recall, remember, write_atomic
from stage_rt.progress import Progress
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.run.ledger import read_line
from stage_rt.run.metrics import Counts, Outcome
from stage_rt.run.watch import Recorder, Watch
from stage_rt.serve.driver import ClosedError
from stage_rt.serve.executor import CancelledError, Terms, Wish
from stage_rt.serve.scheduling import Priority
from stage_rt.serve.shelf import BusyError, Shelf
from stage_rt.spec import MANIFEST_FILE, PairRecord

JOB_FILE, MASKS, RUN, COUNTS_FILE = "job.json", "masks", "run", ".counts"
WAIT = 5.0
"""Seconds until a job whose engine found no memory, or left it to somebody who waits, is tried again."""
PATIENCE = 600.0
"""Seconds in which a job comes to nothing, as others have the memory, until they leave it that for a batch."""
FOR_GOOD = (MaskError, DatasetError)
"""Faults of what was ordered. Disk, engines and photographs can be mended until the next start."""
_ID = re.compile(r"[0-9]{14}-[0-9]{6}")

State = Literal["waiting", "painting", "done", "failed", "cancelled"]


class Order(BaseModel):
    """What ``job.json`` holds: a run of one type, over photographs by their names.

    ``vary`` makes every label from the masks (`stage_rt.run.supply`) instead of taking one as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    engine: str
    prompt: str
    photographs: list[str]
    count: int
    seed: int
    steps: int | None = None
    vary: bool = True
    state: State = "waiting"
    error: str | None = None


@dataclass
class Night:
    """A job and how far it is; ``version`` grows with every change.

    ``counts`` are of the whole run, not of this process alone. ``kept_out`` is the time since when others have the
    memory that it needs, None if it came to something after that.
    """

    order: Order
    folder: Path
    share: float = 0.0
    counts: Counts = field(default_factory=lambda: Counts(0))
    wish: Wish = field(default_factory=Wish)
    kept_out: float | None = None
    version: int = 0

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / RUN

    @property
    def out_of_patience(self) -> bool:
        """Whether it was kept out for long enough."""
        return self.kept_out is not None and time.monotonic() - self.kept_out >= PATIENCE


class Jobs:
    """All jobs of a folder, and the thread that paints them.

    Args:
        folder: of jobs, made if it is missing; what is unfinished in it is gone on with.
        shelf: the engines.
        photographs: the gallery, by name.
        tell: is told in a sentence what cannot be told to anybody else.
    """

    def __init__(
        self, folder: Path, shelf: Shelf, photographs: Mapping[str, Path], tell: Callable[[str], None]
    ) -> None:
        self._folder, self._shelf, self._photographs, self._tell = folder, shelf, photographs, tell
        folder.mkdir(parents=True, exist_ok=True)
        self._changed, self._stopping = threading.Condition(), False
        self.jobs: dict[str, Night] = {}
        for path in sorted(folder.iterdir()):
            if _ID.fullmatch(path.name) and (order := self._read(path)) is not None:
                self.jobs[order.id] = _remembered(Night(order, path))
        self._thread = threading.Thread(target=self._work, name="stage-rt-night", daemon=True)

    def start(self) -> None:
        """Begin to paint what waits."""
        self._thread.start()

    def add(self, order: Order, masks: Sequence[bytes]) -> Night:
        """Accept a job: on disk when this returns. ``masks`` are PNG files; ``order`` has no ``id`` yet.

        Raises:
            InputError: it names what is not there.
            OSError: the disk is full or failed.
        """
        self._shelf.book(order.engine, order.prompt)
        self._normals(order)
        with self._changed:
            # In order even where the clock was set back.
            last = max(self.jobs, default="")
            stamp = max(time.strftime("%Y%m%d%H%M%S", time.gmtime()), last[:14])
            name = f"{stamp}-{len(self.jobs):06d}"
            night = Night(order.model_copy(update={"id": name}), self._folder / name)
            try:
                for number, mask in enumerate(masks):
                    write_atomic(night.folder / MASKS / f"{number:03d}_mask.png", mask)
                self._write(night)
            except BaseException:
                # The next one may get the same name, and would be painted with these masks too.
                shutil.rmtree(night.folder, ignore_errors=True)
                raise
            self.jobs[name] = night
            self._changed.notify_all()
        return night

    def cancel(self, name: str) -> None:
        """Paint no more of a job; what it has stays."""
        night = self.jobs[name]
        with self._changed:
            # Also what is painted: the server can be gone before its thread hears of it. And what failed, which the
            # next start might go on with.
            if night.order.state in ("waiting", "painting", "failed"):
                self._set(night, "cancelled")
            night.wish.cancel()

    def stop(self) -> None:
        """End, and go on with what is unfinished at the next start.

        What is in hand is waited for: a step, the check of a file, the loading of an engine, the report of a run.
        """
        with self._changed:
            self._stopping = True
            for night in self.jobs.values():
                night.wish.cancel()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and not self._waiting():
                    self._changed.wait()
                if self._stopping:
                    return
                night = self._waiting()[0]
                # The last one was cancelled if somebody who waits needed the memory.
                night.wish = Wish(insists=night.out_of_patience)
                self._set(night, "painting", kept=False)
            try:
                self._paint(night)
                self._set(night, "done")
            except CancelledError:
                self._put_aside(night)
            except BusyError:
                self._put_aside(night)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, WAIT)
            except Exception as error:
                if not (self._stopping and isinstance(error, ClosedError)):
                    self._failed(night, error)
            if night.order.state in ("failed", "cancelled"):
                night.counts = _tallied(night)

    def _failed(self, night: Night, error: Exception) -> None:
        """Say why a job is not painted; on disk it waits, if the next start may find that mended."""
        if isinstance(error, StageError):
            self._set(night, "failed", printable(str(error)), kept=isinstance(error, FOR_GOOD))
            return
        self._tell(f"job {night.order.id} failed: {unforeseen(error)}")
        if isinstance(error, OSError):
            self._set(night, "failed", f"the server's disk failed ({error.strerror})", kept=False)
        else:
            self._set(night, "failed", "the server failed: see its log")

    def _put_aside(self, night: Night) -> None:
        """It goes on when its turn comes, unless somebody cancelled it meanwhile."""
        with self._changed:
            if not self._stopping and night.order.state == "painting":
                night.kept_out = night.kept_out or time.monotonic()
                self._set(night, "waiting", kept=False)

    def _waiting(self) -> list[Night]:
        return [night for _, night in sorted(self.jobs.items()) if night.order.state == "waiting"]

    def _paint(self, night: Night) -> None:
        order = night.order
        book = self._shelf.book(order.engine, order.prompt)
        watch = _Counting(Recorder(), night)
        masks = sorted((night.folder / MASKS).iterdir())
        job = Job(
            normals=self._normals(order),
            masks=masks,
            prompt=order.prompt,
            count=order.count,
            seed=order.seed,
            composite=True,
            batch=book.slots,
            steps=order.steps,
            augment=order.vary,
        )

        def checking(share: float) -> None:
            night.wish.check()

        def progress(share: float) -> None:
            night.wish.check()
            night.share, night.version = share, night.version + 1

        with self._shelf.engine(order.engine, Terms(Priority.NIGHT, wish=night.wish)) as engine:
            try:
                fill(
                    engine,
                    job,
                    night.run,
                    watch=watch,
                    notify=watch.recorder.notice,
                    checking=checking,
                    progress=progress,
                )
            except (CancelledError, ClosedError):
                watch.recorder.end("stopped", "the server goes on with it")
                raise
            except StageError as error:
                watch.recorder.end("failed", str(error))
                raise
            watch.recorder.end("done", "every sample is")
            night.counts = _tallied(night)

    def _normals(self, order: Order) -> list[Path]:
        missing = [name for name in order.photographs if name not in self._photographs]
        if missing:
            raise InputError(f"there is no photograph {missing[0]!r} in the gallery")
        return [self._photographs[name] for name in order.photographs]

    def _set(self, night: Night, state: State, error: str | None = None, *, kept: bool = True) -> None:
        # A job that is done, while somebody cancels it, is one or the other, on disk too.
        with self._changed:
            night.order = night.order.model_copy(update={"state": state, "error": error})
            if kept:
                try:
                    self._write(night)
                except OSError as failure:
                    self._tell(
                        f"that job {night.order.id} is {state} could not be written ({failure.strerror})"
                    )
            night.version += 1

    @staticmethod
    def _write(night: Night) -> None:
        write_atomic(night.folder / JOB_FILE, night.order.model_dump_json(indent=1).encode() + b"\n")

    def _read(self, folder: Path) -> Order | None:
        try:
            return Order.model_validate_json((folder / JOB_FILE).read_bytes())
        except FileNotFoundError:
            # It was never accepted.
            return None
        except (OSError, ValidationError) as error:
            self._tell(f"`{folder / JOB_FILE}` is no job ({first_line(error)}): it is left alone")
            return None


def _remembered(night: Night) -> Night:
    """How far a job came before."""
    night.counts = _tallied(night)
    done = night.order.state == "done"
    night.share = 1.0 if done else min(night.counts.done / night.order.count, 1.0)
    return night


def _tallied(night: Night) -> Counts:
    """What a job's run came to, as it was kept, unless its manifest is another one by now: then it is counted."""
    manifest, kept = identity(night.run / MANIFEST_FILE), night.folder / COUNTS_FILE
    content = recall(kept)
    # What another release kept may have other fields.
    with suppress(ValueError, TypeError):
        of, counts = json.loads(content or b"")
        if manifest is not None and tuple(of) == manifest:
            return Counts(**counts)
    counted = _counted(night)
    if manifest is not None and manifest == identity(night.run / MANIFEST_FILE):
        with suppress(OSError):
            remember(kept, json.dumps([manifest, asdict(counted)]).encode())
    return counted


def _counted(night: Night) -> Counts:
    """What a job's run came to by its manifest, of which the last line of a sample counts.

    A line that a crash cut off, or somebody edited, is none; painting again tells of it.
    """
    came: dict[int, Outcome] = {}
    with suppress(OSError), (night.run / MANIFEST_FILE).open("rb") as lines:
        for line in lines:
            with suppress(ValueError):
                record = read_line(line, night.order.prompt)
                came[record.index] = Outcome.of(record)
    counts = Counts(night.order.count)
    counts.add_all(Counter(came.values()))
    return counts


class _Counting(Watch):
    """A `Recorder` that keeps a job's counts too."""

    def __init__(self, recorder: Recorder, night: Night) -> None:
        self.recorder, self._night = recorder, night

    def open(self, folder: Path, planned: Mapping[str, int]) -> None:
        """See `Watch`."""
        self._night.counts = Counts(sum(planned.values()))
        self.recorder.open(folder, planned)

    def begin(self, kind: str, came: Mapping[Outcome, int]) -> None:
        """See `Watch`."""
        # Those that failed before are painted again.
        self._night.counts.add_all(came)
        self.recorder.begin(kind, came)

    def add(self, kind: str, record: PairRecord) -> None:
        """See `Watch`."""
        # What was handed to be written is all written, whoever is let in now.
        self._night.wish.insists, self._night.kept_out = False, None
        self._night.counts.add(Outcome.of(record))
        self._night.version += 1
        self.recorder.add(kind, record)

    def stepping(self, progress: Progress) -> Progress:
        """See `Watch`; others paint between two calls of it here, so no step is timed."""
        return self.recorder.stepping(progress)
