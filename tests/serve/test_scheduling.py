"""The scheduler by itself: nobody is lost, nobody is painted twice, and waiting has the bound that is stated."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_rt.serve.scheduling import NIGHTLY, PERIOD, Priority, Scheduler

LONGEST = 12


class World:
    """Slots that hold samples and know how far each has come; every move of the scheduler is checked."""

    def __init__(self, sizes):
        self.scheduler = Scheduler()
        self.held = {lane: [None] * size for lane, size in sizes.items()}
        for lane, size in sizes.items():
            self.scheduler.open(lane, size)
        self.steps, self.asked, self.done, self.gone = {}, {}, set(), set()
        self.limit, self.ticks = {}, 0

    def add(self, lane, steps, priority, deadline=float("inf")):
        ticket = self.scheduler.add(lane, steps, priority, deadline)
        self.asked[ticket.number], self.steps[ticket.number] = steps, 0
        self.limit[ticket.number] = self.ticks + self.scheduler.bound(ticket, LONGEST)
        return ticket

    def over(self, number):
        return number in self.done or number in self.gone

    def tick(self):
        turn = self.scheduler.turn()
        if turn is None:
            assert len(self.scheduler) == 0
            return None
        self.ticks += 1
        slots = self.held[turn.lane]
        for slot, ticket in turn.out:
            assert slots[slot] == ticket.number
            slots[slot] = None
        for slot, ticket in turn.into:
            assert slots[slot] is None or self.over(slots[slot])
            assert ticket.number not in slots
            slots[slot] = ticket.number
        assert 0 < len(turn.step) <= len(slots)
        for ticket in turn.step:
            assert slots[ticket.slot] == ticket.number
            assert not self.over(ticket.number)
            self.steps[ticket.number] += 1
        for ticket in self.scheduler.stepped(turn):
            assert self.steps[ticket.number] == self.asked[ticket.number]
            assert slots[ticket.slot] == ticket.number
            assert self.ticks <= self.limit[ticket.number]
            self.done.add(ticket.number)
        return turn

    def drain(self):
        while self.tick():
            pass
        assert self.done | self.gone == set(self.asked)
        assert not self.done & self.gone


def simulate(count, seed):
    """``count`` samples that come by chance, some of which are cancelled or late; returns the world afterwards."""
    chance = random.Random(seed)
    world = World({lane: chance.choice([1, 2, 3, 8]) for lane in range(chance.choice([1, 2, 3]))})
    added = 0
    while added < count:
        if len(world.scheduler) < 40 and chance.random() < 0.7:
            for _ in range(min(chance.choice([1, 1, 2, 7]), count - added)):
                priority = Priority(chance.random() < 0.5)
                late = world.ticks + chance.randrange(200) if chance.random() < 0.05 else float("inf")
                ticket = world.add(
                    chance.choice(list(world.held)), chance.randint(1, LONGEST), priority, late
                )
                added += 1
                if chance.random() < 0.03:
                    assert world.scheduler.cancel(ticket.number) is ticket
                    assert world.scheduler.cancel(ticket.number) is None
                    world.gone.add(ticket.number)
        world.gone |= {ticket.number for ticket in world.scheduler.expire(world.ticks)}
        world.tick()
    world.drain()
    return world


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_is_done_once_within_the_bound_or_taken_out(seed):
    world = simulate(3000, seed)
    assert len(world.asked) == 3000
    assert world.gone


@pytest.mark.slow
def test_a_million_samples():
    for seed in range(20):
        assert len(simulate(50_000, 100 + seed).asked) == 50_000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, LONGEST), st.sampled_from(Priority), st.integers(0, 9)),
        max_size=60,
    )
)
def test_any_order_of_arrivals(arrivals):
    world = World({0: 1, 1: 2, 2: 4})
    for lane, steps, priority, pause in arrivals:
        world.add(lane, steps, priority)
        for _ in range(pause):
            world.tick()
    world.drain()


def test_who_waits_goes_before_the_night_and_the_night_has_its_share():
    world = World({"a": 2})
    nights = [world.add("a", 1000, Priority.NIGHT) for _ in range(2)]
    world.limit = dict.fromkeys(range(9), 10**9)
    for _ in range(5):
        assert [ticket.number for ticket in world.tick().step] == [0, 1]
    for _ in range(2):
        world.add("a", 1000, Priority.INTERACTIVE)
    before = [1000 - 5] * 2
    turns = [world.tick() for _ in range(PERIOD)]
    assert [ticket.left for ticket in nights] == [left - NIGHTLY for left in before]
    # In one piece: two swaps of both slots in a period, and the one back.
    assert sum(bool(turn.out) for turn in turns) == 3


def test_one_class_alone_has_every_tick_and_empty_slots_are_the_others():
    world = World({"a": 4})
    world.add("a", 3, Priority.INTERACTIVE)
    world.add("a", 9, Priority.NIGHT)
    assert [ticket.number for ticket in world.tick().step] == [0, 1]
    world.drain()
    assert world.ticks == 9


def test_lanes_take_turns():
    world = World({"a": 1, "b": 1, "c": 1})
    for lane in "aab":
        world.add(lane, 2, Priority.INTERACTIVE)
    assert [world.tick().lane for _ in range(6)] == ["a", "b", "a", "b", "a", "a"]


def test_a_lane_that_closes_hands_back_what_is_in_it():
    world = World({"a": 1, "b": 1})
    mine, other = world.add("a", 2, Priority.NIGHT), world.add("b", 2, Priority.NIGHT)
    world.tick()
    assert world.scheduler.close("a") == [mine]
    assert world.scheduler.cancel(mine.number) is None
    world.gone.add(mine.number)
    world.drain()
    assert other.number in world.done


def test_tickets_are_counted_while_lanes_are_opened():
    scheduler = Scheduler()

    class Opening(dict):
        """A queue, while whose length is taken a lane is opened."""

        def __len__(self):
            scheduler.open(object(), 1)
            return super().__len__()

    for lane in "ab":
        scheduler.open(lane, 1)
        scheduler.add(lane, 1, Priority.NIGHT)
    scheduler._lanes["a"].queues[Priority.NIGHT] = Opening(scheduler._lanes["a"].queues[Priority.NIGHT])
    assert scheduler.count(Priority.NIGHT) == 2
