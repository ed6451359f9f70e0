"""Samples of one batch at steps of their own, on softcuda: each has the bits it has alone on the CPU."""

import numpy as np
import pytest
from coming_and_going import LEVELS, RECIPES, served, visitor
from mock_networks import HostBackend, MockBackend, spec, unet

from stage_rt.cuda import device, plan
from stage_rt.cuda.loop import Loop
from stage_rt.cuda.plan import Kind
from stage_rt.cuda.slots import DeviceSlots
from stage_rt.errors import BackendError, InputError
from stage_rt.networks import narrow, widen
from stage_rt.noise import PhiloxNoise
from stage_rt.slots import IDLE, HostSlots
from stage_rt.spec import UNET


class Rounded(HostBackend):
    """The networks of the host, every tensor between them in a device's dtype."""

    def __init__(self, dtype):
        super().__init__()
        self._dtype = dtype

    def run(self, graph, **inputs):
        stored = {name: self._rounded(array) for name, array in inputs.items() if name != "timestep"}
        return self._rounded(super().run(graph, **inputs | stored))

    def _rounded(self, array):
        return widen(narrow(array, self._dtype), self._dtype)


@pytest.fixture
def make(machine, notify):
    """``make(size, ...)`` is empty slots on the machine."""
    opened, streams = [], []

    def slots(size, adapter="a", dtype="fp32", **options):
        engine = spec(LEVELS, dtype=dtype)
        kinds = plan.every_kind(size, guided=adapter is not None, surface=True)
        backend = options.pop("backend", None) or MockBackend(machine, engine, **options)
        streams.append(device.Stream())
        opened.append(DeviceSlots(backend, engine.model, LEVELS, adapter, size, kinds, streams[-1], notify))
        return opened[-1]

    yield slots
    for each in (*opened, *streams):
        each.close()


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("size", [1, 4])
def test_whoever_comes_and_goes_has_the_cpus_bits(make, notices, dtype, size):
    visitors = [visitor(n) for n in range(3 * size + 2)]
    found = served(make(size, dtype=dtype), visitors, seed=size)
    for each, latent in zip(visitors, found, strict=True):
        np.testing.assert_array_equal(latent, each.alone(dtype))
    assert notices == []


def test_prompts_without_adapters_come_and_go_too(make):
    visitors = [visitor(n, None) for n in range(7)]
    for each, latent in zip(visitors, served(make(2, None), visitors, seed=1), strict=True):
        np.testing.assert_array_equal(latent, each.alone())


def test_steps_that_could_not_be_recorded_have_the_same_bits(make, machine, notices):
    machine.break_captures("cuLaunchHostFunc")
    visitors = [visitor(n) for n in range(6)]
    for each, latent in zip(visitors, served(make(4), visitors, seed=3), strict=True):
        np.testing.assert_array_equal(latent, each.alone())
    assert notices[0].startswith("the loop runs kernel by kernel")


def test_equal_counters_are_the_lockstep_loop_and_launch_nothing_more(make, machine, notify):
    slots, engine, stream = make(4), spec(LEVELS), device.Stream()
    loop = Loop(MockBackend(machine, engine), engine.model, LEVELS, "a", 4, stream, notify)
    guests = [visitor(n, recipes=(LEVELS,)) for n in range(4)]
    guests = [each._replace(condition=guests[0].condition, label=None) for each in guests]
    counters = [each.enter(slots, n) for n, each in enumerate(guests)]
    clean, mask = (np.concatenate([getattr(each, name) for each in guests]) for name in ("clean", "mask"))
    noise = PhiloxNoise([900, 901, 902, 903], range(4))
    logs = []
    for run in (
        lambda: loop.run(clean, mask, guests[0].condition.context, noise),
        lambda: [slots.step(counters, LEVELS.steps), slots.wait()],
    ):
        before = machine.calls
        run()
        calls = machine.log(before)
        logs.append(calls[calls.index("cuGraphLaunch") :][: LEVELS.steps + 2])
    assert logs[0] == logs[1]
    assert logs[0] == ["cuGraphLaunch"] * LEVELS.steps + ["cuEventRecord", "cuStreamSynchronize"]
    expected = loop.run(clean, mask, guests[0].condition.context, noise).latent
    np.testing.assert_array_equal(np.concatenate([slots.take(n).latent for n in range(4)]), expected)
    loop.close()
    stream.close()


def test_between_two_steps_nothing_is_copied_unless_the_counters_differ(make, machine):
    slots = make(4)
    counters = [visitor(n).enter(slots, n) for n in (0, 1)] + [IDLE, IDLE]
    counters = slots.step(counters, 3)
    before = machine.calls
    counters = slots.step(counters, 3)
    assert set(machine.log(before)) == {"cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"}
    counters[2] = visitor(2).enter(slots, 2)
    before = machine.calls
    slots.step(counters, 3)
    assert machine.log(before)[:4] == ["cuMemcpyHtoDAsync", *["cuGraphLaunch"] * 3]


