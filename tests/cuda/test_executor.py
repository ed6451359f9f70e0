"""The whole engine on softcuda: the CPU engine's images, in batches that fit, decoded beside the loop."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
from fake_engine import contents, labels, photographs
from gpu_engine import SHORT, contexts, inputs, loaded, paint
from mock_networks import CHANNELS, SCALE, SIDE, HostBackend, MockBackend, denoiser, spec, unet
from soft_gpu import Result

from stage_rt.cuda.executor import DeviceExecutor
from stage_rt.engine import Engine
from stage_rt.errors import BackendError, DeviceMemoryError, EngineError, InputError
from stage_rt.executor import HostExecutor
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.serve.driver import Driver
from stage_rt.serve.executor import SharedExecutor, Terms
from stage_rt.serve.scheduling import Priority
from stage_rt.spec import UNET, VAE_DECODER, VAE_ENCODER


@pytest.fixture
def make(machine, notify):
    engines = []

    def engine(**options):
        made, backend = loaded(machine, notify, **options)
        engines.append(made)
        return made, backend

    yield engine
    for each in engines:
        each.close()


def on_the_host():
    return Engine(spec(SHORT), HostExecutor(spec(SHORT).model, HostBackend()), contexts())


@pytest.mark.parametrize("empty", [(), (1,), (0, 1, 2)])
def test_the_images_are_the_cpus_bit_for_bit(make, notices, empty):
    engine, _ = make()
    images, masks, noise = inputs(3, empty=empty)
    painted = engine.paint(images, masks, prompt="tile+hole", noise=noise)
    expected = on_the_host().paint(images, masks, prompt="tile+hole", noise=noise)
    np.testing.assert_array_equal(painted.images, expected.images)
    assert painted.finite.all()
    assert notices == []


def test_synthesize_is_the_cpus(make):
    engine, _ = make()
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    masks = np.zeros((6, 20, 20), bool)
    masks[:, 5:12, 6:14] = True
    arguments = {"prompt": "tile+crack", "seeds": range(6)}
    np.testing.assert_array_equal(
        engine.synthesize(photos, masks, **arguments), on_the_host().synthesize(photos, masks, **arguments)
    )


def test_who_waits_for_a_pair_sees_what_the_cpu_would_show(make):
    shown = []
    for engine in (make(batch=(2,))[0], on_the_host()):
        images, masks, noise = inputs(2)
        driver, seen = Driver(), []
        terms = Terms(
            Priority.INTERACTIVE, preview=lambda stream, image, seen=seen: seen.append((stream, image))
        )
        shared = engine.over(SharedExecutor(driver, "e", engine.executor, 2, SCALE, terms))
        painted = shared.paint(images, masks, prompt="tile+hole", noise=noise).images
        driver.close()
        shown.append((painted, seen))
    (found, seen), (expected, foreseen) = shown
    np.testing.assert_array_equal(found, expected)
    assert [stream for stream, _ in seen] == [stream for stream, _ in foreseen]
    assert len(seen) >= 8
    under = np.kron(masks, np.ones((1, 1, 2, 2))) > 0
    for (stream, image), (_, other) in zip(seen, foreseen, strict=True):
        where = np.broadcast_to(under[stream], image.shape)
        np.testing.assert_allclose(image[where], other[where], atol=1e-4)


def test_another_prompt_brings_its_context_and_its_adapters(make):
    engine, backend = make()
    images, masks, noise = inputs(2)
    for prompt in ("tile+crack", "tile+hole", "tile+chip", "tile+crack"):
        painted = engine.paint(images, masks, prompt=prompt, noise=noise)
        expected = on_the_host().paint(images, masks, prompt=prompt, noise=noise)
        np.testing.assert_array_equal(painted.images, expected.images)
    # The first two share a pair of adapters, and with it the loop.
    assert backend.opened.count((UNET, 2)) == 3


def test_decoding_runs_on_while_the_next_batch_is_begun(make, machine):
    engine, _ = make()
    first = engine.paint(*inputs(2)[:2], prompt="tile+hole", noise=inputs(2)[2])
    decoding = engine._executor._beside.handle
    assert machine.counts.queued == machine.queued(decoding) > 0
    images, masks, noise = inputs(2, seed=8)
    waiting = []

    def progress(share):
        waiting.append(machine.queued(decoding) > 0)

    second = engine.paint(images, masks, prompt="tile+hole", noise=noise, progress=progress)
    assert waiting == [True, True]
    for painted, handed in ((first, inputs(2)), (second, inputs(2, seed=8))):
        expected = on_the_host().paint(*handed[:2], prompt="tile+hole", noise=handed[2])
        np.testing.assert_array_equal(painted.images, expected.images)


def test_results_may_be_taken_in_another_thread(make):
    engine, _ = make()
    images, masks, noise = inputs(2)
    painted, taken = engine.paint(images, masks, prompt="tile+hole", noise=noise), []
    thread = threading.Thread(target=lambda: taken.append(painted.images))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(
        taken[0], on_the_host().paint(images, masks, prompt="tile+hole", noise=noise).images
    )


def test_a_run_on_the_gpu_has_the_bytes_of_one_on_the_cpu(make, tmp_path):
    engine, _ = make()
    job = Job(
        normals=photographs(tmp_path / "normals", 5),
        masks=labels(tmp_path / "masks", 4),
        prompt="tile+hole",
        count=10,
        seed=7,
        composite=True,
        batch=4,
    )
    told = []
    fill(engine, job, tmp_path / "gpu", progress=told.append)
    fill(on_the_host(), job, tmp_path / "cpu")
    assert contents(tmp_path / "gpu") == contents(tmp_path / "cpu")
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_full_memory_at_load_halves_the_batch_and_says_so(make, machine, notices):
    engine, backend = make(scratch=100_000)
    machine.memory = machine.used + 320_000
    images, masks, noise = inputs(4)
    shares = []
    painted = engine.paint(images, masks, prompt="tile+hole", noise=noise, progress=shares.append)
    expected = on_the_host().paint(images, masks, prompt="tile+hole", noise=noise)
    np.testing.assert_array_equal(painted.images, expected.images)
    (notice,) = notices
    assert notice.startswith("the memory of Soft H100 is full (cuMemAlloc failed: out of memory")
    assert notice.endswith("), so a batch of 4 is done in batches of 2")
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert (UNET, 2) in backend.opened
    engine.paint(images, masks, prompt="tile+hole", noise=noise)
    assert len(notices) == 1


class Pooling(MockBackend):
    """As PyTorch does, its UNet fills a pool while steps are recorded, which stays until it is forgotten."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.pool, self.inside, self.forgotten = [], False, 0

    def network(self, graph, batch):
        network = super().network(graph, batch)
        if graph == UNET:
            enqueue = network.enqueue

            def filling(stream):
                while self.inside and len(self.pool) < 20 * batch:
                    self.pool.append(self.machine.allocate(10_000))
                enqueue(stream)

            network.enqueue = filling
        return network

    @contextmanager
    def recording(self):
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def forget_recorded(self):
        self.forgotten += bool(self.pool)
        while self.pool:
            self.machine.free(self.pool.pop())


