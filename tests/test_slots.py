"""Samples of one batch at steps of their own, on the host: each is what it is alone."""

import numpy as np
import pytest
from coming_and_going import LEVELS, served, visitor
from mock_networks import CHANNELS, SIDE, HostBackend, denoiser, spec, unet

import stage_rt
from stage_rt.errors import BackendError, EngineError, InputError
from stage_rt.executor import HostExecutor
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import silent
from stage_rt.recipe import Recipe
from stage_rt.slots import IDLE
from stage_rt.spec import UNET

AWARE, ONLY = "adapters/a.aware", "adapters/a.only"


def opened(size, adapter="a", backend=None):
    return HostExecutor(spec(LEVELS).model, backend or HostBackend()).slots(adapter, size)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_whoever_comes_and_goes_has_the_bits_it_has_alone(size):
    visitors = [visitor(n) for n in range(3 * size + 3)]
    for each, latent in zip(visitors, served(opened(size), visitors, seed=size), strict=True):
        np.testing.assert_array_equal(latent, each.alone())


def test_prompts_without_adapters_come_and_go_too():
    visitors = [visitor(n, None) for n in range(9)]
    for each, latent in zip(visitors, served(opened(2, None), visitors, seed=1), strict=True):
        np.testing.assert_array_equal(latent, each.alone())


@pytest.mark.parametrize(
    ("counters", "contrasted", "expected"),
    [
        ([39, 35], False, [UNET, AWARE]),
        ([28, 27], False, [UNET, ONLY]),
        ([29, 28], False, [UNET, AWARE, ONLY]),
        ([IDLE, 28], False, [UNET, ONLY]),
        ([IDLE, IDLE], False, []),
        ([29, IDLE], True, [UNET, AWARE]),
        ([IDLE, 29], True, [UNET, UNET, AWARE]),
        ([29, 12], True, [UNET, UNET, AWARE, ONLY]),
    ],
)
def test_networks_run_where_a_sample_needs_them_and_not_else(counters, contrasted, expected):
    backend = HostBackend()
    slots = opened(2, backend=backend)
    visitor(0, recipes=(LEVELS,)).enter(slots, 0)
    visitor(1, recipes=(LEVELS.contrasted(2) if contrasted else LEVELS,)).enter(slots, 1)
    slots.step(counters)
    assert backend.calls == expected


def test_a_sample_at_rest_stays_as_it_is_and_one_that_ends_stops():
    slots, guests = opened(3), [visitor(n, recipes=(LEVELS,)) for n in range(2)]
    assert [each.enter(slots, n) for n, each in enumerate(guests)] == [39, 39]
    assert slots.step([2, IDLE, IDLE], 9).tolist() == [IDLE] * 3
    done, rest = (slots.take(n).latent for n in range(2))
    np.testing.assert_array_equal(rest, guests[1].noise.initial(rest.shape))
    assert slots.step([IDLE, 39, IDLE], 40).tolist() == [IDLE] * 3
    np.testing.assert_array_equal(slots.take(0).latent, done)
    np.testing.assert_array_equal(slots.take(1).latent, guests[1].alone())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_breaks_is_marked_and_its_neighbours_and_its_follower_are_whole(value):
    class Breaking(HostBackend):
        def run(self, graph, **inputs):
            with np.errstate(invalid="ignore"):
                output = super().run(graph, **inputs)
            if graph == UNET:
                output[inputs["timestep"] == 30] = value
            return output

    slots, guests = opened(2, backend=Breaking()), [visitor(n, recipes=(LEVELS,)) for n in range(2)]
    for n, each in enumerate(guests):
        each.enter(slots, n)
    slots.step([39, 20], 40)
    assert [slots.take(n).finite.tolist() for n in range(2)] == [[False], [True]]
    guests[1].enter(slots, 0)
    slots.step([20, IDLE], 21)
    assert slots.take(0).finite.tolist() == [True]
    np.testing.assert_array_equal(slots.take(0).latent, slots.take(1).latent)


