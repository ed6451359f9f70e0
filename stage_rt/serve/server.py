"""The server without HTTP: a bounded queue of pairs, jobs for the night, and an orderly end."""

import math
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from stage_rt.errors import DeviceLostError, InputError, StageError, first_line, unforeseen
from stage_rt.images import layouts
from stage_rt.images.regions import regions
from stage_rt.loading import load
from stage_rt.run.checks import CHECKS_FILE, Checks
from stage_rt.run.writer import defect_type
from stage_rt.serve.driver import ClosedError, Driver, Observer
from stage_rt.serve.executor import CancelledError, Terms
from stage_rt.serve.gallery import Gallery
from stage_rt.serve.jobs import Jobs
from stage_rt.serve.kept import Kept
from stage_rt.serve.pairs import Pair, Preview, Request, Room, painted
from stage_rt.serve.scheduling import Priority
from stage_rt.serve.shelf import BusyError, Load, Shelf

QUEUE = 32
"""Pairs that wait or are painted at most; whoever comes then is told when to come again."""
HANDS = 8
"""Pairs that are prepared, painted or finished at once, large ones of which take turns in being finished."""
REMEMBERED, REMEMBERED_BYTES = 256, 512 * 2**20
"""Pairs that are over and can still be fetched, and what their files may take together."""
SECONDS = 600.0
"""Within which a pair is painted or given up."""
PACE = 16
"""Pairs over which the time between two is taken."""


@dataclass(frozen=True)
class Settings:
    """Where a server finds what it serves, and the one folder that it writes to.

    ``masks`` has a folder a defect type, of masks as real defects have them; ``memory`` is the budget of the engines
    in bytes.
    """

    engines: Sequence[Path]
    data: Path
    memory: int
    normals: Path | None = None
    masks: Path | None = None


def _unseen(pair: Pair, seconds: float) -> None:
    pass


