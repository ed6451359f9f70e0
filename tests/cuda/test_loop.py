"""The device-resident loop on softcuda: the CPU's bits, and only launches between first and last step."""

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from mock_networks import CHANNELS, SIDE, TOKENS, WIDTH, MockBackend, denoiser, spec, unet

from stage_rt.cuda import device, plan, recording, replay
from stage_rt.cuda.loop import Loop
from stage_rt.cuda.plan import Kind
from stage_rt.errors import BackendError, DeviceMemoryError
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.sampler import sample
from stage_rt.spec import UNET

SHORT = Recipe(name="short", steps=120, ema_stop=30, only_intervals=((40, 55), (70, 80)))
AWARE_ONLY = Recipe(name="aware", steps=60, ema_stop=30, only_intervals=())


def inputs(count, seed=5):
    rng = np.random.default_rng(seed)
    clean = rng.standard_normal((count, CHANNELS, SIDE, SIDE)).astype(np.float32)
    mask = (rng.random((count, 1, SIDE, SIDE)) < 0.4).astype(np.float32)
    context = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    return clean, mask, context, PhiloxNoise(range(100, 100 + count), range(count))


@pytest.fixture
def make(machine, notify):
    """``make(spec, batch, ...)`` is a loop on the machine."""
    loops, streams = [], []

    def loop(engine, batch, adapter="a", backend=None, **options):
        backend = backend or MockBackend(machine, engine, **options)
        streams.append(device.Stream())
        loops.append(Loop(backend, engine.model, engine.model.recipe, adapter, batch, streams[-1], notify))
        return loops[-1]

    yield loop
    for each in (*loops, *streams):
        each.close()


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("count", "batch"), [(1, 1), (3, 4), (4, 4)])
def test_the_loop_is_the_cpus_bit_for_bit(make, notices, dtype, count, batch):
    clean, mask, context, noise = inputs(count)
    sampled = make(spec(SHORT, dtype=dtype), batch).run(clean, mask, context, noise)
    expected = sample(denoiser("a", context, dtype), clean, mask, recipe=SHORT, noise=noise)
    np.testing.assert_array_equal(sampled.latent, expected)
    assert sampled.finite.all()
    assert notices == []


def test_adapters_are_told_of_the_label_where_more_is_painted(make):
    clean, mask, context, noise = inputs(3)
    label = mask * (np.random.default_rng(6).random(mask.shape) < 0.5).astype(np.float32)
    sampled = make(spec(SHORT), 4).run(clean, mask, context, noise, label=label)
    expected = sample(denoiser("a", context), clean, mask, recipe=SHORT, noise=noise, label=label)
    np.testing.assert_array_equal(sampled.latent, expected)
    other = sample(denoiser("a", context), clean, mask, recipe=SHORT, noise=noise)
    assert not np.array_equal(expected, other)


@pytest.mark.parametrize("recipe", [Recipe.authors(), Recipe.paper()], ids=lambda recipe: recipe.name)
def test_a_thousand_steps_of_the_real_recipes(make, recipe):
    clean, mask, context, noise = inputs(2)
    sampled = make(spec(recipe), 2).run(clean, mask, context, noise)
    expected = sample(denoiser("a", context), clean, mask, recipe=recipe, noise=noise)
    np.testing.assert_array_equal(sampled.latent, expected)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("weight", [1.0, 2.0, 3.5])
def test_guidance_is_the_hosts_bit_for_bit(make, weight, dtype):
    clean, mask, context, noise = inputs(3)
    recipe = SHORT.guided(weight)
    sampled = make(spec(recipe, dtype=dtype), 4).run(clean, mask, context, noise)
    expected = sample(denoiser("a", context, dtype, weight), clean, mask, recipe=recipe, noise=noise)
    np.testing.assert_array_equal(sampled.latent, expected)


