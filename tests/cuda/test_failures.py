"""Every call of the driver fails: an error of ours or a slower way, nothing left behind, and a GPU that works again.

The calls are those of an engine's life: load, paint 20 steps, wait for the images, close.
"""

import random
from collections import Counter

import numpy as np
import pytest
from gpu_engine import loaded, paint
from soft_gpu import ANY, Kind, Result

from stage_rt.errors import BackendError, StageError
from stage_rt.recipe import Recipe

TWENTY = Recipe(name="twenty", steps=20, ema_stop=6, only_intervals=((8, 11),))
FAILURES = {
    (Result.OUT_OF_MEMORY, Kind.ONCE): 10,
    (Result.LAUNCH_FAILED, Kind.ONCE): 100,
    (Result.ILLEGAL_ADDRESS, Kind.STICKY): 200,
    (Result.CAPTURE_INVALIDATED, Kind.BREAKS_CAPTURE): 0,
}
"""With how many errors each ends at least, of about 300 lives; the others go on in a slower way or fail to close."""


def life(machine, notify):
    """What came of it: images or the error that ended it; the engine is closed either way, which may fail as well."""
    engine = None
    try:
        engine, _ = loaded(machine, notify, recipe=TWENTY, batch=(1, 2))
        return paint(engine).images
    except StageError as error:
        return error
    finally:
        if engine is not None:
            close(engine)


def close(engine):
    try:
        engine.close()
    except StageError:
        # All is given back whatever fails on the way; the second time there is nothing left to fail.
        engine.close()


@pytest.fixture
def whole(machine):
    """Images of a life without failures, and the calls it makes but those that change the context."""
    notices = []
    # The first one of a process also opens the driver.
    life(machine, notices.append)
    before = machine.calls
    images = life(machine, notices.append)
    assert notices == []
    return images, machine.log(before)


def failed(machine, images):
    """What the failures that were planned came to, in a word."""
    notices = []
    found = life(machine, notices.append)
    leaks, faults = machine.counts.leaks, machine.faults
    machine.heal()
    assert not leaks, (leaks, str(found))
    assert not faults
    if isinstance(found, StageError):
        assert isinstance(found, BackendError), found
        return "error"
    np.testing.assert_array_equal(found, images)
    return "slower" if notices else "unharmed"


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure[0].name)
def test_every_call_may_fail(machine, whole, failure):
    images, calls = whole
    result, kind = failure
    ends = Counter()
    for n in range(len(calls)):
        machine.fail(ANY, result, call=n + 1, kind=kind)
        ends[failed(machine, images)] += 1
    print(f"{result.name}: {len(calls)} calls, {dict(ends)}")
    assert ends["error"] >= FAILURES[failure]
    if kind is not Kind.STICKY:
        # What fails while a step is recorded leaves the loop running kernel by kernel, or in smaller batches.
        assert ends["slower"] > 0
    np.testing.assert_array_equal(life(machine, print), images)


@pytest.mark.parametrize("seed", range(2))
def test_any_calls_may_fail_together(machine, whole, seed):
    images, calls = whole
    choose, ends = random.Random(seed), Counter()
    for _ in range(150):
        for _ in range(choose.randint(1, 4)):
            result, kind = choose.choice(list(FAILURES))
            function = choose.choice([ANY, *sorted({call.partition(" ")[0] for call in calls})])
            last = len(calls) if function == ANY else sum(call.startswith(function) for call in calls)
            machine.fail(function, result, call=choose.randint(1, last), kind=kind)
        ends[failed(machine, images)] += 1
    print(f"seed {seed}: {dict(ends)}")
    assert min(ends["error"], ends["slower"]) > 0
    np.testing.assert_array_equal(life(machine, print), images)
