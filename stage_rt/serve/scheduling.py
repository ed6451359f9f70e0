"""Who goes through the networks next. Pure: no clock, no thread and no array of its own.

A lane is a batch of a fixed number of slots, for samples of one engine and one pair of adapters. One lane takes one
step at a time, which is a tick; a sample is done after as many steps as it asked for. Whoever drives the networks
asks for a `Turn`, does what it says and tells `Scheduler.stepped`.

Samples that somebody waits for go before those of the night, in the order in which they came. While both have work,
`NIGHTLY` of every `PERIOD` ticks are the night's the other way round, so that it cannot starve. Lanes with work of
the class whose tick it is take turns. So, with `L` such lanes, `k` samples of its class before it in a lane of `S`
slots and `T` steps at most a sample, a sample is done within

    ``L * (k * T / S + T)`` ticks of its own class,

of which there are at least `PERIOD - NIGHTLY`, or `NIGHTLY`, in `PERIOD`: `Scheduler.bound` is that number of ticks.
A sample whose slot another needs is put aside and goes on later where it stood.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

PERIOD, NIGHTLY = 64, 8
"""Of so many ticks, so many are the night's while somebody waits. In one piece, since every change moves samples."""

Lane = Hashable


class Priority(IntEnum):
    """Whom a sample is for."""

    INTERACTIVE = 0
    NIGHT = 1


@dataclass
class Ticket:
    """A sample that waits or is being painted; ``left`` are the steps it still takes, ``slot`` where it lies.

    ``deadline`` is a time of the driver's clock after which nobody wants it.
    """

    number: int
    lane: Lane
    priority: Priority
    left: int
    deadline: float = math.inf
    slot: int | None = None


class Turn(NamedTuple):
    """What is to be done in a lane: take out, put in, then one step of those in ``step``."""

    lane: Lane
    out: list[tuple[int, Ticket]]
    into: list[tuple[int, Ticket]]
    step: list[Ticket]


@dataclass
class _Lane:
    size: int
    queues: dict[Priority, dict[int, Ticket]] = field(default_factory=lambda: {one: {} for one in Priority})
    slots: list[Ticket | None] = field(default_factory=list)

    def wanted(self, first: Priority) -> list[Ticket]:
        """The samples that a step of this lane is for, oldest of a class first."""
        found: list[Ticket] = []
        for priority in (first, Priority(1 - first)):
            for ticket in self.queues[priority].values():
                if len(found) == self.size:
                    return found
                found.append(ticket)
        return found


class Scheduler:
    """Tickets in lanes, each of which is stepped as often as it asked to be, and handed back once."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, _Lane] = {}
        self._turns: dict[Priority, deque[Lane]] = {one: deque() for one in Priority}
        self._tickets: dict[int, Ticket] = {}
        self._issued = self._contested = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def open(self, lane: Lane, size: int) -> None:
        """A lane of ``size`` slots."""
        self._lanes[lane] = _Lane(size, slots=[None] * size)
        for turns in self._turns.values():
            turns.append(lane)

    def close(self, lane: Lane) -> list[Ticket]:
        """Forget a lane; the tickets that were in it."""
        gone = self._lanes.pop(lane)
        for turns in self._turns.values():
            turns.remove(lane)
        tickets = [ticket for queue in gone.queues.values() for ticket in queue.values()]
        for ticket in tickets:
            del self._tickets[ticket.number]
        return tickets

    def count(self, priority: Priority) -> int:
        """How many tickets of a class there are; any thread may ask."""
        # A list is made in one go, and not while a lane is opened or closed.
        return sum(len(lane.queues[priority]) for lane in list(self._lanes.values()))

    def add(self, lane: Lane, steps: int, priority: Priority, deadline: float = math.inf) -> Ticket:
        """A new sample at the end of its class's queue."""
        ticket = Ticket(self._issued, lane, priority, steps, deadline)
        self._issued += 1
        self._tickets[ticket.number] = ticket
        self._lanes[lane].queues[priority][ticket.number] = ticket
        return ticket

    def cancel(self, number: int) -> Ticket | None:
        """Nobody wants a sample any more; None if it is gone already."""
        ticket = self._tickets.get(number)
        if ticket is not None:
            self._remove(ticket)
        return ticket

    def expire(self, now: float) -> list[Ticket]:
        """Take out whatever is past its deadline."""
        late = [ticket for ticket in self._tickets.values() if ticket.deadline <= now]
        for ticket in late:
            self._remove(ticket)
        return late

    def turn(self) -> Turn | None:
        """The next step; None where there is nothing to do. Asked again before `stepped`, the answer is another."""
        first = self._favoured()
        if first is None:
            return None
        turns = self._turns[first]
        name = next(lane for lane in turns if self._lanes[lane].queues[first])
        turns.remove(name)
        turns.append(name)
        lane = self._lanes[name]
        step = lane.wanted(first)
        return Turn(name, *self._seated(lane, step), step)

    def stepped(self, turn: Turn) -> list[Ticket]:
        """A turn was taken; those that are done, which lie in their slots until something else does."""
        done = []
        for ticket in turn.step:
            ticket.left -= 1
            if ticket.left == 0:
                done.append(ticket)
                slot = ticket.slot
                self._remove(ticket)
                ticket.slot = slot
        return done

    def bound(self, ticket: Ticket, longest: int) -> int:
        """Ticks within which a sample is done, if no sample takes more than ``longest`` steps and no lane is opened.

        What comes later in its own class and whatever comes in the other are in it already.
        """
        lane = self._lanes[ticket.lane]
        before = sum(number < ticket.number for number in lane.queues[ticket.priority])
        own = len(self._lanes) * math.ceil(before * longest / lane.size + longest)
        share = NIGHTLY if ticket.priority is Priority.NIGHT else PERIOD - NIGHTLY
        return (math.ceil(own / share) + 1) * PERIOD

    def _favoured(self) -> Priority | None:
        """The class whose tick it is, of those that have work."""
        counts = {one: self.count(one) for one in Priority}
        if all(counts.values()):
            self._contested += 1
            night = self._contested % PERIOD >= PERIOD - NIGHTLY
            return Priority.NIGHT if night else Priority.INTERACTIVE
        return next((one for one, count in counts.items() if count), None)

    @staticmethod
    def _seated(lane: _Lane, step: list[Ticket]) -> tuple[list[tuple[int, Ticket]], list[tuple[int, Ticket]]]:
        """Give each of ``step`` a slot: an empty one, or that of somebody who is not among them."""
        wanted = {ticket.number for ticket in step}

        def free() -> Iterator[int]:
            yield from (slot for slot, ticket in enumerate(lane.slots) if ticket is None)
            yield from (
                slot for slot, ticket in enumerate(lane.slots) if ticket and ticket.number not in wanted
            )

        places = list(free())
        out, into = [], []
        for ticket in step:
            if ticket.slot is None:
                slot = places.pop(0)
                if (former := lane.slots[slot]) is not None:
                    former.slot = None
                    out.append((slot, former))
                lane.slots[slot], ticket.slot = ticket, slot
                into.append((slot, ticket))
        return out, into

    def _remove(self, ticket: Ticket) -> None:
        lane = self._lanes[ticket.lane]
        del self._tickets[ticket.number], lane.queues[ticket.priority][ticket.number]
        if ticket.slot is not None:
            lane.slots[ticket.slot] = None
            ticket.slot = None