@pytest.mark.parametrize("steps", [12, 50, 119])
def test_a_respaced_loop_is_the_cpus_bit_for_bit_and_launches_as_many_steps(make, machine, steps):
    clean, mask, context, noise = inputs(3)
    recipe = SHORT.respaced(steps)
    loop, before = make(spec(recipe), 4), machine.calls
    sampled = loop.run(clean, mask, context, noise)
    expected = sample(denoiser("a", context), clean, mask, recipe=recipe, noise=noise)
    np.testing.assert_array_equal(sampled.latent, expected)
    assert machine.count(before)["cuGraphLaunch"] == steps


def test_between_the_first_step_and_the_last_there_are_only_replays(make, machine):
    loop = make(spec(SHORT), 4)
    before = machine.calls
    loop.run(*inputs(4))
    calls = machine.log(before)
    first, last = calls.index("cuGraphLaunch"), len(calls) - calls[::-1].index("cuGraphLaunch")
    assert set(calls[first:last]) == {"cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"}
    assert calls[first:last].count("cuGraphLaunch") == SHORT.steps
    assert not {"cuMemAlloc", "cuMemFree", "cuMemHostAlloc"} & set(calls)
    # Every wait is for a mark with a whole stretch of steps queued behind it.
    assert calls[first:last].count("cuEventSynchronize") == len(plan.stretches(SHORT.steps)) - 2


def test_the_graph_of_a_step_holds_our_kernels_once_each_and_moves_nothing(make, machine):
    before = machine.calls
    make(spec(SHORT), 4).run(*inputs(4))
    calls, captured = machine.log(before), []
    while "cuStreamBeginCapture" in calls:
        begin, end = calls.index("cuStreamBeginCapture"), calls.index("cuStreamEndCapture")
        captured.append(calls[begin + 1 : end])
        calls = calls[end + 1 :]
    assert len(captured) == 2
    for nodes in captured:
        own = sorted(node for node in nodes if node.startswith("cuLaunchKernel stage_"))
        assert own == [f"cuLaunchKernel stage_{name}" for name in ("advance", "gather_fp32", "step_fp32")]
        assert not {"cuMemAlloc", "cuMemFree"} & set(nodes)
        assert not any(node.startswith("cuMemcpy") for node in nodes)


def test_progress_is_told_once_a_stretch_and_may_stop_the_loop(make, machine):
    loop, told = make(spec(SHORT), 1), []
    loop.run(*inputs(1), told.append)
    np.testing.assert_allclose(told, [50 / 120, 100 / 120, 1])
    assert told[-1] == 1

    class EnoughError(Exception):
        pass

    def enough(share):
        raise EnoughError

    with pytest.raises(EnoughError):
        loop.run(*inputs(1), enough)
    assert machine.counts.queued == 0
    clean, mask, context, noise = inputs(1)
    again = loop.run(clean, mask, context, noise)
    np.testing.assert_array_equal(
        again.latent, sample(denoiser("a", context), clean, mask, recipe=SHORT, noise=noise)
    )


def test_a_sample_does_not_depend_on_its_neighbours_or_on_the_padding(make):
    loop = make(spec(SHORT), 4)
    clean, mask, context, noise = inputs(4)
    together = loop.run(clean, mask, context, noise).latent
    for n in range(4):
        alone = PhiloxNoise([int(noise.seeds[n])], [int(noise.samples[n])])
        part = slice(n, n + 1)
        np.testing.assert_array_equal(
            loop.run(clean[part], mask[part], context, alone).latent, together[part]
        )


def test_a_sample_that_breaks_is_marked_and_the_others_go_on(make):
    def breaking(sample, timestep, context):
        eps = unet(sample, timestep, context)
        if timestep[1:2] == 61:
            eps[1, 2, 3, 4] = np.nan
        return eps

    loop = make(spec(SHORT), 4, spoil={UNET: breaking})
    clean, mask, context, noise = inputs(3)
    sampled = loop.run(clean, mask, context, noise)
    assert sampled.finite.tolist() == [True, False, True]
    expected = sample(denoiser("a", context), clean, mask, recipe=SHORT, noise=noise)
    np.testing.assert_array_equal(sampled.latent[[0, 2]], expected[[0, 2]])
    again = loop.run(clean[[0, 2]], mask[[0, 2]], context, PhiloxNoise([100, 102], [0, 2]))
    assert again.finite.tolist() == [True, False]


