"""An `Executor` whose networks are shared with others: each call is let in by the driver, samples go to slots."""

import math
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import EngineError, InputError, StageError
from stage_rt.estimator import Condition
from stage_rt.executor import Executor, Finished
from stage_rt.names import SamplerName
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress
from stage_rt.recipe import Recipe
from stage_rt.serve.driver import Driver, Ended, Guest, Stepped, Told, shared
from stage_rt.serve.scheduling import Priority
from stage_rt.slots import Slots

Float32 = NDArray[np.float32]

PREVIEWS = 12
"""Estimates that are decoded of a sample on its way."""


class CancelledError(StageError):
    """Nobody wants it any more."""


class Wish:
    """Whether somebody still wants something; who waits for it is woken when nobody does.

    ``insists`` is whether others have to leave it the memory it needs (`stage_rt.serve.shelf`), until that is unset.
    """

    def __init__(self, *, insists: bool = False) -> None:
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        self.cancelled, self.insists = False, insists

    def cancel(self) -> None:
        """Nobody wants it any more."""
        with self._lock:
            self.cancelled = True
            if self._wake:
                self._wake()

    def check(self) -> None:
        """Raise `CancelledError` if it is not wanted."""
        if self.cancelled:
            raise CancelledError("the request was cancelled")

    def waiting(self, wake: Callable[[], None] | None) -> None:
        """What wakes the one who waits, None if nobody waits.

        Raises:
            CancelledError: it is not wanted.
        """
        with self._lock:
            self._wake = wake
            if wake:
                self.check()


class Terms(NamedTuple):
    """On which terms samples go through the slots; ``preview`` is given the number of a sample's stream
    and a decoded estimate of it, ``[c, S, S]``."""

    priority: Priority
    deadline: float = math.inf
    wish: Wish | None = None
    preview: Callable[[int, Float32], None] | None = None

    @property
    def insists(self) -> bool:
        """Whether it is the wish of somebody who does."""
        return self.wish is not None and self.wish.insists


class SharedExecutor:
    """An `Executor` for one request or run, over that of an engine; used by one thread.

    Args:
        driver: lets everything in.
        name: of the engine, which tells its lanes from others.
        executor: the engine's own, touched on the driver's thread alone.
        size: slots of a lane.
        scale: the model's latent scale.
        terms: whose the samples are.
    """

    def __init__(
        self, driver: Driver, name: str, executor: Executor, size: int, scale: float, terms: Terms
    ) -> None:
        self._driver, self._name, self._executor, self._size = driver, name, executor, size
        self._scale, self._terms = np.float32(scale), terms

    def encode(self, images: Float32) -> Float32:
        """See `Executor`."""
        return self._driver.fit(lambda: self._executor.encode(images))

    def sample(
        self,
        condition: Condition,
        clean: Float32,
        masks: Float32,
        *,
        sampler: SamplerName,
        recipe: Recipe,
        steps: int,
        noise: PhiloxNoise,
        progress: Progress,
        label: Float32 | None = None,
    ) -> Float32:
        """See `Executor`; only STAGE's own loop can be shared.

        Raises:
            InputError: another sampler is asked for.
            CancelledError, LateError, ClosedError: the samples were taken out.
        """
        if sampler != "stage":
            raise InputError(f"sampler `{sampler}` cannot share the networks: use `stage`")
        told: SimpleQueue[tuple[int, Told]] = SimpleQueue()
        own = recipe.respaced(steps)
        guests = [
            Guest(
                condition,
                clean[part],
                masks[part],
                None if label is None else label[part],
                own,
                noise.select(part),
                lambda what, n=n: told.put((n, what)),  # type: ignore[misc]  # mypy does not bind n
                foresee=max(steps // PREVIEWS, 1) if self._terms.preview else 0,
            )
            for n, part in enumerate(slice(n, n + 1) for n in range(len(clean)))
        ]
        wish = self._terms.wish or Wish()
        wish.waiting(lambda: told.put((0, CancelledError("the request was cancelled"))))
        lane = (self._name, condition.adapter)
        try:
            self._driver.submit(
                lane,
                guests,
                shared(self._executor, condition.adapter, self._size),
                priority=self._terms.priority,
                deadline=self._terms.deadline,
            )
            return self._collected(guests, told, clean, progress)
        except BaseException:
            self._driver.withdraw(guests)
            raise
        finally:
            wish.waiting(None)

    def slots(self, adapter: str | None, size: int) -> Slots:
        """None are to be had: they are the driver's."""
        raise EngineError("a shared engine has no slots to give away: load it with `stage_rt.load`")

    def decode(self, latent: Float32) -> Finished:
        """See `Executor`; nothing is left to wait for."""

        def decoded() -> Finished:
            painted = self._executor.decode(latent)
            return Finished(painted.images, painted.finite)

        return self._driver.fit(decoded)

    def close(self) -> None:
        """The networks are the engine's."""

    def _collected(
        self,
        guests: list[Guest],
        told: "SimpleQueue[tuple[int, Told]]",
        clean: Float32,
        progress: Progress,
    ) -> Float32:
        """Wait for all of the samples; what is not finite comes out so."""
        result, waiting = np.empty_like(clean), len(guests)
        left = [len(guests[0].recipe.coefficients)] * waiting
        steps = sum(left)
        while waiting:
            number, what = told.get()
            if isinstance(what, BaseException):
                raise what
            if isinstance(what, Ended):
                result[number] = what.latent[0] if what.finite else np.nan
                waiting -= 1
                continue
            # A sample whose steps were lost begins again.
            left[number] = what.left
            self._show(int(guests[number].noise.samples[0]), what)
            progress(1 - sum(left) / steps)
        return result

    def _show(self, stream: int, what: Stepped) -> None:
        if self._terms.preview and what.foreseen is not None:
            self._terms.preview(stream, self.decode(what.foreseen / self._scale).images[0])