class Server:
    """Accepts pairs and jobs until it is drained, or its device is lost; ``lost`` is the error that tells of that.

    ``when_lost`` is called then, on the thread that drives the device.

    Args:
        settings: what is served.
        tell: is told in a sentence what nobody who asked can be told.
        observe: see `stage_rt.serve.driver.Observer`.
        over: is told of every pair that is over, and of the seconds since it was accepted.

    Raises:
        InputError, EngineError, DatasetError: the settings are wrong.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tell: Callable[[str], None],
        observe: Observer | None = None,
        over: Callable[[Pair, float], None] = _unseen,
        load: Load = load,
    ) -> None:
        self.gallery = Gallery(layouts.normals(settings.normals) if settings.normals else [])
        self.driver = Driver(observe=observe) if observe else Driver()
        self.lost: DeviceLostError | None = None
        self.when_lost: Callable[[DeviceLostError], None] = lambda error: None
        self.driver.lost = self._lost
        try:
            self.shelf = Shelf(settings.engines, settings.memory, self.driver, load=load)
            self.masks, self.checks = _masks(settings.masks, self.shelf), Checks()
            self.jobs = Jobs(settings.data / "jobs", self.shelf, self.gallery.paths, tell)
        except BaseException:
            self.driver.close()
            raise
        self._kept, self._tell, self._over = Kept(settings.data / "accepted"), tell, over
        self._checked = settings.data / CHECKS_FILE
        self._pool = ThreadPoolExecutor(HANDS, "stage-rt-pair")
        self.decoding, self._finishing = Room(), Room()
        self._lock = threading.Lock()
        self._pairs: OrderedDict[str, Pair] = OrderedDict()
        self._queued: dict[str, tuple[Future[None], float]] = {}
        self._open = 0
        self._ends: deque[float] = deque(maxlen=PACE)
        self.ready = self.draining = False

    def start(self) -> None:
        """Load and warm up the engines and see to the photographs, then begin with the jobs that wait.

        Raises:
            EngineError, DeviceError, BackendError: an engine cannot be used.
        """
        self.shelf.warm()
        self.gallery.check(self._checked, self.decoding, self._tell, lambda: not self.draining)
        self.jobs.start()
        with self._lock:
            self.ready = not self.draining

    def check_open(self) -> None:
        """See that something can be ordered.

        Raises:
            ClosedError: the server is going down.
            DeviceLostError: it can paint no more.
        """
        if self.draining:
            raise ClosedError("the server is going down: try again when it is back")
        if self.lost is not None:
            raise copy(self.lost)

    def order(self, request: Request) -> Pair:
        """Accept a pair.

        Raises:
            BusyError: the queue is full.
            ClosedError, DeviceLostError: as `check_open`.
        """
        with self._lock:
            self.check_open()
            if self._open >= QUEUE:
                raise BusyError(f"{QUEUE} pairs are waiting already", self._seconds())
            pair = Pair(secrets.token_hex(8), request)
            self._pairs[pair.id] = pair
            self._open += 1
            began = time.monotonic()
            self._queued[pair.id] = self._pool.submit(self._paint, pair, began), began
        return pair

    def pair(self, name: str) -> Pair | None:
        """A pair that is on its way or was painted lately."""
        return self._pairs.get(name)

    def cancel(self, pair: Pair) -> None:
        """Stop painting a pair; one that waits gives its place to another at once."""
        pair.wish.cancel()
        with self._lock:
            future, began = self._queued.pop(pair.id, (None, 0.0))
        if future is not None and future.cancel():
            pair.change(state="cancelled")
            self._leave(pair, began)

    def judge(self, pair: Pair, *, accepted: bool) -> str | None:
        """Keep a pair or not; returns the path of one that is kept. A verdict is given once.

        Raises:
            InputError: it is not done, or was judged otherwise before.
        """
        with self._lock:
            if pair.result is None:
                raise InputError("the pair is not done", "wait for it")
            verdict = "accepted" if accepted else "rejected"
            if pair.verdict is not None:
                raise InputError(f"the pair was {pair.verdict} already", "paint another one")
            path = self._kept.put(pair) if accepted else None
            pair.change(verdict=verdict)
        return path

    @property
    def waiting(self) -> int:
        """Pairs that are not over."""
        return self._open

    def drain(self, seconds: float) -> None:
        """Accept nothing, put the jobs aside, end what somebody waits for within ``seconds``; then close."""
        deadline = time.monotonic() + seconds
        with self._lock:
            self.draining, self.ready = True, False
        self.jobs.stop()
        for pair in list(self._pairs.values()):
            if not pair.ended.wait(max(deadline - time.monotonic(), 0)):
                pair.wish.cancel()
        self._pool.shutdown(wait=True)
        try:
            # A driver that is gone has no memory to give back.
            with suppress(ClosedError):
                self.shelf.close()
        except StageError as error:
            self._tell(f"the engines could not be closed: {first_line(error)}")
        finally:
            self.driver.close()

    def _lost(self, error: DeviceLostError) -> None:
        """Note the first error after which nothing can be painted, without what its frames hold."""
        if self.lost is None:
            self.lost = copy(error)
            self._tell(f"nothing more is painted: {first_line(error)}")
            self.when_lost(self.lost)

    def _paint(self, pair: Pair, began: float) -> None:
        request = pair.request
        try:
            pair.wish.check()
            book = self.shelf.book(request.engine)

            def told(share: float) -> None:
                pair.change(share=round(share, 4))

            preview = Preview(
                request,
                regions(request.label, request.method.region),
                lambda picture: pair.change(preview=picture),
            )
            terms = Terms(Priority.INTERACTIVE, began + SECONDS, pair.wish, preview)
            with self.shelf.engine(request.engine, terms) as engine:
                pair.change(state="painting")
                result = painted(engine, request, size=book.slots, progress=told, room=self._finishing)
            pair.change(share=1.0, result=result, state="done")
        except BaseException as error:
            self._failed(pair, error)
        finally:
            with self._lock:
                self._queued.pop(pair.id, None)
                self._ends.append(time.monotonic())
            self._leave(pair, began)

    def _leave(self, pair: Pair, began: float) -> None:
        """A pair is over: its place is another's."""
        request = pair.request
        with self._lock:
            self._open -= 1
            # What was sent is not needed any more, and may be large.
            pair.request = replace(request, photo=request.photo[:0].copy(), label=request.label[:0].copy())
            self._forget()
        self._over(pair, time.monotonic() - began)

    def _failed(self, pair: Pair, error: BaseException) -> None:
        """Say why a pair is not painted."""
        what = "" if isinstance(error, StageError) else unforeseen(error)
        # Its frames hold what was sent, for as long as the error is kept.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        if isinstance(error, CancelledError):
            pair.change(state="cancelled")
        elif isinstance(error, StageError):
            # Others who were in the slots may raise the same one, and give it frames again.
            pair.change(error=copy(error), state="failed")
        else:
            self._tell(f"pair {pair.id} failed: {what}")
            pair.change(error=StageError("the server failed", "see its log"), state="failed")

    def _seconds(self) -> int:
        """When a place is likely to be free: the mean time between two pairs that were over."""
        if len(self._ends) < 2:
            return 10
        return max(math.ceil((self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)), 1)

    def _forget(self) -> None:
        over = [(name, pair.size) for name, pair in self._pairs.items() if pair.ended.is_set()]
        kept = sum(size for _, size in over)
        for number, (name, size) in enumerate(over):
            if len(over) - number <= REMEMBERED and kept <= REMEMBERED_BYTES:
                break
            kept -= size
            del self._pairs[name]


def _masks(folder: Path | None, shelf: Shelf) -> Mapping[str, Sequence[Path]]:
    """Masks of each defect type that some engine paints."""
    if folder is None:
        return {}
    types = {defect_type(prompt) for book in shelf.books.values() for prompt in book.spec.model.prompts}
    return layouts.masks_of_types(folder, sorted(types))
