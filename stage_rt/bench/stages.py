"""An engine at work on pairs of its own making, as a run paints them, with every part timed."""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.bench.rates import rates
from stage_rt.bench.result import Result, Row, Spread, Stage
from stage_rt.engine import Engine
from stage_rt.errors import InputError
from stage_rt.executor import Executor, Finished, HostExecutor, Painted
from stage_rt.folders import read_contexts, read_engine
from stage_rt.loading import Notify, load, open_backend
from stage_rt.machine import cpu_name
from stage_rt.method import Method
from stage_rt.networks import Backend
from stage_rt.progress import Progress, portion, silent
from stage_rt.run.job import Job, resolve
from stage_rt.run.sample import Sample
from stage_rt.run.workers import Batch, finish, paint
from stage_rt.run.writer import pair_paths, write_pair
from stage_rt.spec import PROMPTS_FILE, UNET, VAE_DECODER, VAE_ENCODER, EngineSpec
from stage_rt.strokes import divide

STEPS, ROUNDS = 50, 5
"""Network calls a pair that are measured, and batches of each size."""

_STAGE_OF: dict[str, Stage] = {UNET: "unet", VAE_ENCODER: "encode", VAE_DECODER: "decode"}


class Clock:
    """Seconds of calls: in ``seconds`` all by stage, until they are cleared, and the first two of every name."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = defaultdict(float)
        self._calls: dict[str, list[float]] = defaultdict(list)

    @property
    def loading(self) -> float:
        """What the first call of every name, which reads or compiles what it needs, took more than its second one."""
        pairs = (calls for calls in self._calls.values() if len(calls) == 2)
        return sum(max(first - second, 0.0) for first, second in pairs)

    @contextmanager
    def timing(self, name: str, stage: Stage | None) -> Iterator[None]:
        """A block that is a call of ``name``, and takes the time of a stage or of none."""
        start = time.perf_counter()
        yield
        taken = time.perf_counter() - start
        if stage is not None:
            self.seconds[stage] += taken
        if len(self._calls[name]) < 2:
            self._calls[name].append(taken)


class Timed(Clock):
    """A backend that adds up the seconds its graphs take; ``rest`` is what else paints."""

    rest: Stage = "step"

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """See `stage_rt.networks.Backend`."""
        with self.timing(graph, _STAGE_OF.get(graph, "adapter")):
            return self._backend.run(graph, **inputs)

    def close(self) -> None:
        """See `stage_rt.networks.Backend`."""
        self._backend.close()


class TimedHalves(Clock):
    """An executor that adds up the seconds of encoder and decoder, each waited for.

    They take as long whatever the steps are. ``rest`` is a loop whose parts cannot be told apart, as the device's,
    which reads its networks and records its steps the first time.
    """

    rest: Stage = "paint"

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self.slots, self.close = executor.slots, executor.close
        self._executor = executor

    def encode(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `stage_rt.executor.Executor`."""
        with self.timing("encode", "encode"):
            return self._executor.encode(images)

    def sample(self, *arguments: Any, **options: Any) -> NDArray[np.float32]:
        """See `stage_rt.executor.Executor`."""
        with self.timing("sample", None):
            return self._executor.sample(*arguments, **options)

    def decode(self, latent: NDArray[np.float32]) -> Painted:
        """See `stage_rt.executor.Executor`."""
        with self.timing("decode", "decode"):
            painted = self._executor.decode(latent)
            return Finished(painted.images, painted.finite)


def bench(
    folder: Path,
    *,
    batches: list[int] | None = None,
    steps: int | None = None,
    rounds: int = ROUNDS,
    notify: Notify = lambda notice: None,
    progress: Progress = silent,
) -> Result:
    """Measure the engine in ``folder``.

    Args:
        folder: engine folder.
        batches: sizes; powers of two up to the engine's largest, and that one, if None.
        steps: network calls a pair; `STEPS`, or the fewest the recipe can do with, if None.
        rounds: timed batches of each size, after one that warms up.
        notify: as `stage_rt.loading.load`.
        progress: told the share of the batches that are done.

    Raises:
        InputError: a batch is not from 1 to the engine's largest, or the recipe cannot take that many steps.
        EngineError, DeviceError, MissingExtraError, BackendError: as `stage_rt.loading.load` and painting.
    """
    spec = read_engine(folder)
    largest = max(spec.batch)
    sizes = sorted(set(_powers(largest) if batches is None else batches))
    if sizes[0] < 1 or sizes[-1] > largest:
        raise InputError(
            f"this engine paints batches of 1 to {largest}", "give `--batch` others, or build it anew"
        )
    recipe = spec.model.recipe
    steps = max(recipe.fewest_calls, min(STEPS, recipe.steps)) if steps is None else steps
    with ExitStack() as opened:
        start = time.perf_counter()
        engine, timed = _opened(folder, spec, notify)
        loaded = time.perf_counter() - start
        opened.callback(engine.close)
        asked: dict[str, Any] = {"sampler": spec.model.system, "steps": steps, "min_fill": 0.0}
        job = Job([], [], engine.prompts[0], 1, 0, composite=True, batch=1, **asked)
        method = resolve(job, spec.model)
        scratch = Path(opened.enter_context(TemporaryDirectory(prefix="stage-rt-bench.")))
        rows = [
            _row(
                engine,
                timed,
                method,
                size,
                rounds,
                scratch,
                portion(progress, n / len(sizes), (n + 1) / len(sizes)),
            )
            for n, size in enumerate(sizes)
        ]
    # Before the machine is measured, which takes more memory than a small engine.
    most = _peak_memory()
    matmul, copy = rates()
    return Result(
        machine=cpu_name() if spec.devices == ["cpu"] else f"{', '.join(spec.devices)}; {cpu_name()}",
        backend=spec.backend,
        library_version=spec.library_version,
        dtype=spec.dtype,
        graphs_fingerprint=spec.graphs_fingerprint,
        steps=steps,
        own_steps=recipe.calls or recipe.steps,
        load_seconds=loaded + timed.loading,
        peak_memory=most,
        matmul_gflops=matmul,
        copy_gb_s=copy,
        rows=rows,
    )