def test_what_a_batch_that_did_not_fit_has_recorded_is_given_back_before_half_of_it_is_tried(
    make, machine, notices
):
    engine, backend = make(backend=Pooling)
    images, masks, noise = inputs(4)
    # The loop of one fits, that of two fits alone, and that of four fills the memory up to the last of its pool.
    machine.memory = machine.used + 700_000
    one = [each[:1] for each in (images, masks)]
    engine.paint(*one, prompt="tile+hole", noise=noise.select(slice(0, 1)))
    assert (len(backend.pool), backend.forgotten) == (20, 0)
    painted = engine.paint(images, masks, prompt="tile+hole", noise=noise)
    expected = on_the_host().paint(images, masks, prompt="tile+hole", noise=noise)
    np.testing.assert_array_equal(painted.images, expected.images)
    (notice,) = notices
    assert notice.endswith("so a batch of 4 is done in batches of 2")
    assert (len(backend.pool), backend.forgotten) == (40, 1)


def test_what_was_recorded_stays_while_slots_need_it(make):
    engine, backend = make(backend=Pooling)
    first, second = (engine.executor.slots("a", 2) for _ in range(2))
    paint(engine)
    engine.executor.slots("a", 2).close()
    assert backend.forgotten == 0
    first.close()
    second.close()
    paint(engine, 1)
    engine.executor.slots("a", 2).close()
    assert backend.forgotten == 1