def test_the_adapters_are_those_asked_for_and_unused_branches_are_not_loaded(make, machine):
    clean, mask, context, noise = inputs(2)
    sampled = make(spec(SHORT), 2, "b").run(clean, mask, context, noise)
    expected = sample(denoiser("b", context), clean, mask, recipe=SHORT, noise=noise)
    np.testing.assert_array_equal(sampled.latent, expected)
    engine = spec(AWARE_ONLY)
    backend = MockBackend(machine, engine)
    make(engine, 1, backend=backend)
    assert backend.opened == [("unet", 1), ("adapters/a.aware", 1)]


@pytest.mark.parametrize("cause", ["network", "alloc"])
def test_a_step_that_cannot_be_recorded_is_run_kernel_by_kernel(make, machine, notices, cause):
    engine = spec(SHORT)
    backend = MockBackend(machine, engine)
    if cause == "network":
        machine.break_captures("cuLaunchHostFunc")
    else:
        backend.allocates.add(UNET)
    loop = make(engine, 2, backend=backend)
    (notice,) = notices
    assert notice.startswith("the loop runs kernel by kernel, which is slower, as it could not be recorded: ")
    before = machine.calls
    clean, mask, context, noise = inputs(2)
    sampled = loop.run(clean, mask, context, noise)
    expected = sample(denoiser("a", context), clean, mask, recipe=SHORT, noise=noise)
    np.testing.assert_array_equal(sampled.latent, expected)
    assert machine.count(before)["cuGraphLaunch"] == 0
    assert machine.count(before)["cuLaunchKernel stage_step_fp32"] == SHORT.steps


def replayed(machine):
    """Whether the network that runs now is part of a graph, and not launched between single kernels."""
    launches = [call for call in machine.log() if call.startswith(("cuGraphLaunch", "cuLaunchKernel"))]
    return launches[-1] == "cuGraphLaunch"


def test_a_replay_that_gives_something_else_is_found_at_load_and_not_used(make, machine, notices):
    def moody(sample, timestep, context):
        return unet(sample, timestep, context) * np.float32(1.01 if replayed(machine) else 1)

    loop = make(spec(SHORT), 1, spoil={UNET: moody})
    (notice,) = notices
    assert notice.startswith(
        "the loop runs kernel by kernel, which is slower, as the recorded step of branch `aware` differs from "
        "running it by "
    )
    assert notice.endswith("running it by 1.0e-02 of its largest value, where 9.8e-04 is allowed")
    before = machine.calls
    loop.run(*inputs(1))
    assert machine.count(before)["cuGraphLaunch"] == 0


def test_it_is_found_whatever_the_memory_held_before(make, machine, notices, monkeypatch):
    fresh = device.Arena.__init__

    def used(self, sizes):
        fresh(self, sizes)
        for name, size in sizes.items():
            # Floats of which every bit is set are NaN.
            machine.view(self.addresses[name], (size,), np.uint8)[:] = 0xFF

    def moody(sample, timestep, context):
        return unet(sample, timestep, context) * np.float32(1.01 if replayed(machine) else 1)

    monkeypatch.setattr(device.Arena, "__init__", used)
    make(spec(SHORT), 1, spoil={UNET: moody})
    assert "the loop runs kernel by kernel" in notices[0]


