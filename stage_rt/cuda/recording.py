"""Steps recorded as CUDA graphs, each compared with running it before it is used."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.cuda import graphs, plan, replay
from stage_rt.cuda.plan import Kind
from stage_rt.cuda.step import Step
from stage_rt.errors import BackendError, DeviceMemoryError
from stage_rt.kernels.table import rows
from stage_rt.networks import DeviceBackend, widen
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe

Launches = dict[Kind, Callable[[], None]]

_WARM_UPS = 2
"""Runs before a recording; libraries allocate and choose kernels in them."""


def launches(
    step: Step,
    kinds: Iterable[Kind],
    backend: DeviceBackend,
    recipe: Recipe,
    notify: Callable[[str], None],
    opened: ExitStack,
) -> Launches:
    """How a step of each kind is launched: replayed, or kernel by kernel where that cannot be or is something else.

    Args:
        step: what is recorded; its buffers are written over.
        kinds: what the steps may need.
        backend: that of the step's networks.
        recipe: whose transitions are rehearsed.
        notify: told, in one sentence, when steps are not replayed, or not to the bit.
        opened: what closes the graphs.

    Raises:
        DeviceMemoryError: a graph does not fit.
    """
    rehearsal = _Rehearsal(step, recipe)
    one_by_one: Launches = {kind: partial(step.enqueue, kind) for kind in kinds}
    try:
        recorded = {kind: rehearsal.recorded(kind, backend, opened) for kind in one_by_one}
    except DeviceMemoryError:
        raise
    except BackendError as error:
        notify(f"the loop runs kernel by kernel, which is slower, as it could not be recorded: {error}")
        return one_by_one
    found = {kind: rehearsal.check(kind, graph, backend) for kind, graph in recorded.items()}
    wrong = [text for right, text in found.values() if not right]
    if wrong:
        notify(f"the loop runs kernel by kernel, which is slower, as {wrong[0]}")
        return one_by_one
    for _, text in found.values():
        if text:
            notify(f"images of one seed are alike and not equal here, as {text}")
    return {kind: graph.launch for kind, graph in recorded.items()}


class _Rehearsal:
    """Steps on inputs like those of a run."""

    def __init__(self, step: Step, recipe: Recipe) -> None:
        self._step, self._recipe = step, recipe
        last = len(recipe.coefficients) - 1
        self._recorded, self._checked = last // 2, last

    def recorded(self, kind: Kind, backend: DeviceBackend, opened: ExitStack) -> graphs.Graph:
        step = self._step
        with backend.recording():
            for _ in range(_WARM_UPS):
                self._rehearse(kind, self._recorded)
                step.enqueue(kind)
            step.stream.synchronize()
            graph = graphs.capture(step.stream.handle, partial(step.enqueue, kind))
        opened.callback(graph.close)
        return graph

    def check(self, kind: Kind, graph: graphs.Graph, backend: DeviceBackend) -> tuple[bool, str]:
        """Whether a recorded step may be replayed, and how it differs from running it, nothing for not at all."""
        # Not at the row that was recorded, where a number of the host that has been recorded would be right.
        replayed = self.after(kind, graph.launch, self._checked)
        # In the recording's memory: elsewhere its networks would allocate all they need a second time.
        with backend.recording():
            run = self.after(kind, partial(self._step.enqueue, kind), self._checked)
        apart = replay.difference(replayed, run)
        allowed = replay.TOLERANCE[self._step.dtype]
        told = f"the recorded step of {kind} differs from running it by {apart:.1e} of its largest value"
        return apart <= allowed, f"{told}, where {allowed:.1e} is allowed" if apart else ""

    def after(self, kind: Kind, launch: Callable[[], None], row: int) -> dict[str, NDArray[Any]]:
        """All that a step leaves behind that is rehearsed at a row."""
        self._rehearse(kind, row)
        launch()
        left = {
            name: self._step.read(name) for name in ("state", "sample", "counter", "finite", *kind.branches)
        }
        return {
            name: widen(array, "bf16") if self._step.tensors[name].dtype == "bf16" else array
            for name, array in left.items()
        }

    def _rehearse(self, kind: Kind, row: int) -> None:
        """Inputs like those of a run: the first sample at ``row``, each other one row below the one before."""
        step, batch = self._step, self._step.batch
        noise = PhiloxNoise(range(batch))
        x, clean = noise.initial(step.shape), noise.encode(step.shape)
        mask = (clean[:, :1] > 0).astype(np.float32)
        tables = [rows(plan.rehearsed(self._recipe, kind, sample)) for sample in range(batch)]
        arrays: dict[str, NDArray[Any]] = {
            "state": x,
            "clean": clean,
            "mask": mask,
            "label": mask * (x[:, :1] > 0),
            "sample": x,
            "timestep": np.zeros(batch, np.int64),
            "context": noise.initial(step.tensors["context"].shape),
            "counter": np.maximum(row - np.arange(batch), 0),
            "seeds": noise.seeds,
            "samples": noise.samples,
            "finite": np.ones(batch),
        }
        if step.contrasts:
            arrays["surface_context"] = noise.encode(step.tensors["context"].shape)
        for name, array in arrays.items():
            step.write(name, array)
        step.write_tables(tables)
        step.stream.synchronize()
        step.copying.clear()