def test_a_full_memory_in_the_loop_halves_the_batch_and_starts_the_part_again(make, machine, notices):
    engine, backend = make()
    images, masks, noise = inputs(4)
    calls = []

    class Filling:
        """The UNet of batch 4 is out of memory at its eighth launch, when nothing is recorded any more."""

        def __init__(self, network):
            self._network = network

        def __getattr__(self, name):
            return getattr(self._network, name)

        def enqueue(self, stream):
            calls.append(stream)
            if len(calls) == 30:
                raise DeviceMemoryError("the memory of Soft H100 is full")
            self._network.enqueue(stream)

    opened = backend.network
    backend.network = lambda graph, size: (
        Filling(opened(graph, size)) if (graph, size) == (UNET, 4) else opened(graph, size)
    )
    machine.break_captures("cuLaunchHostFunc")
    painted = engine.paint(images, masks, prompt="tile+hole", noise=noise)
    expected = on_the_host().paint(images, masks, prompt="tile+hole", noise=noise)
    np.testing.assert_array_equal(painted.images, expected.images)
    assert "the memory of Soft H100 is full, so a batch of 4 is done in batches of 2" in notices
    assert len(calls) == 30


class Greedy(MockBackend):
    """As PyTorch's, its encoder and decoder take memory while they are launched, and only then."""

    needs, graph = 50_000, VAE_DECODER

    def network(self, graph, batch):
        network = super().network(graph, batch)
        if graph == self.graph:
            enqueue = network.enqueue

            def taking(stream):
                self.machine.free(self.machine.allocate(self.needs))
                enqueue(stream)

            network.enqueue = taking
        return network


@pytest.mark.parametrize("graph", [VAE_ENCODER, VAE_DECODER])
def test_a_half_of_the_autoencoder_that_does_not_fit_beside_the_loop_halves_the_loop(
    make, machine, notices, monkeypatch, graph
):
    monkeypatch.setattr(Greedy, "graph", graph)
    engine, backend = make(scratch=40_000, backend=Greedy)
    images, masks, noise = inputs(4)
    paint(engine, 4)
    # Beside the loop of four there is no room for it, beside that of two there is.
    machine.memory = machine.used + 40_000
    expected = on_the_host().paint(images, masks, prompt="tile+hole", noise=noise)
    for _ in range(2):
        painted = engine.paint(images, masks, prompt="tile+hole", noise=noise)
        np.testing.assert_array_equal(painted.images, expected.images)
    (notice,) = notices
    assert notice.startswith("the memory of Soft H100 is full")
    assert notice.endswith("so a batch of 4 is done in batches of 2")
    assert (UNET, 2) in backend.opened


