"""The loop on a real GPU, with networks that copy: kernels, graphs, events and memory, and no inference library."""

import numpy as np
import pytest
from coming_and_going import LEVELS, served, visitor
from mock_networks import CHANNELS, SIDE, TOKENS, WIDTH, MockBackend, spec

from stage_rt.cuda import device, plan
from stage_rt.cuda.loop import Loop
from stage_rt.cuda.slots import DeviceSlots
from stage_rt.cuda.step import fatbin
from stage_rt.errors import StageError
from stage_rt.networks import narrow, widen
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.sampler import sample

SHORT = Recipe(name="short", steps=120, ema_stop=30, only_intervals=((40, 55), (70, 80)))


def missing():
    try:
        device.current()
        fatbin()
    except StageError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def gpu():
    if reason := missing():
        pytest.skip(reason)


class Copies:
    """A network whose output is its first input."""

    scratch = 0

    def __init__(self, tensors, output, stream):
        self.tensors, self.output = tensors, output
        self._stream = stream

    def bind(self, addresses, scratch):
        first = next(iter(self.tensors))
        self._from, self._to = addresses[first], addresses[self.output]
        dtype = self.tensors[first].dtype
        self._size = narrow(np.zeros(self.tensors[first].shape, np.float32), dtype).nbytes

    def enqueue(self, stream):
        assert stream == self._stream.handle
        with device.active() as cuda:
            cuda.memcpy_dtod_async(self._to, self._from, self._size, self._stream._stream)

    def close(self):
        pass


class CopyingBackend(MockBackend):
    def __init__(self, engine, stream):
        super().__init__(None, engine)
        self._stream = stream

    def network(self, graph, batch):
        _, tensors, output = self.described(graph, batch)
        return Copies(tensors, output, self._stream)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("count", "batch"), [(1, 1), (3, 4), (32, 32)])
def test_the_loop_is_the_cpus_and_is_replayed(dtype, count, batch):
    rng = np.random.default_rng(5)
    clean = rng.standard_normal((count, CHANNELS, SIDE, SIDE)).astype(np.float32)
    mask = (rng.random((count, 1, SIDE, SIDE)) < 0.4).astype(np.float32)
    context = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    noise = PhiloxNoise(range(100, 100 + count), range(count))
    engine, stream, notices, told = spec(SHORT, dtype=dtype), device.Stream(), [], []
    loop = Loop(
        CopyingBackend(engine, stream), engine.model, engine.model.recipe, "a", batch, stream, notices.append
    )
    found = loop.run(clean, mask, context, noise, told.append)
    again = loop.run(clean, mask, context, noise)
    loop.close()
    stream.close()

    def denoise(x, i, handed, branch):
        return widen(narrow(x, dtype), dtype)

    expected = sample(denoise, clean, mask, recipe=SHORT, noise=noise)
    assert notices == []
    np.testing.assert_allclose(told, [50 / 120, 100 / 120, 1])
    assert found.finite.all()
    np.testing.assert_allclose(found.latent, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again.latent, found.latent)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("size", [1, 5])
def test_samples_at_steps_of_their_own_are_what_they_are_alone(dtype, size):
    engine, stream, notices = spec(LEVELS, dtype=dtype), device.Stream(), []
    kinds = plan.every_kind(size, guided=True, surface=True)
    backend = CopyingBackend(engine, stream)
    slots = DeviceSlots(backend, engine.model, LEVELS, "a", size, kinds, stream, notices.append)
    visitors = [visitor(n) for n in range(2 * size + 3)]
    found = served(slots, visitors, seed=size)
    slots.close()
    stream.close()

    def denoise(x, i, handed, branch):
        return widen(narrow(x, dtype), dtype)

    assert notices == []
    for each, latent in zip(visitors, found, strict=True):
        expected = sample(denoise, each.clean, each.mask, recipe=each.recipe, noise=each.noise)
        np.testing.assert_allclose(latent, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_memory_and_streams_are_given_back():
    with device.active() as cuda:
        before = cuda.mem_get_info()[0]
        for _ in range(20):
            memory, stream = device.Memory(2**28), device.Stream()
            memory.close()
            stream.close()
        assert cuda.mem_get_info()[0] > before - 2**28