def test_both_adapters_run_only_where_branches_differ(make):
    slots = make(4)
    slots._launches = {kind: lambda kind=kind: ran.append(kind) for kind in slots._launches}
    aware, only, both = Kind.AWARE, Kind.ONLY, Kind.AWARE | Kind.ONLY
    for n in range(2):
        visitor(n, recipes=(LEVELS,)).enter(slots, n)
    cases = (
        ([39, IDLE], [aware] * 3),
        ([39, 35], [aware] * 3),
        ([28, 27], [only] * 3),
        ([29, 28], [both, only, only]),
        ([IDLE, 13], [only, only, aware]),
        ([0, 25], [both, only, aware]),
    )
    for counters, expected in cases:
        ran = []
        slots.step([*counters, IDLE, IDLE], 3)
        assert ran == expected
    ran = []
    slots.step([IDLE] * 4, 3)
    assert ran == []


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("adapter", ["a", None])
def test_what_is_foreseen_under_the_mask_is_what_the_cpu_foresees(make, dtype, adapter):
    guests = [visitor(n, adapter) for n in range(3)]
    slots, host = make(4, adapter, dtype), HostSlots(Rounded(dtype), spec(LEVELS).model, adapter, 4)
    counters = np.array([*(each.enter(slots, n) for n, each in enumerate(guests)), IDLE], np.int32)
    assert [each.enter(host, n) for n, each in enumerate(guests)] == counters[:3].tolist()
    assert slots.foreseen(0) is None
    for steps in (1, 2, 1, 5, 1, 30):
        before, counters = counters, slots.step(counters, steps)
        host.step(before, steps)
        for n, guest in enumerate(guests):
            if before[n] == IDLE:
                assert slots.foreseen(n) is None
                continue
            found, expected = slots.foreseen(n), host.foreseen(n)
            assert found.dtype == np.float32
            under = np.broadcast_to(guest.mask > 0, found.shape)
            scale = np.abs(expected[under]).max()
            np.testing.assert_allclose(found[under], expected[under], atol=1e-4 * scale)
            np.testing.assert_array_equal(found[~under], guest.clean[~under])
            if counters[n] == IDLE:
                np.testing.assert_allclose(found[under], slots.take(n).latent[under], atol=1e-5 * scale)
    guests[1].enter(slots, 0)
    assert slots.foreseen(0) is None


def test_a_sample_that_is_done_or_at_rest_stays_as_it_is(make):
    slots, guests = make(4), [visitor(n, recipes=(LEVELS,)) for n in range(3)]
    for n, each in enumerate(guests):
        each.enter(slots, n)
    assert slots.step([2, 39, IDLE, IDLE], 9).tolist() == [IDLE, 30, IDLE, IDLE]
    done, rest = (slots.take(n).latent for n in (0, 2))
    np.testing.assert_array_equal(rest, guests[2].noise.initial(rest.shape))
    slots.step([IDLE, 30, IDLE, IDLE], 31)
    np.testing.assert_array_equal(slots.take(0).latent, done)
    np.testing.assert_array_equal(slots.take(2).latent, rest)
    np.testing.assert_array_equal(slots.take(1).latent, guests[1].alone())


def test_a_sample_that_breaks_is_marked_and_its_neighbours_and_its_follower_are_whole(make):
    def breaking(sample, timestep, context):
        eps = unet(sample, timestep, context)
        eps[timestep == 30] = np.nan
        return eps

    slots = make(2, spoil={UNET: breaking})
    guests = [visitor(n, recipes=(LEVELS,)) for n in range(2)]
    counters = [each.enter(slots, n) for n, each in enumerate(guests)]
    # The second begins below the step that breaks.
    slots.step([counters[0], 20], 40)
    assert [slots.take(n).finite.tolist() for n in range(2)] == [[False], [True]]
    guests[1].enter(slots, 0)
    slots.step([20, IDLE], 21)
    assert slots.take(0).finite.tolist() == [True]
    np.testing.assert_array_equal(slots.take(0).latent, slots.take(1).latent)


def test_arrays_may_be_changed_once_put_has_returned(make):
    slots, guest = make(1), visitor(0)
    handed = guest._replace(clean=guest.clean.copy(), mask=guest.mask.copy())
    counter, expected = handed.enter(slots, 0), guest.alone()
    handed.clean[:], handed.mask[:] = 9, 1
    counters = np.array([counter], np.int32)
    slots.step(counters, 40)
    counters[:] = 0
    np.testing.assert_array_equal(slots.take(0).latent, expected)


def test_slots_whose_step_fails_can_be_used_again(make, machine):
    slots, guest = make(2), visitor(0, recipes=(RECIPES[0],))
    counter = guest.enter(slots, 0)
    machine.fail("cuGraphLaunch", 719, call=3)
    with pytest.raises(BackendError, match="LAUNCH_FAILED"):
        slots.step([counter, IDLE], 5)
    machine.heal()
    with pytest.raises(InputError, match="slot 0 is empty: `put` a sample into it"):
        slots.take(0)
    counter = guest.enter(slots, 0)
    slots.step([counter, IDLE], 40)
    np.testing.assert_array_equal(slots.take(0).latent, guest.alone())