def test_a_half_of_the_autoencoder_that_never_fits_is_an_error_with_a_way_out(make, machine, notices):
    engine, _ = make(scratch=40_000, backend=Greedy)
    machine.memory = machine.used + 40_000
    latent = np.zeros((4, CHANNELS, SIDE, SIDE), np.float32)
    with pytest.raises(DeviceMemoryError, match=r"is full.*: end other programs on the GPU"):
        engine.decode(latent)
    machine.memory = 2**30
    paint(engine, 4)
    machine.fail("cuMemAlloc", Result.OUT_OF_MEMORY, call=0)
    with pytest.raises(DeviceMemoryError, match=r"is full.*: end other programs on the GPU"):
        engine.decode(latent)
    machine.heal()
    assert [notice.rpartition(" of ")[2] for notice in notices] == ["2"]
    np.testing.assert_array_equal(engine.decode(latent), on_the_host().decode(latent))


def test_a_memory_too_small_for_any_batch_is_an_error_with_a_way_out(make, machine):
    engine, _ = make(batch=(4,), scratch=100_000)
    machine.memory = machine.used + 100_000
    images, masks, noise = inputs(4)
    with pytest.raises(
        DeviceMemoryError, match=r"is full.*: end other programs on the GPU or build the engine"
    ):
        engine.paint(images, masks, prompt="tile+hole", noise=noise)
    machine.memory = 2**30


@pytest.mark.parametrize("room", [1000, 5000, 40_000])
def test_a_memory_too_small_for_the_autoencoder_is_such_an_error(machine, notify, room):
    machine.memory = room
    backend = MockBackend(machine, spec(SHORT))
    with pytest.raises(
        DeviceMemoryError, match=r"is full.*: end other programs on the GPU or build the engine"
    ):
        DeviceExecutor(backend.spec, backend, notify)
    assert machine.used == 0


def test_a_sample_that_breaks_is_marked_and_the_others_are_painted(make):
    def breaking(sample, timestep, context):
        eps = unet(sample, timestep, context)
        eps[0, 0, 0, 0] = np.inf if timestep[0] == 40 else eps[0, 0, 0, 0]
        return eps

    engine, _ = make(spoil={UNET: breaking})
    images, masks, noise = inputs(3)
    painted = engine.paint(images, masks, prompt="tile+hole", noise=noise)
    expected = on_the_host().paint(images, masks, prompt="tile+hole", noise=noise)
    assert painted.finite.tolist() == [False, True, True]
    np.testing.assert_array_equal(painted.images[1:], expected.images[1:])


def test_more_than_the_largest_batch_is_refused(make):
    engine, _ = make()
    images, masks, noise = inputs(5)
    with pytest.raises(InputError, match="a batch of 5 is more than the engine's largest, 4"):
        engine.paint(images, masks, prompt="tile+hole", noise=noise)


def test_encode_and_decode_alone(make):
    engine, _ = make()
    images, _, noise = inputs(3)
    latent = engine.encode(images, noise.encode((3, CHANNELS, SIDE, SIDE)))
    expected = on_the_host().encode(images, noise.encode((3, CHANNELS, SIDE, SIDE)))
    np.testing.assert_array_equal(latent, expected)
    np.testing.assert_array_equal(engine.decode(latent), on_the_host().decode(latent))


def test_the_denoiser_of_the_mock_is_that_of_the_engine():
    context = contexts()["tile+hole"]
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, SIDE, SIDE)).astype(np.float32)
    mask = np.ones((2, 1, SIDE, SIDE), np.float32)
    from stage_rt.recipe import Branch

    engine = on_the_host()
    denoise = engine._executor.denoiser(engine.condition("tile+hole"))
    for branch in Branch:
        np.testing.assert_array_equal(
            denoise(x, 50, mask, branch), denoiser("a", context)(x, 50, mask, branch)
        )


@pytest.mark.parametrize("steps", [20, 37, 100])
def test_fewer_steps_are_the_cpus_bit_for_bit_and_make_a_loop_of_their_own(make, steps):
    engine, backend = make()
    images, masks, noise = inputs(3)
    for each in (100, steps):
        painted, expected = (
            which.paint(images, masks, prompt="tile+hole", noise=noise, steps=each)
            for which in (engine, on_the_host())
        )
        np.testing.assert_array_equal(painted.images, expected.images)
    assert backend.opened.count((UNET, 4)) == (1 if steps == 100 else 2)


