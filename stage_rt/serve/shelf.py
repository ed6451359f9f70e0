"""Engines by name, as many of them in memory as fit."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.engine import Engine
from stage_rt.errors import DeviceMemoryError, InputError, PromptError, StageError
from stage_rt.folders import read_engine
from stage_rt.loading import load
from stage_rt.machine import cores
from stage_rt.noise import PhiloxNoise
from stage_rt.run.sample import readable
from stage_rt.samplers import check_sampler
from stage_rt.serve.driver import Driver, shared, slot_count
from stage_rt.serve.executor import SharedExecutor, Terms
from stage_rt.serve.scheduling import Priority
from stage_rt.slots import IDLE, Slots
from stage_rt.spec import EngineSpec

RESIDENT = 1.5
"""Memory of an engine by the size of its files: weights, and what a batch takes."""

LOOK = 0.1
"""Seconds between two looks whether the night has left an engine, if it does not say so before."""

Load = Callable[[Path], Engine]


class Book(NamedTuple):
    """An engine that can be had: its description, the slots of its lanes and the bytes it takes."""

    name: str
    folder: Path
    spec: EngineSpec
    slots: int
    bytes: int


class BusyError(StageError):
    """Not now; ``seconds`` says when to ask again."""

    def __init__(self, problem: str, seconds: int) -> None:
        super().__init__(problem, f"try again in {seconds} s")
        self.seconds = seconds


@dataclass
class _Loaded:
    engine: Engine
    users: list[Terms] = field(default_factory=list)
    used: int = 0

    @property
    def nightly(self) -> bool:
        """Whether whoever uses it can be asked to leave it to somebody who waits."""
        return all(user.priority is Priority.NIGHT and user.wish for user in self.users)


class Shelf:
    """Engine folders, by their names.

    Args:
        folders: of engines; no two have the same name.
        budget: bytes that engines may take together; the one that was not used for longest goes first. Where a device
            has less, engines take turns as if that were the budget.
        driver: loads and closes them, and drives them.

    Raises:
        InputError: two folders have one name, or an engine alone is over the budget or for another system.
        EngineError: a folder is none of an engine.
    """

    def __init__(self, folders: Sequence[Path], budget: int, driver: Driver, *, load: Load = load) -> None:
        self._driver, self._budget, self._load = driver, budget, load
        self._lock = threading.Condition()
        self._loaded: dict[str, _Loaded] = {}
        self._beside: dict[str, int] = {}
        self._uses = 0
        self._awaiting: set[Terms] = set()
        self._insisting: Terms | None = None
        self._closed: frozenset[str] = frozenset()
        self.books: dict[str, Book] = {}
        for folder in folders:
            book = _book(folder)
            if book.name in self.books:
                raise InputError(f"two engines are called `{book.name}`", "rename one of the folders")
            if book.bytes > budget:
                raise InputError(
                    f"engine `{book.name}` takes {book.bytes / 2**30:.1f} GiB of memory and may take "
                    f"{budget / 2**30:.1f}",
                    "give a larger `--memory`",
                )
            self.books[book.name] = book
        driver.relieve = self._relieve

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the engines in memory."""
        return frozenset(self._loaded)

    def book(self, name: str, prompt: str | None = None) -> Book:
        """The engine of a name, which knows ``prompt``.

        Raises:
            InputError, PromptError: it does not, or there is none.
        """
        book = self.books.get(name)
        if book is None:
            raise InputError(f"there is no engine {name!r}: use one of {', '.join(self.books)}")
        if prompt is not None and prompt not in book.spec.model.prompts:
            known = ", ".join(sorted(book.spec.model.prompts))
            raise PromptError(f"unknown prompt {prompt!r}: use one of {known}")
        return book

    @contextmanager
    def engine(self, name: str, terms: Terms) -> Iterator[Engine]:
        """An engine for as long as the block takes, shared with others on ``terms``.

        Where nobody but the night is in the way of somebody who waits, its wish is cancelled, and what it left is
        given to the other. Where its wish insists it is the others who wait: nobody new comes to an engine that is in
        its way, and none is loaded but its own.

        Raises:
            BusyError: others are in memory and in use; of the night, also if somebody waits for memory.
            CancelledError: it is not wanted any more.
            EngineError, DeviceError, BackendError: it cannot be loaded.
        """
        book, held = self.book(name), None
        try:
            held = self._held(book, terms)
            model = book.spec.model
            own = held.engine.executor
            executor = SharedExecutor(self._driver, name, own, book.slots, model.latent_scale, terms)
            yield held.engine.over(executor)
        finally:
            with self._lock:
                if held:
                    held.users.remove(terms)
                if self._insisting is terms:
                    self._insisting = None
                self._lock.notify_all()

    def warm(self) -> None:
        """Load what fits, and run every network of it once, so that nobody has to wait for that.

        Raises:
            EngineError, DeviceError, BackendError: an engine cannot be loaded.
        """
        for book in self.books.values():
            try:
                self._driver.call(lambda book=book: self._warm(book))  # type: ignore[misc]
            except DeviceMemoryError:
                # Lanes that do not fit beside one another take turns; an engine has to fit alone.
                if book.name not in self._loaded:
                    raise

    def close(self) -> None:
        """Give the memory of all engines back, whatever fails on the way.

        Raises:
            BackendError, ClosedError: an engine, or the driver, had failed before.
        """

        def close() -> None:
            with ExitStack() as closing:
                for name in list(self._loaded):
                    closing.callback(self._drop, name)

        self._driver.call(close)

    def _held(self, book: Book, terms: Terms) -> _Loaded:
        """An engine in memory, and its user noted; waits for whoever is in the way."""
        try:
            # The night needs the driver to come to its end, so what waits for it is this thread.
            while (held := self._driver.call(lambda: self._hold(book, terms))) is None:
                with self._lock:
                    self._lock.wait(LOOK)
                if terms.wish:
                    terms.wish.check()
                if time.monotonic() > terms.deadline:
                    raise _busy(book)
            return held
        finally:
            with self._lock:
                self._awaiting.discard(terms)

    def _hold(self, book: Book, terms: Terms) -> _Loaded | None:
        """As `_held`; None where somebody has to leave first."""
        with self._lock:
            if terms.priority is Priority.NIGHT and self._awaiting:
                # It was asked to leave and would be there again before the other is.
                raise _busy(book)
            held = self._loaded.get(book.name)
            if self._kept_for_another(book.name, terms):
                return None
            leaving = [] if held else self._leaving(book, terms)
            if terms.insists:
                self._insisting, self._closed = terms, frozenset(leaving)
            if users := [user for name in leaving for user in self._loaded[name].users]:
                if not terms.insists:
                    self._awaiting.add(terms)
                    for user in users:
                        if user.wish:
                            user.wish.cancel()
                return None
            held = held or self._fetch(book, leaving)
            if held is None:
                return None
            self._uses += 1
            held.users.append(terms)
            held.used = self._uses
            return held

    def _kept_for_another(self, name: str, terms: Terms) -> bool:
        """Whether an engine, or the memory it would take, is not to be had before somebody else who insists."""
        other = self._insisting
        if other is None or other is terms or not other.insists:
            return False
        return name not in self._loaded or name in self._closed

    def _leaving(self, book: Book, terms: Terms) -> list[str]:
        """The engines in whose place one fits: what nobody uses goes first, then what was not used for longest.

        Raises:
            BusyError: it does not fit beside those in use.
        """
        taken, room = self._taken(), self._room(book)
        waited_for = terms.priority is Priority.INTERACTIVE
        going = [
            (bool(one.users), one.used, name)
            for name, one in self._loaded.items()
            if not one.users or terms.insists or (waited_for and one.nightly)
        ]
        leaving = []
        for _, _, name in sorted(going):
            if taken > room:
                leaving.append(name)
                taken -= self.books[name].bytes
        if taken > room and len(leaving) < len(self._loaded):
            raise _busy(book)
        return leaving

    def _taken(self) -> int:
        """Bytes that engines in memory take."""
        return sum(self.books[name].bytes for name in self._loaded)

    def _room(self, book: Book) -> int:
        """Bytes that others may take beside an engine, as far as is known."""
        room = self._budget - book.bytes
        return min(room, self._beside.get(book.name, room))

    def _fetch(self, book: Book, leaving: Sequence[str]) -> _Loaded | None:
        """Load an engine in place of others; None where the device has no room for it beside those that are left."""
        for name in leaving:
            self._drop(name)
        try:
            held = self._loaded[book.name] = _Loaded(self._load(book.folder))
        except DeviceMemoryError:
            if not self._loaded:
                raise
            self._beside[book.name] = self._taken() - 1
            return None
        return held

    def _relieve(self) -> bool:
        """Close the engine that nobody uses and that was not used for longest; whether there was one."""
        with self._lock:
            idle = [(one.used, name) for name, one in self._loaded.items() if not one.users]
            if idle:
                self._drop(min(idle)[1])
        return bool(idle)

    def _drop(self, name: str) -> None:
        with ExitStack() as closing:
            closing.callback(self._loaded.pop(name).engine.close)
            self._driver.shut(lambda lane: isinstance(lane, tuple) and lane[0] == name)

    def _warm(self, book: Book) -> None:
        with self._lock:
            held = self._loaded.get(book.name)
            if held is None and self._taken() <= self._room(book):
                held = self._fetch(book, ())
        if held is None:
            return
        model, engine = book.spec.model, held.engine
        engine.executor.encode(
            np.zeros((1, model.image_channels, model.image_size, model.image_size), np.float32)
        )
        latent = np.zeros((1, model.latent_channels, model.latent_size, model.latent_size), np.float32)
        for adapter, prompt in {adapter: prompt for prompt, adapter in model.prompts.items()}.items():
            self._warm_lane(book, engine, adapter, prompt, latent)
        _ = engine.executor.decode(latent).images

    def _warm_lane(
        self, book: Book, engine: Engine, adapter: str | None, prompt: str, latent: NDArray[np.float32]
    ) -> None:
        recipe, mask = book.spec.model.recipe, np.ones((1, 1, *latent.shape[2:]), np.float32)
        # One transition of each branch, so that both adapters run.
        starts = {row.only: number for number, row in enumerate(recipe.coefficients)}
        # Nobody else has these slots, until the driver takes them: it does not where somebody came before.
        with ExitStack() as own:
            slots = shared(engine.executor, adapter, book.slots)()
            own.callback(slots.close)
            slots.put(0, engine.condition(prompt), latent, mask, recipe=recipe, noise=PhiloxNoise([0]))
            for start in starts.values():
                slots.step([start, *[IDLE] * (book.slots - 1)])

            def taken() -> Slots:
                own.pop_all()
                return slots

            self._driver.open((book.name, adapter), taken)


def _busy(book: Book) -> BusyError:
    return BusyError(f"there is no memory for engine `{book.name}` while others paint", 30)


def _book(folder: Path) -> Book:
    spec = read_engine(folder)
    check_sampler("stage", spec.model)
    on_cpu = spec.devices == ["cpu"]
    files = sum((folder / name).stat().st_size for name in spec.files)
    size = slot_count(spec.batch, cores(), on_cpu=on_cpu)
    return Book(readable(folder.resolve()), folder, spec, size, round(RESIDENT * files) + spec.workspace)
