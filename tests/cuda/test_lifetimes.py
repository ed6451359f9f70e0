"""Whatever is closed, in whichever order and by whichever thread, nothing stays on the GPU (`machine` looks)."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gpu_engine import SHORT, loaded, paint
from mock_networks import MockBackend, spec

from stage_rt import loading
from stage_rt.cuda import device
from stage_rt.cuda.autoencoder import Half
from stage_rt.cuda.loop import Loop
from stage_rt.errors import DeviceMemoryError
from stage_rt.spec import VAE_DECODER


def elsewhere(work):
    """Run in another thread what is handed over, which forgets it there; raises what it raised."""
    raised = []

    def run():
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def here(work):
    work()


@pytest.mark.parametrize("threads", list(itertools.product((here, elsewhere), repeat=4)))
def test_an_engine_may_be_loaded_used_waited_for_and_closed_by_different_threads(machine, notify, threads):
    load, run, wait, close = threads
    kept = {}
    load(lambda: kept.update(engine=loaded(machine, notify)[0]))
    run(lambda: kept.update(painted=paint(kept["engine"])))
    wait(lambda: kept.update(images=kept["painted"].images))
    close(lambda: kept.pop("engine").close())
    assert np.isfinite(kept["images"]).all()
    assert not machine.counts.leaks


@pytest.mark.parametrize("close", [here, elsewhere])
def test_images_may_be_taken_after_the_engine_was_closed(machine, notify, close):
    engine, _ = loaded(machine, notify)
    painted = paint(engine)
    close(engine.close)
    assert not machine.counts.leaks
    taken = []
    elsewhere(lambda: taken.append(painted.images))
    again, _ = loaded(machine, notify)
    np.testing.assert_array_equal(taken[0], paint(again).images)
    again.close()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_engines_that_share_the_gpu_are_closed_in_any_order(machine, notify, order):
    engines = [loaded(machine, notify)[0] for _ in range(3)]
    painted = [paint(engine) for engine in engines]
    for n in order:
        engines[n].close()
    assert not machine.counts.leaks
    for each in painted[1:]:
        np.testing.assert_array_equal(each.images, painted[0].images)


def test_everything_may_be_closed_twice(machine, notify):
    engine, backend = loaded(machine, notify)
    paint(engine)
    executor = engine._executor
    executor.close()
    executor.close()
    engine.close()
    stream, event = device.Stream(), device.Event()
    memory, pinned = device.Memory(8), device.Pinned((3,), np.dtype(np.float32))
    half = Half(backend, VAE_DECODER, "latent", batch=1, capacity=1, stream=stream)
    loop = Loop(backend, backend.spec.model, SHORT, "a", 1, stream, notify)
    for each in (loop, half, memory, pinned, event, stream) * 2:
        each.close()
    assert not machine.counts.leaks


def test_an_executor_that_was_never_used_leaves_nothing(machine, notify):
    loaded(machine, notify)[0].close()
    assert not machine.counts.leaks


@pytest.mark.parametrize("room", range(500, 20_000, 1500))
def test_a_loop_that_does_not_fit_leaves_nothing(machine, notify, room):
    machine.memory = room
    backend, stream = MockBackend(machine, spec(SHORT)), device.Stream()
    with pytest.raises(DeviceMemoryError):
        Loop(backend, backend.spec.model, SHORT, "a", 4, stream, notify)
    stream.close()
    assert not machine.counts.leaks


def test_an_engine_that_does_not_load_closes_its_backend(machine, monkeypatch, tmp_path):
    backend = MockBackend(machine, spec(SHORT))
    for name, value in (("read_engine", backend.spec), ("open_backend", backend), ("read_contexts", {})):
        monkeypatch.setattr(loading, name, lambda *_, value=value: value)
    machine.memory = 5000
    with pytest.raises(DeviceMemoryError):
        loading.load(tmp_path)
    assert backend.closed


def test_engines_of_several_threads_do_not_disturb_each_other(machine):
    """One allocates and frees while another records, which a capture of thread-local mode allows."""
    alone, _ = loaded(machine, print)
    expected = paint(alone).images
    alone.close()
    notices, barrier = [], threading.Barrier(3)

    def lives():
        barrier.wait()
        for _ in range(4):
            engine, _ = loaded(machine, notices.append)
            np.testing.assert_array_equal(paint(engine).images, expected)
            engine.close()

    with ThreadPoolExecutor(3) as pool:
        for life in [pool.submit(lives) for _ in range(3)]:
            life.result()
    assert notices == []
    assert not machine.counts.leaks