def test_an_engine_closed_twice_gives_its_memory_back_once_and_says_it_is_closed(machine, notify):
    backend = MockBackend(machine, spec(SHORT))
    engine = Engine(backend.spec, DeviceExecutor(backend.spec, backend, notify), contexts())
    images, masks, noise = inputs(2)
    engine.paint(images, masks, prompt="tile+hole", noise=noise)
    engine.close()
    engine.close()
    assert machine.used == 0
    assert backend.closed
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.paint(images, masks, prompt="tile+hole", noise=noise)


@pytest.mark.parametrize("prompt", ["tile+hole", "tile+bare"])
@pytest.mark.parametrize(("guidance", "prompt_guidance"), [(1, 1), (2.5, 1), (1, 3), (2.5, 0)])
def test_both_guidances_and_prompts_without_adapters_stay_in_the_loop(
    make, machine, notices, prompt, guidance, prompt_guidance
):
    engine, backend = make()
    images, masks, noise = inputs(3)
    recipe = SHORT.guided(guidance).contrasted(prompt_guidance)
    before = machine.calls
    painted, expected = (
        which.paint(images, masks, prompt=prompt, noise=noise, recipe=recipe, steps=60)
        for which in (engine, on_the_host())
    )
    np.testing.assert_array_equal(painted.images, expected.images)
    launches = machine.count(before)
    adapters = sum(graph.startswith("adapters/") for graph, _ in backend.opened)
    kinds = max(adapters, 1)
    # Each kind is compared once with running it, which the runs before a recording are beside.
    assert launches["cuGraphLaunch"] == 60 + kinds
    assert launches["cuLaunchKernel stage_contrast_fp32"] == (prompt_guidance != 1) * 4 * kinds
    assert (backend.opened.count((UNET, 4)), adapters) == (
        1 + (prompt_guidance != 1),
        0 if prompt == "tile+bare" else 2,
    )
    assert notices == []


@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-2m-sde", "unipc"])
def test_a_solver_with_a_history_is_driven_from_the_host(make, machine, solver):
    """As the other samplers are; this backend's networks can only be launched, and say so."""
    engine, _ = make()
    images, masks, noise = inputs(3)
    with pytest.raises(BackendError, match="`unet` was run from the host"):
        engine.paint(images, masks, prompt="tile+hole", noise=noise, recipe=SHORT.solved(solver), steps=30)
    assert not engine._executor._loops


def test_slots_are_the_executors_to_close(make, machine):
    engine, _ = make()
    images, masks, noise = inputs(4)
    engine.paint(images, masks, prompt="tile+hole", noise=noise)
    used = machine.used
    slots = [engine.slots("tile+hole", size) for size in (1, 4)]
    assert machine.used != used
    slots[0].close()
    painted = engine.paint(images, masks, prompt="tile+hole", noise=noise)
    expected = on_the_host().paint(images, masks, prompt="tile+hole", noise=noise)
    np.testing.assert_array_equal(painted.images, expected.images)
    engine.close()
    assert machine.used == 0
    slots[1].close()


def test_a_memory_too_small_for_slots_is_an_error_that_leaves_nothing(make, machine):
    engine, _ = make()
    used = machine.used
    machine.memory = used + 20_000
    with pytest.raises(
        DeviceMemoryError, match=r"is full.*: end other programs on the GPU or build the engine"
    ):
        engine.slots("tile+hole", 4)
    assert machine.used == used
    machine.memory = 2**30


def test_slots_have_one_of_the_engines_sizes(make):
    engine, _ = make()
    with pytest.raises(InputError, match="the engine was not built for a batch of 3: use one of 1, 2, 4"):
        engine.slots("tile+hole", 3)
