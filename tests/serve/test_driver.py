"""Samples of many askers through the slots of one driver: each is what the engine paints alone, and none is lost."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from closed_engine import closed_engine
from mock_networks import HostBackend

from stage_rt.errors import BackendError, DeviceMemoryError, EngineError, InputError
from stage_rt.noise import PhiloxNoise
from stage_rt.serve.driver import ClosedError, Driver, LateError, slot_count
from stage_rt.serve.executor import CancelledError, SharedExecutor, Terms, Wish
from stage_rt.serve.scheduling import Priority
from stage_rt.spec import UNET, VAE_DECODER, VAE_ENCODER

NIGHT, NOW = Terms(Priority.NIGHT), Terms(Priority.INTERACTIVE)


@pytest.fixture
def driver():
    made = Driver()
    yield made
    made.close()


def over(driver, engine, terms, size=4):
    return engine.over(SharedExecutor(driver, "e", engine.executor, size, 0.5, terms))


def inputs(number, count=1):
    rng = np.random.default_rng(number)
    images = rng.uniform(-1, 1, (count, 3, 16, 16)).astype(np.float32)
    return images, (rng.random((count, 1, 8, 8)) < 0.4).astype(np.float32)


def paint(engine, number, count=1, prompt="tile+crack", **options):
    images, masks = inputs(number, count)
    noise = PhiloxNoise([number] * count, range(count))
    return engine.paint(images, masks, prompt=prompt, noise=noise, **options).images


def test_whoever_asks_has_the_bits_of_the_engine_alone_whoever_is_beside(driver):
    engine = closed_engine()
    prompts = ["tile+crack", "tile+hole", "tile+chip", "tile+bare"]
    asked = [(n, 1 + n % 3, prompts[n % 4], NIGHT if n % 5 == 0 else NOW) for n in range(24)]

    def ask(number, count, prompt, terms):
        return paint(over(driver, engine, terms), number, count, prompt, steps=12 + number % 7)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: ask(*each), asked))
    for (number, count, prompt, _), images in zip(asked, found, strict=True):
        alone = paint(closed_engine(), number, count, prompt, steps=12 + number % 7)
        np.testing.assert_array_equal(images, alone)
    assert set(driver.depth().values()) == {0}


def test_progress_and_previews_are_told_on_the_way_and_the_last_is_near_the_result(driver):
    seen, shares = [], []
    terms = Terms(Priority.INTERACTIVE, preview=lambda stream, image: seen.append((stream, image)))
    images = paint(over(driver, closed_engine(), terms), 3, 2, progress=shares.append)
    assert {stream for stream, _ in seen} == {0, 1}
    assert len(seen) > 16
    assert shares == sorted(shares)
    assert shares[-1] == 1
    mask = np.kron(inputs(3, 2)[1][0], np.ones((1, 2, 2)))
    last = [image for stream, image in seen if stream == 0][-1]
    first = next(image for stream, image in seen if stream == 0)
    assert np.abs((last - images[0]) * mask).max() < 0.5 * np.abs((first - images[0]) * mask).max()


def test_an_answer_that_comes_as_patience_ends_is_given(driver, monkeypatch):
    class Late(Future):
        def result(self, timeout=None):
            found = super().result()
            if timeout is not None:
                raise TimeoutError
            return found

    monkeypatch.setattr("stage_rt.serve.driver.Future", Late)
    assert driver.call(lambda: "done") == "done"


class Gate(HostBackend):
    """Networks that wait for ``go`` before each step and say that one ``began``."""

    def __init__(self):
        super().__init__()
        self.go, self.began = threading.Event(), threading.Event()

    def run(self, graph, **inputs):
        if graph == UNET:
            self.began.set()
            assert self.go.wait(30)
        return super().run(graph, **inputs)


def test_who_cancels_is_let_go_and_others_have_their_bits(driver):
    backend, wish = Gate(), Wish()
    engine = closed_engine(backend)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(paint, over(driver, engine, Terms(Priority.INTERACTIVE, wish=wish)), 1)
        assert backend.began.wait(30)
        other = pool.submit(paint, over(driver, engine, NOW), 2)
        wish.cancel()
        backend.go.set()
        with pytest.raises(CancelledError, match="the request was cancelled"):
            first.result(30)
        np.testing.assert_array_equal(other.result(30), paint(closed_engine(), 2))
    with pytest.raises(CancelledError):
        paint(over(driver, engine, Terms(Priority.INTERACTIVE, wish=wish)), 1)
    assert set(driver.depth().values()) == {0}


def test_what_is_late_is_given_up():
    now, backend = [0.0], Gate()
    driver = Driver(clock=lambda: now[0])
    engine = over(driver, closed_engine(backend), Terms(Priority.INTERACTIVE, deadline=5.0))
    with closing(driver), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(paint, engine, 1)
        assert backend.began.wait(30)
        now[0] = 6.0
        backend.go.set()
        with pytest.raises(LateError, match="was not done in time: ask for fewer steps"):
            asked.result(30)


def test_a_library_that_fails_is_told_to_those_in_the_slots_and_the_next_is_painted(driver):
    class Failing(HostBackend):
        failed = False

        def run(self, graph, **inputs):
            if graph == UNET and not self.failed:
                self.failed = True
                raise BackendError("the library failed")
            return super().run(graph, **inputs)

    engine = over(driver, closed_engine(Failing()), NOW)
    with pytest.raises(BackendError, match="the library failed"):
        paint(engine, 1)
    np.testing.assert_array_equal(paint(engine, 1), paint(closed_engine(), 1))


class Losing(type(closed_engine().executor)):
    """The first sample that is taken out of slots is lost."""

    def slots(self, adapter, size):
        made = super().slots(adapter, size)
        take, lost = made.take, []

        def taken(slot):
            if not lost:
                lost.append(slot)
                raise BackendError("the library failed")
            return take(slot)

        made.take = taken
        return made


def test_who_was_done_and_cannot_be_had_is_told(driver):
    engine, wish = closed_engine(), Wish()
    engine = engine.over(Losing(engine.spec.model, HostBackend()))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(paint, over(driver, engine, Terms(Priority.INTERACTIVE, wish=wish)), 1)
        try:
            with pytest.raises(BackendError, match="the library failed"):
                asked.result(10)
        finally:
            # Whoever waits for ever is let go.
            wish.cancel()
    np.testing.assert_array_equal(paint(over(driver, engine, NOW), 1), paint(closed_engine(), 1))


def test_who_was_lost_on_the_way_out_of_a_slot_is_told(driver):
    class Slow(Gate):
        def run(self, graph, **inputs):
            time.sleep(0.02 if graph == UNET else 0)
            return super().run(graph, **inputs)

    backend = Slow()
    engine = closed_engine()
    engine = engine.over(Losing(engine.spec.model, backend))
    with ThreadPoolExecutor(2) as pool:
        night = pool.submit(paint, over(driver, engine, NIGHT, 1), 1)
        assert backend.began.wait(30)
        now = pool.submit(paint, over(driver, engine, NOW, 1), 2)
        backend.go.set()
        for each in (night, now):
            with pytest.raises(BackendError, match="the library failed"):
                each.result(30)
    np.testing.assert_array_equal(paint(over(driver, engine, NIGHT, 1), 1), paint(closed_engine(), 1))
    assert set(driver.depth().values()) == {0}


def test_lanes_that_do_not_fit_beside_one_another_take_turns(driver):
    engine, opened = closed_engine(), []

    class Tight(type(engine.executor)):
        def slots(self, adapter, size):
            if opened and not opened[-1].gone:
                raise DeviceMemoryError("the device's memory is full")
            made = super().slots(adapter, size)
            made.gone = False
            made.close = lambda: setattr(made, "gone", True)
            opened.append(made)
            return made

    backend = HostBackend()
    tight = engine.over(Tight(engine.spec.model, backend))
    shared = over(driver, tight, NOW)
    for prompt in ("tile+crack", "tile+chip", "tile+crack"):
        np.testing.assert_array_equal(
            paint(shared, 1, prompt=prompt), paint(closed_engine(), 1, prompt=prompt)
        )
    assert [one.gone for one in opened] == [True, True, False]


class Full(HostBackend):
    """The device is full at call ``at`` of a network, and from then on until something is given back."""

    def __init__(self, network, at, room=()):
        super().__init__()
        self._network, self._left, self.room = network, at, list(room)

    def run(self, graph, **inputs):
        self._left -= graph == self._network
        if graph == self._network and self._left < 0 and self.room:
            raise DeviceMemoryError("the device's memory is full")
        return super().run(graph, **inputs)

    def relieve(self):
        return bool(self.room and self.room.pop())


@pytest.mark.parametrize(("network", "at"), [(UNET, 0), (UNET, 30), (VAE_ENCODER, 0), (VAE_DECODER, 0)])
def test_what_does_not_fit_takes_the_place_of_what_nobody_uses_and_has_its_bits(driver, network, at):
    backend, shares = Full(network, at, [True, True]), []
    driver.relieve = backend.relieve
    engine = over(driver, closed_engine(backend), NOW)
    images = paint(engine, 1, 3, progress=shares.append)
    np.testing.assert_array_equal(images, paint(closed_engine(), 1, 3))
    assert backend.room == []
    assert (max(shares), shares[-1]) == (1, 1)


@pytest.mark.parametrize("network", [UNET, VAE_ENCODER, VAE_DECODER])
@pytest.mark.parametrize("fails", [True, False])
def test_what_does_not_fit_beside_what_is_in_use_is_told(driver, network, fails):
    backend = Full(network, 0, [True])
    engine = over(driver, closed_engine(backend), NOW)

    def relieve():
        if fails:
            raise BackendError("the engine could not be closed")
        return False

    driver.relieve = relieve
    with pytest.raises(BackendError, match=r"the device's memory is full|the engine could not be closed"):
        paint(engine, 1)
    backend.room.clear()
    np.testing.assert_array_equal(paint(engine, 1), paint(closed_engine(), 1))
    assert set(driver.depth().values()) == {0}


def test_a_sample_that_begins_again_beside_the_night_has_its_bits(driver):
    backend = Full(UNET, 70, [True])
    driver.relieve = backend.relieve
    engine = closed_engine(backend)
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(paint, over(driver, engine, terms, 1), number, 2, steps=20)
            for number, terms in enumerate((NIGHT, NOW, NIGHT))
        ]
        for number, each in enumerate(asked):
            alone = paint(closed_engine(), number, 2, steps=20)
            np.testing.assert_array_equal(each.result(30), alone)
    assert backend.room == []


def test_what_is_not_finite_is_marked(driver):
    class Broken(HostBackend):
        def run(self, graph, **inputs):
            output = super().run(graph, **inputs)
            if graph == UNET:
                output[inputs["timestep"] == 20] = np.nan
            return output

    engine = over(driver, closed_engine(Broken()), NOW)
    images, masks = inputs(1)
    with np.errstate(invalid="ignore"):
        painted = engine.paint(images, masks, prompt="tile+hole", noise=PhiloxNoise([1]))
    assert painted.finite.tolist() == [False]


def test_a_driver_that_closes_lets_everybody_go():
    backend, driver = Gate(), Driver()
    engine = over(driver, closed_engine(backend), NOW)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(paint, engine, 1)
        assert backend.began.wait(30)
        backend.go.set()
        driver.close()
        # It may have been done by then, on a slow day of this test's thread.
        if waiting.exception(30) is not None:
            with pytest.raises(ClosedError, match="the server is going down"):
                waiting.result()
    with pytest.raises(ClosedError):
        paint(engine, 1)


class Stuck:
    """Slots that fail to close, once they did and whatever comes ``meanwhile`` came."""

    size = 1

    def __init__(self, meanwhile=lambda: None):
        self.closed, self._meanwhile = False, meanwhile

    def close(self):
        self.closed = True
        self._meanwhile()
        raise BackendError("the device is lost")


def test_all_lanes_are_closed_whatever_fails_on_the_way(driver):
    lanes = {("e", name): Stuck() for name in ("one", "two", "three")}
    for lane, slots in lanes.items():
        driver.open(lane, lambda slots=slots: slots)
    with pytest.raises(BackendError, match="the device is lost"):
        driver.shut(lambda lane: lane != ("e", "three"))
    assert [slots.closed for slots in lanes.values()] == [True, True, False]
    with pytest.raises(BackendError):
        driver.shut(lambda lane: True)
    assert lanes["e", "three"].closed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_driver_whose_lanes_fail_to_close_lets_those_go_who_asked_meanwhile():
    driver, late = Driver(), Future()
    lanes = [Stuck(lambda: driver._asked.put(lambda: late.set_result("answered"))), Stuck()]
    for number, slots in enumerate(lanes):
        driver.open(("e", str(number)), lambda slots=slots: slots)
    driver.close()
    assert [slots.closed for slots in lanes] == [True, True]
    assert late.result(1) == "answered"


def test_only_what_can_be_shared_is(driver):
    engine = over(driver, closed_engine(), NOW)
    with pytest.raises(InputError, match="sampler `repaint` cannot share the networks: use `stage`"):
        paint(engine, 1, sampler="repaint")
    with pytest.raises(EngineError, match="a shared engine has no slots to give away"):
        engine.slots("tile+crack", 4)


@pytest.mark.parametrize(
    ("sizes", "cores", "on_cpu", "expected"),
    [
        ([8], 2, True, 8),
        ([1, 2, 8], 2, True, 2),
        ([1, 8], 64, True, 8),
        ([1, 8, 32], 16, False, 8),
        ([1, 2], 4, False, 2),
    ],
)
def test_a_lane_has_a_slot_for_every_core_or_eight(sizes, cores, on_cpu, expected):
    assert slot_count(sizes, cores, on_cpu=on_cpu) == expected
