"""The one thread that drives the networks: steps of lanes, as `stage_rt.serve.scheduling` says, and calls between.

Whoever wants something of an engine waits on a thread of its own. What a sample comes to is told through its guest's
``tell``, on the driver's thread, which only puts it into a queue.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import DeviceLostError, DeviceMemoryError, StageError
from stage_rt.estimator import Condition
from stage_rt.executor import Executor
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.serve.scheduling import Lane, Priority, Scheduler, Ticket, Turn
from stage_rt.slots import IDLE, Counters, Slots

Float32 = NDArray[np.float32]
Answer = TypeVar("Answer")


class LateError(StageError):
    """A sample was not done by its deadline."""


class ClosedError(StageError):
    """The server is going down."""


class Stepped(NamedTuple):
    """A sample moved; ``left`` steps are to come, ``foreseen`` is its `Slots.foreseen` if that was asked for."""

    left: int
    foreseen: Float32 | None


class Ended(NamedTuple):
    """A sample is done: its latent ``[1, C, h, w]``, and whether it was finite at every step."""

    latent: Float32
    finite: bool


Told = Stepped | Ended | BaseException


@dataclass
class Guest:
    """A sample on its way through the slots of a lane, as `Slots.put` takes it.

    ``foresee`` is after how many steps each an estimate is wanted, 0 for never. ``counter``, ``state`` and ``finite``
    are where it stands, and stood when it was put aside.
    """

    condition: Condition
    clean: Float32
    mask: Float32
    label: Float32 | None
    recipe: Recipe
    noise: PhiloxNoise
    tell: Callable[[Told], None]
    foresee: int = 0
    ticket: Ticket | None = None
    counter: int = IDLE
    state: Float32 | None = None
    finite: bool = True


class Observer(Protocol):
    """Is told of every step: the lane, the seconds it took, its samples and its slots."""

    def __call__(self, lane: Lane, seconds: float, samples: int, size: int) -> None:
        """See the class."""


def _unobserved(lane: Lane, seconds: float, samples: int, size: int) -> None:
    pass


@dataclass
class _Room:
    slots: Slots
    guests: dict[int, Guest] = field(default_factory=dict)


class Driver:
    """The thread; `close` ends it, and whoever still waits is told `ClosedError`. ``clock`` is that of deadlines.

    ``relieve`` gives memory of the device back where it is full, and says whether there was any to give;
    ``lost`` is told of every error after which the device does nothing more.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, observe: Observer = _unobserved
    ) -> None:
        self._clock, self._observe = clock, observe
        self.relieve: Callable[[], bool] = lambda: False
        self.lost: Callable[[DeviceLostError], None] = lambda error: None
        self._scheduler = Scheduler()
        self._rooms: dict[Lane, _Room] = {}
        self._asked: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="stage-rt-driver", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], Answer]) -> Answer:
        """What ``work`` returns, or raises, when the driver's thread ran it between two steps.

        Raises:
            ClosedError: the driver was closed before.
        """
        if threading.current_thread() is self._thread:
            return work()
        answer: Future[Answer] = Future()

        def run() -> None:
            if self._closing:
                answer.set_exception(ClosedError("the server is going down"))
                return
            try:
                answer.set_result(work())
            except BaseException as error:
                self._noted(error)
                answer.set_exception(error)

        self._asked.put(run)
        while True:
            try:
                return answer.result(timeout=1.0)
            except TimeoutError:
                # Either it came just now, or what was raised is the work's own.
                if answer.done():
                    return answer.result()
                if not self._thread.is_alive():
                    raise ClosedError("the server is going down") from None

    def fit(self, work: Callable[[], Answer]) -> Answer:
        """As `call`; where the device's memory is full, ``work`` is begun again in place of what nobody uses."""
        return self.call(lambda: self._fitted(work))

    def submit(
        self,
        lane: Lane,
        guests: Sequence[Guest],
        opened: Callable[[], Slots],
        *,
        priority: Priority,
        deadline: float,
    ) -> None:
        """Let samples into a lane; one without slots is opened.

        Raises:
            ClosedError, DeviceMemoryError, BackendError: they cannot be had.
        """

        def enter() -> None:
            self._room(lane, opened)
            for guest in guests:
                self._enter(guest, lane, priority, deadline)

        self.call(enter)

    def withdraw(self, guests: Sequence[Guest]) -> None:
        """Take samples out, wherever they are; those that are done stay done."""

        def leave() -> None:
            for guest in guests:
                if guest.ticket is not None and self._scheduler.cancel(guest.ticket.number):
                    self._rooms[guest.ticket.lane].guests.pop(guest.ticket.number)

        self.call(leave)

    def open(self, lane: Lane, opened: Callable[[], Slots]) -> None:
        """Open a lane's slots before somebody needs them; errors as `submit`."""
        self.call(lambda: self._room(lane, opened))

    def shut(self, lanes: Callable[[Lane], bool]) -> None:
        """Close the slots of some lanes; what is in them is told `ClosedError`."""

        def close() -> None:
            leaving = [lane for lane in self._rooms if lanes(lane)]
            self._shut_all(leaving, ClosedError("the engine was taken out of memory"))

        self.call(close)

    @property
    def alive(self) -> bool:
        """Whether somebody drives."""
        return self._thread.is_alive()

    def depth(self) -> dict[Priority, int]:
        """How many samples wait or are painted, by class; a glance from any thread."""
        return {one: self._scheduler.count(one) for one in Priority}

    def close(self) -> None:
        """End the thread after the step in hand."""

        def end() -> None:
            self._closing = True

        self._asked.put(end)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._drive()
        finally:
            self._closing = True
            try:
                self._shut_all(self._rooms, ClosedError("the server is going down"))
            finally:
                self._refuse_rest()

    def _refuse_rest(self) -> None:
        """Answer whoever asked for something while the thread ended."""
        with suppress(Empty):
            while True:
                self._asked.get_nowait()()

    def _drive(self) -> None:
        while not self._closing:
            self._answer()
            for ticket in self._scheduler.expire(self._clock()):
                guest = self._rooms[ticket.lane].guests.pop(ticket.number)
                guest.tell(LateError("the pair was not done in time: ask for fewer steps or try again later"))
            turn = None if self._closing else self._scheduler.turn()
            if turn is not None:
                self._step(turn)

    def _answer(self) -> None:
        """Do what was asked for; with nothing to step, wait until something is."""
        wait = not len(self._scheduler)
        while True:
            try:
                asked = self._asked.get(block=wait)
            except Empty:
                return
            asked()
            wait = False

    def _step(self, turn: Turn) -> None:
        room, began = self._rooms[turn.lane], self._clock()
        try:
            self._move(room, turn)
            counters = np.full(room.slots.size, IDLE, np.int32)
            for ticket in turn.step:
                counters[ticket.slot or 0] = room.guests[ticket.number].counter
            after = room.slots.step(counters)
            self._observe(turn.lane, self._clock() - began, len(turn.step), room.slots.size)
            self._tell(room, turn, after)
        except BaseException as error:
            self._noted(error)
            self._failed(room, turn, error)

    def _failed(self, room: _Room, turn: Turn, error: BaseException) -> None:
        """Tell those in the slots, or let them begin again where memory was full and some could be given back."""
        again = isinstance(error, DeviceMemoryError) and self._relieved()
        # Nobody knows what is in the slots now. Those that were put aside need not know, if they got so far.
        lost = {ticket.number for _, ticket in turn.out if room.guests[ticket.number].state is None}
        for number, guest in list(room.guests.items()):
            place = guest.ticket
            if place is None or (number not in lost and place.slot is None):
                continue
            self._scheduler.cancel(number)
            del room.guests[number]
            if again:
                guest.state, guest.finite = None, True
                self._enter(guest, place.lane, place.priority, place.deadline)
            else:
                guest.tell(error)

    def _noted(self, error: BaseException) -> None:
        if isinstance(error, DeviceLostError):
            self.lost(error)

    def _enter(self, guest: Guest, lane: Lane, priority: Priority, deadline: float) -> None:
        guest.ticket = self._scheduler.add(lane, len(guest.recipe.coefficients), priority, deadline)
        self._rooms[lane].guests[guest.ticket.number] = guest

    def _tell(self, room: _Room, turn: Turn, after: Counters) -> None:
        """What a step came to."""
        done = {ticket.number for ticket in self._scheduler.stepped(turn)}
        for ticket in turn.step:
            guest, slot = room.guests[ticket.number], ticket.slot or 0
            guest.counter = int(after[slot])
            taken = len(guest.recipe.coefficients) - ticket.left
            wanted = guest.foresee and ticket.left and taken % guest.foresee == 0
            guest.tell(Stepped(ticket.left, room.slots.foreseen(slot) if wanted else None))
            if ticket.number in done:
                latent, finite = room.slots.take(slot)
                del room.guests[ticket.number]
                guest.tell(Ended(latent, guest.finite and bool(finite[0])))

    @staticmethod
    def _move(room: _Room, turn: Turn) -> None:
        for slot, ticket in turn.out:
            guest = room.guests[ticket.number]
            guest.state, finite = room.slots.take(slot)
            guest.finite &= bool(finite[0])
        for slot, ticket in turn.into:
            guest = room.guests[ticket.number]
            first = room.slots.put(
                slot,
                guest.condition,
                guest.clean,
                guest.mask,
                recipe=guest.recipe,
                noise=guest.noise,
                state=guest.state,
                label=guest.label,
            )
            if guest.state is None:
                guest.counter = first
            guest.state = None

    def _room(self, lane: Lane, opened: Callable[[], Slots]) -> None:
        if lane not in self._rooms:
            slots = self._fitted(opened)
            self._rooms[lane] = _Room(slots)
            self._scheduler.open(lane, slots.size)

    def _fitted(self, work: Callable[[], Answer]) -> Answer:
        """As `fit`, on the driver's thread."""
        while True:
            try:
                return work()
            except DeviceMemoryError:
                if not self._make_room():
                    raise

    def _make_room(self) -> bool:
        """Close the lanes that nobody is in, or else what `relieve` does; whether there was anything to close."""
        idle = [lane for lane, room in self._rooms.items() if not room.guests]
        if not idle:
            return self.relieve()
        self._shut_all(idle, ClosedError("nobody is in it"))
        return True

    def _relieved(self) -> bool:
        """As `_make_room`; what fails to close is no reason for the thread to end."""
        try:
            return self._make_room()
        except StageError:
            return False

    def _shut_all(self, lanes: Iterable[Lane], error: BaseException) -> None:
        """Close all of them, whatever fails to close on the way."""
        with ExitStack() as closing:
            for lane in list(lanes):
                closing.callback(self._shut, lane, error)

    def _shut(self, lane: Lane, error: BaseException) -> None:
        self._scheduler.close(lane)
        room = self._rooms.pop(lane)
        for guest in room.guests.values():
            guest.tell(error)
        room.slots.close()


def slot_count(sizes: Sequence[int], cores: int, *, on_cpu: bool) -> int:
    """The size of a lane, of the batch sizes an engine was built for.

    On a CPU an empty slot costs what a full one does and more samples than cores gain nothing: the smallest size that
    gives every core one. A GPU is full at eight.
    """
    wanted = cores if on_cpu else 8
    return min((size for size in sizes if size >= wanted), default=max(sizes))


def shared(executor: Executor, adapter: str | None, size: int) -> Callable[[], Slots]:
    """What opens a lane."""
    return lambda: executor.slots(adapter, size)