def test_after_a_network_failed_all_slots_are_empty():
    class Failing(HostBackend):
        def run(self, graph, **inputs):
            if len(self.calls) == 5:
                raise BackendError("the library failed")
            return super().run(graph, **inputs)

    slots, guest = opened(2, backend=Failing()), visitor(0, recipes=(LEVELS,))
    guest.enter(slots, 0)
    with pytest.raises(BackendError, match="the library failed"):
        slots.step([39, IDLE], 9)
    with pytest.raises(InputError, match="slot 0 is empty"):
        slots.take(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot": 2}, "there is no slot 2: they are 0 to 1"),
        ({"slot": -1}, "there is no slot -1"),
        ({"clean": np.zeros((2, CHANNELS, SIDE, SIDE), np.float32)}, "`mask` must have shape"),
        ({"mask": np.full((1, 1, SIDE, SIDE), 0.5, np.float32)}, "`mask` must hold only 0 and 1"),
        ({"clean": np.zeros((1, 3, SIDE, SIDE), np.float32)}, r"`clean` must be float32 of shape \(1, 4,"),
        ({"state": np.zeros((1, CHANNELS, SIDE, SIDE))}, "`state` must be float32 .*, got float64"),
        ({"noise": PhiloxNoise([1, 2])}, "`noise` must be the stream of one sample, not of 2"),
        ({"adapter": "b"}, "slots for adapters `a` were handed a prompt of `b`"),
        ({"recipe": Recipe.authors()}, "the recipe is for 1000 steps, this model has 40"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(change, message):
    guest, slots = visitor(0, recipes=(LEVELS,)), opened(2)
    condition = guest.condition._replace(adapter=change.pop("adapter", "a"))
    arguments = {"clean": guest.clean, "mask": guest.mask, "recipe": LEVELS, "noise": guest.noise} | change
    slot = arguments.pop("slot", 0)
    with pytest.raises(InputError, match=message):
        slots.put(slot, condition, arguments.pop("clean"), arguments.pop("mask"), **arguments)


@pytest.mark.parametrize(
    ("counters", "message"),
    [
        ([39], r"`counters` must be one a slot, 2, got shape \(1,\)"),
        ([40, IDLE], "slot 0 has no transition 40: its sample has 40"),
        ([-2, IDLE], "slot 0 has no transition -2"),
        ([39, 0], "slot 1 has no transition 0: its sample has 0"),
    ],
)
def test_counters_that_are_nobodys_are_refused(counters, message):
    slots = opened(2)
    visitor(0, recipes=(LEVELS,)).enter(slots, 0)
    with pytest.raises(InputError, match=message):
        slots.step(counters)
    with pytest.raises(InputError, match="slot 1 is empty: `put` a sample into it"):
        slots.take(1)


@pytest.fixture(scope="module")
def engine(engine_folder):
    """Real networks in ONNX Runtime, ten steps."""
    with_graphs = stage_rt.load(engine_folder)
    yield with_graphs
    with_graphs.close()


def guests_of(engine, count):
    model, rng = engine.spec.model, np.random.default_rng(4)
    shape = (1, model.latent_channels, model.latent_size, model.latent_size)
    made = []
    for n in range(count):
        clean = rng.standard_normal(shape).astype(np.float32)
        mask = (rng.random((1, 1, *shape[2:])) < 0.4).astype(np.float32)
        made.append((engine.condition(engine.prompts[n % 2]), clean, mask, PhiloxNoise([n], [n])))
    return made


def test_real_networks_in_lockstep_give_the_executors_bits(engine):
    recipe, slots = engine.spec.model.recipe, engine.slots(engine.prompts[0], 4)
    guests = guests_of(engine, 4)
    condition = guests[0][0]
    counters = [
        slots.put(n, condition, clean, mask, recipe=recipe, noise=noise)
        for n, (_, clean, mask, noise) in enumerate(guests)
    ]
    slots.step(counters, 10)
    clean, mask = (np.concatenate([guest[k] for guest in guests]) for k in (1, 2))
    expected = engine._executor.sample(
        condition,
        clean,
        mask,
        sampler="stage",
        recipe=recipe,
        steps=10,
        noise=PhiloxNoise(range(4), range(4)),
        progress=silent,
    )
    np.testing.assert_array_equal(np.concatenate([slots.take(n).latent for n in range(4)]), expected)


@pytest.mark.parametrize("beside", [[], [0], [3, 7, 9], [8, 1, 4]])
def test_a_samples_bits_do_not_depend_on_where_its_neighbours_stand(engine, beside):
    """At a size that stays, of networks that are called with all slots."""
    recipe, guests = engine.spec.model.recipe, guests_of(engine, 4)
    found = []
    for standing in ([9, 9, 9], beside):
        slots = engine.slots(engine.prompts[0], 4)
        for n, (condition, clean, mask, noise) in enumerate(guests):
            slots.put(n, condition, clean, mask, recipe=recipe, noise=noise)
        counters = np.array([9, *standing, *[IDLE] * (3 - len(standing))], np.int32)
        while counters[0] != IDLE:
            counters = slots.step(counters)
            # Whoever ends makes room for the next.
            counters[1:][counters[1:] == IDLE] = 9 if len(standing) == 3 else IDLE
        found.append(slots.take(0).latent)
    np.testing.assert_array_equal(*found)


def test_slots_are_checked_by_the_engine(engine_folder):
    engine = stage_rt.load(engine_folder)
    with pytest.raises(InputError, match="the engine was not built for a batch of 3: use one of 1, 4"):
        engine.slots(engine.prompts[0], 3)
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.slots(engine.prompts[0], 4)


def test_the_closed_forms_know_a_timestep_a_sample():
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, SIDE, SIDE)).astype(np.float32)
    text = np.ones((2, 3, 5), np.float32)
    both = unet(x, np.array([3, 30]), text)
    for n, i in enumerate((3, 30)):
        np.testing.assert_array_equal(both[n], unet(x[n : n + 1], np.int64(i), text[:1])[0])


def test_what_is_foreseen_is_the_estimate_of_the_step_and_in_the_end_the_result():
    slots, guests = opened(2), [visitor(n, recipes=(LEVELS,)) for n in range(2)]
    counters = [each.enter(slots, n) for n, each in enumerate(guests)]
    assert slots.foreseen(0) is None
    slots.step([counters[0], IDLE])
    assert slots.foreseen(1) is None
    first = slots.foreseen(0)
    row, start = LEVELS.coefficients[39], guests[0].noise.initial(first.shape)
    denoise = denoiser("a", guests[0].condition.context, guidance=LEVELS.guidance)
    soft = guests[0].mask + np.float32(row.mix) * (1 - guests[0].mask)
    eps = denoise(start, row.timestep, soft, LEVELS.branch(row.timestep))
    expected = start * np.float32(row.sqrt_recip_abar) - eps * np.float32(row.sqrt_recipm1_abar)
    np.testing.assert_allclose(first, soft * expected + (1 - soft) * guests[0].clean, atol=2e-4)
    slots.step([counters[0] - 1, IDLE], 39)
    last = slots.foreseen(0) - slots.take(0).latent
    np.testing.assert_allclose(last * guests[0].mask, 0, atol=1e-5)
    guests[1].enter(slots, 0)
    assert slots.foreseen(0) is None
    with pytest.raises(InputError, match="there is no slot 2"):
        slots.foreseen(2)
