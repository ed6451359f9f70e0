"""A whole engine of closed-form networks on softcuda, and inputs for it.

Run as a script it is a process that uses such an engine and ends in a way of its own: ``python gpu_engine.py WAY``.
"""

import os
import sys
import threading
import time

import numpy as np
from mock_networks import SIDE, SURFACE, TOKENS, WIDTH, MockBackend, spec
from soft_gpu import SoftGpu

from stage_rt.cuda.executor import DeviceExecutor
from stage_rt.engine import Engine
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe

SHORT = Recipe(name="short", steps=100, ema_stop=30, only_intervals=((40, 55),))
PROMPT = "tile+hole"


def contexts():
    rng = np.random.default_rng(3)
    names = ("tile+crack", "tile+hole", "tile+chip", "tile+bare", SURFACE)
    return {name: rng.standard_normal((TOKENS, WIDTH)).astype(np.float32) for name in names}


def inputs(count, *, empty=(), seed=1):
    """Images, masks and noise of a batch."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (count, 3, 2 * SIDE, 2 * SIDE)).astype(np.float32)
    masks = (rng.random((count, 1, SIDE, SIDE)) < 0.4).astype(np.float32)
    masks[list(empty)] = 0
    return images, masks, PhiloxNoise([9] * count, range(count))


def loaded(machine, notify, *, recipe=SHORT, batch=(1, 2, 4), backend=MockBackend, **options):
    """An engine and its backend."""
    backend = backend(machine, spec(recipe, batch=batch), **options)
    return Engine(backend.spec, DeviceExecutor(backend.spec, backend, notify), contexts()), backend


def in_worker(notify, *, meeting, count):
    """The engine of a worker process, which tells the device that it was given.

    It is loaded when ``count`` workers have told theirs, so that none paints everything before another is heard.
    """
    device = os.environ["CUDA_VISIBLE_DEVICES"]
    notify(f"on {device}")
    (meeting / device).touch()
    deadline = time.monotonic() + 60
    while len(list(meeting.iterdir())) < count:
        assert time.monotonic() < deadline, "the other workers did not start"
        time.sleep(0.01)
    return loaded(SoftGpu(), notify)[0]


def paint(engine, count=2, **options):
    """Paint a batch; the device may still be decoding it."""
    images, masks, noise = inputs(count)
    return engine.paint(images, masks, prompt=PROMPT, noise=noise, **options)


def _end(way: str) -> None:
    engine, _ = loaded(SoftGpu(), print)
    if way == "daemon":
        begun = threading.Event()

        def forever():
            while True:
                paint(engine, progress=lambda share: begun.set())

        threading.Thread(target=forever, daemon=True).start()
        assert begun.wait(60)
        time.sleep(0.1)
        return
    painted = paint(engine)
    if way == "closed":
        assert np.isfinite(painted.images).all()
        engine.close()
    if way == "thread":
        thread = threading.Thread(target=lambda: (painted.images, engine.close()))
        thread.start()
        thread.join()


if __name__ == "__main__":
    _end(sys.argv[1])
