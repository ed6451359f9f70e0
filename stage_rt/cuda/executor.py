"""An engine's networks and its loop on the GPU, where they stay."""

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from stage_rt import batches
from stage_rt.cuda import device, plan
from stage_rt.cuda.autoencoder import Half, Pending
from stage_rt.cuda.loop import Loop
from stage_rt.cuda.slots import DeviceSlots
from stage_rt.errors import DeviceMemoryError
from stage_rt.estimator import Condition
from stage_rt.executor import HostExecutor, finite
from stage_rt.names import SamplerName
from stage_rt.networks import DeviceBackend
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress, portion
from stage_rt.recipe import Recipe
from stage_rt.spec import VAE_DECODER, VAE_ENCODER, EngineSpec

Float32 = NDArray[np.float32]


class Painting:
    """A `stage_rt.executor.Painted` whose images the device may still be decoding."""

    def __init__(self, pending: Pending, usable: NDArray[np.bool_]) -> None:
        self._pending, self._usable = pending, usable

    @property
    def images(self) -> Float32:
        """Float32 ``[B, c, S, S]``, about [-1, 1]."""
        return self._pending.result()

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Bool ``[B]``, False for a sample with a value in its latent or its image that is not finite."""
        return self._usable & finite(self.images)


class DeviceExecutor:
    """A `stage_rt.executor.Executor` that never leaves the GPU between the first step and the last.

    `decode` returns while the images are decoded, in a stream beside that of the loop, so that a run can begin the
    next batch meanwhile. When the device's memory is full, for the loop or for what encoder and decoder take beside
    it, the batch is halved until it fits, which ``notify`` is told. The device's loop is STAGE's own; the other
    samplers are driven from the host, over the same networks.
    """

    def __init__(self, spec: EngineSpec, backend: DeviceBackend, notify: Callable[[str], None]) -> None:
        self._model, self._backend, self._notify = spec.model, backend, notify
        self._host = HostExecutor(spec.model, backend)
        self._buckets = sorted(spec.batch)
        self._prepared: tuple[str | None, Recipe] = ("", spec.model.recipe)
        self._loops: dict[int, Loop] = {}
        self._slots: list[DeviceSlots] = []
        sizes = {"batch": batches.autoencoder_bucket(self._buckets), "capacity": max(self._buckets)}
        with device.active(), ExitStack() as opened:
            try:
                self._stream = device.Stream()
                opened.callback(self._stream.close)
                self._beside = device.Stream()
                opened.callback(self._beside.close)
                self._encoder = Half(backend, VAE_ENCODER, "image", **sizes, stream=self._stream)
                opened.callback(self._encoder.close)
                self._decoder = Half(backend, VAE_DECODER, "latent", **sizes, stream=self._beside)
                opened.callback(self._decoder.close)
            except DeviceMemoryError as full:
                raise DeviceMemoryError(full.problem, _REMEDY) from full
            opened.callback(self._drop)
            opened.callback(self._leave)
            self._opened = opened.pop_all()

    def encode(self, images: Float32) -> Float32:
        """See `stage_rt.executor.Executor`."""
        return self._started(self._encoder, images).result()

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
        """See `stage_rt.executor.Executor`."""
        # A history is kept on the host, which then drives the loop.
        if sampler != "stage" or recipe.solver != "ancestral":
            return self._host.sample(
                condition,
                clean,
                masks,
                sampler=sampler,
                recipe=recipe,
                steps=steps,
                noise=noise,
                progress=progress,
                label=label,
            )
        self._prepare(condition.adapter, recipe.respaced(steps))
        latent, done, count = np.empty_like(clean), 0, len(clean)
        while done < count:
            part = batches.parts(count - done, self._buckets)[0]
            rows = slice(done, done + part.length)
            share = portion(progress, rows.start / count, rows.stop / count)
            try:
                sampled = self._loop(part.bucket).run(
                    clean[rows],
                    masks[rows],
                    condition.context,
                    noise.select(rows),
                    share,
                    surface=condition.surface,
                    label=None if label is None else label[rows],
                )
            except DeviceMemoryError as full:
                self._shrink(part.bucket, full)
                continue
            latent[rows] = np.where(sampled.finite[:, None, None, None], sampled.latent, np.float32(np.nan))
            done = rows.stop
        return latent

    def slots(self, adapter: str | None, size: int) -> DeviceSlots:
        """See `stage_rt.executor.Executor`; the loops are given up for them."""
        self._drop()
        model = self._model
        kinds = plan.every_kind(size, guided=adapter is not None, surface=model.surface is not None)
        try:
            opened = DeviceSlots(
                self._backend, model, model.recipe, adapter, size, kinds, self._stream, self._notify
            )
        except DeviceMemoryError as full:
            raise DeviceMemoryError(full.problem, _REMEDY) from full
        self._slots = [each for each in self._slots if not each.closed] + [opened]
        return opened

    def decode(self, latent: Float32) -> Painting:
        """See `stage_rt.executor.Executor`."""
        return Painting(self._started(self._decoder, latent), finite(latent))

    def close(self) -> None:
        """Give the device's memory back, all of it whatever fails; the executor cannot be used afterwards."""
        with ExitStack() as closing:
            closing.callback(self._backend.close)
            with device.active():
                self._opened.close()

    def _started(self, half: Half, samples: Float32) -> Pending:
        """Start encoder or decoder, which of some libraries take memory only then: loops make room for them."""
        while True:
            try:
                return half.start(samples)
            except DeviceMemoryError as full:
                if not self._loops:
                    raise DeviceMemoryError(full.problem, _REMEDY) from full
                self._shrink(max(self._loops), full)

    def _prepare(self, adapter: str | None, recipe: Recipe) -> None:
        """Forget the loops of another adapter or recipe."""
        if (adapter, recipe) != self._prepared:
            self._drop()
            self._prepared = (adapter, recipe)

    def _loop(self, bucket: int) -> Loop:
        if bucket not in self._loops:
            adapter, recipe = self._prepared
            self._loops[bucket] = Loop(
                self._backend, self._model, recipe, adapter, bucket, self._stream, self._notify
            )
        return self._loops[bucket]

    def _shrink(self, bucket: int, full: DeviceMemoryError) -> None:
        """Forget every batch size above half of ``bucket``, and every loop.

        The one that did not fit has left its share in the memory that all recorded steps have in common.
        """
        left = batches.halved(self._buckets, bucket)
        if not left:
            raise DeviceMemoryError(full.problem, _REMEDY) from full
        self._drop()
        self._buckets = left
        self._notify(f"{full.problem}, so a batch of {bucket} is done in batches of {max(left)}")

    def _leave(self) -> None:
        """Close what slots there are."""
        with ExitStack() as closing:
            for each in self._slots:
                closing.callback(each.close)

    def _drop(self) -> None:
        """Close all loops, and give back what recording them took where no slots are left to need it."""
        with device.active(), ExitStack() as closing:
            if all(each.closed for each in self._slots):
                closing.callback(self._backend.forget_recorded)
            while self._loops:
                closing.callback(self._loops.popitem()[1].close)
            # The device would wait for the decoder by itself when it frees memory, but nobody promises that.
            self._beside.synchronize()


_REMEDY = "end other programs on the GPU or build the engine again with a smaller `--batch`"