def test_a_number_of_the_host_in_a_graph_is_found_at_load(make, machine, notices):
    """Nothing would be seen of it at the transition that was recorded."""
    recorded = AWARE_ONLY.coefficients[(AWARE_ONLY.steps - 1) // 2].timestep

    def frozen(sample, timestep, context):
        return unet(sample, np.int64(recorded) if replayed(machine) else timestep, context)

    make(spec(AWARE_ONLY), 1, spoil={UNET: frozen})
    assert "the loop runs kernel by kernel" in notices[0]


def test_kernels_that_add_in_no_fixed_order_are_replayed_and_told_of(make, machine, notices):
    calls = []

    def moody(sample, timestep, context):
        calls.append(timestep)
        return unet(sample, timestep, context) * (1 + np.float32(1e-6) * (len(calls) % 3))

    loop = make(spec(SHORT), 1, spoil={UNET: moody})
    assert notices
    assert all(
        notice.startswith("images of one seed are alike and not equal here, as the recorded step of branch ")
        for notice in notices
    )
    before = machine.calls
    loop.run(*inputs(1))
    assert machine.count(before)["cuGraphLaunch"] == SHORT.steps


def test_a_recording_is_entered_before_a_capture_and_left_after_it(make, machine):
    calls = []

    class Recording(MockBackend):
        @contextmanager
        def recording(self):
            assert machine.counts.capturing == 0
            before = machine.calls
            yield
            assert machine.counts.capturing == 0
            calls.append(machine.log(before))

    engine = spec(SHORT)
    make(engine, 1, backend=Recording(machine, engine))
    recorded, compared = calls[:2], calls[2:]
    for each in recorded:
        begin, end = each.index("cuStreamBeginCapture"), each.index("cuStreamEndCapture")
        assert each[:begin].count("cuLaunchHostFunc") == 2 * 2
        assert each[begin:end].count("cuLaunchHostFunc") == 2
    # What they are compared with runs in the recording's memory, and is no recording.
    assert len(compared) == 2
    for each in compared:
        assert "cuStreamBeginCapture" not in each
        assert each.count("cuLaunchHostFunc") == 2


def test_two_graphs_are_recorded_and_the_load_replays_each_once(make, machine):
    before = machine.calls
    make(spec(SHORT), 2)
    assert machine.count(before)["cuGraphLaunch"] == 2
    assert (machine.counts.graphs, machine.counts.executables) == (0, 2)
    make(spec(AWARE_ONLY), 2)
    assert (machine.counts.graphs, machine.counts.executables) == (0, 3)


def test_a_step_is_three_kernels_around_its_networks_and_one_launch_of_the_host(make, machine):
    slots = make(spec(SHORT), 2)._slots
    with device.active():
        before = machine.calls
        slots._step.enqueue(Kind.AWARE)
        run = machine.log(before)
        before = machine.calls
        slots._launches[Kind.AWARE]()
        replayed = machine.log(before)
    # A network of a mock is one function of the host.
    assert [call for call in run if call.startswith("cuLaunch")] == [
        "cuLaunchKernel stage_gather_fp32",
        *["cuLaunchHostFunc"] * 2,
        "cuLaunchKernel stage_step_fp32",
        "cuLaunchKernel stage_advance",
    ]
    assert replayed == ["cuGraphLaunch"]


def test_a_loop_that_does_not_fit_leaves_nothing_behind(make, machine):
    machine.memory = 20_000
    with pytest.raises(DeviceMemoryError, match="the memory of Soft H100 is full"):
        make(spec(SHORT), 4)
    assert machine.used == 0


@pytest.mark.parametrize("row", [0, 1, 60, 119])
def test_a_step_replayed_is_a_step_run(make, row):
    slots = make(spec(SHORT), 2)._slots
    rehearsal = recording._Rehearsal(slots._step, SHORT)
    assert set(slots._launches) == {Kind.AWARE, Kind.ONLY}
    with device.active():
        for kind, launch in slots._launches.items():
            found = rehearsal.after(kind, launch, row)
            run = rehearsal.after(kind, partial(slots._step.enqueue, kind), row)
            assert replay.difference(found, run) == 0
            assert found["counter"].tolist() == [row - 1, max(row - 1, 0) - 1]


def test_a_network_that_fails_is_a_backend_error(make, machine):
    class Broken(MockBackend):
        def network(self, graph, batch):
            raise BackendError(f"no `{graph}`")

    with pytest.raises(BackendError, match="no `unet`"):
        make(spec(SHORT), 1, backend=Broken(machine, spec(SHORT)))