def _peak_memory() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _opened(folder: Path, spec: EngineSpec, notify: Notify) -> tuple[Engine, Timed | TimedHalves]:
    """The engine, and what keeps the times of its networks: of all of them where the host calls them one by one."""
    if spec.devices != ["cpu"]:
        engine = load(folder, notify=notify)
        halves = TimedHalves(engine.executor)
        return engine.over(halves), halves
    timed = Timed(open_backend(folder, spec))
    contexts = read_contexts(folder / PROMPTS_FILE, spec.model)
    return Engine(spec, HostExecutor(spec.model, timed), contexts), timed


def _row(
    engine: Engine,
    timed: Timed | TimedHalves,
    method: Method,
    size: int,
    rounds: int,
    scratch: Path,
    progress: Progress,
) -> Row:
    each: dict[Stage, list[float]] = defaultdict(list)
    whole: list[float] = []
    for number in range(rounds + 1):
        share = portion(progress, number / (rounds + 1), (number + 1) / (rounds + 1))
        seconds = _batch(engine, timed, method, size, number, scratch, share)
        if number:
            whole.append(sum(seconds.values()))
            for stage, taken in seconds.items():
                each[stage].append(taken)
    stages = {stage: Spread.of(taken) for stage, taken in each.items()}
    flop = engine.spec.operations.get(UNET)
    rate = None
    if flop and "unet" in stages:
        twice = 2 if method.recipe.prompt_guidance != 1 else 1
        rate = flop * twice * size * method.steps / stages["unet"].median / 1e9
    return Row(batch=size, whole=Spread.of(whole), stages=stages, unet_gflops=rate)


def _batch(
    engine: Engine,
    timed: Timed | TimedHalves,
    method: Method,
    size: int,
    seed: int,
    scratch: Path,
    progress: Progress,
) -> dict[Stage, float]:
    """Seconds of one batch by stage."""
    model = engine.spec.model
    photos, labels = _scenes(size, model.image_size, seed)
    samples = [
        Sample(n, Path(f"{n}.png"), Path(f"{n}.png"), photos[n].shape[1::-1], grey=False) for n in range(size)
    ]
    marks = [time.perf_counter()]
    timed.seconds.clear()
    batch = Batch(samples, photos, labels, divide(photos, labels, model, method))
    marks.append(time.perf_counter())
    waiting = paint(engine, batch, method, seed=seed, size=size, progress=progress)
    marks.append(time.perf_counter())
    results = list(finish(batch, waiting(), model, method, composited=True))
    marks.append(time.perf_counter())
    for result in results:
        write_pair(scratch, pair_paths(method.prompt, result.index), result.image or b"", result.label)
    marks.append(time.perf_counter())
    prepared, painted, composed, written = np.diff(marks).tolist()
    networks = dict(timed.seconds)
    return {
        "prepare": prepared,
        **networks,
        timed.rest: painted - sum(networks.values()),
        "compose": composed,
        "write": written,
    }


def _scenes(count: int, side: int, seed: int) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.bool_]]]:
    """Noisy surfaces, each with a disc of a sixteenth of its area for a label: one region a pair, as most are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    label = (x - side / 2) ** 2 + (y - side / 2) ** 2 < side**2 / (16 * np.pi)
    grey = rng.integers(96, 160, (count, side, side, 1), dtype=np.uint8)
    return list(np.repeat(grey, 3, axis=3)), [label] * count


def _powers(largest: int) -> list[int]:
    return [*(2**n for n in range(largest.bit_length()) if 2**n < largest), largest]
