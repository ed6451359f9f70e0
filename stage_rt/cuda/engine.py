"""An engine whose networks and loop stay on the GPU."""

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from stage_rt.backends import DeviceBackend
from stage_rt.cuda import device, plan
from stage_rt.cuda.autoencoder import Half, Pending
from stage_rt.cuda.loop import Loop, Sampled
from stage_rt.engine import Callback, Engine, Painted, finite
from stage_rt.errors import DeviceMemoryError
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Recipe
from stage_rt.samplers import SAMPLERS, Sampler
from stage_rt.spec import VAE_DECODER, VAE_ENCODER, EngineSpec

Float32 = NDArray[np.float32]


class Painting:
    """A `stage_rt.engine.Painted` whose images the device may still be decoding."""

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


class DeviceEngine(Engine):
    """A compiled model on a GPU; made by `stage_rt.engine.load`.

    `paint` returns while the images are decoded, in a stream beside that of the loop, so that a run can begin the
    next batch meanwhile. When the device's memory is full, the batch is halved until it fits.
    """

    def __init__(
        self,
        spec: EngineSpec,
        backend: DeviceBackend,
        contexts: dict[str, Float32],
        notify: Callable[[str], None],
    ) -> None:
        super().__init__(spec, backend, contexts)
        self._device_backend, self._notify = backend, notify
        self._buckets = sorted(spec.batch)
        self._prepared: tuple[str, Recipe] = ("", spec.model.recipe)
        self._loops: dict[int, Loop] = {}
        self._stream, self._beside = device.Stream(), device.Stream()
        sizes = {"batch": plan.autoencoder_bucket(self._buckets), "capacity": max(self._buckets)}
        with ExitStack() as opened:
            try:
                self._encoder = Half(backend, VAE_ENCODER, "image", **sizes, stream=self._stream)
                opened.callback(self._encoder.close)
                self._decoder = Half(backend, VAE_DECODER, "latent", **sizes, stream=self._beside)
            except DeviceMemoryError as full:
                raise DeviceMemoryError(f"{full}: {_REMEDY}") from full
            opened.pop_all()

    def decode(self, latent: Float32) -> Float32:
        """Latents ``[B, C, h, w]`` to images float32 ``[B, c, S, S]``, about [-1, 1]."""
        return self._start_decoding(latent).result()

    def close(self) -> None:
        """Give the device's memory back; the engine cannot be used afterwards."""
        self._drop(self._loops)
        self._encoder.close()
        self._decoder.close()
        self._stream.close()
        self._beside.close()
        super().close()

    def _moments(self, images: Float32) -> Float32:
        return self._encoder.start(images).result()

    def _paint(self, latent: Float32) -> Painted:
        return Painting(self._start_decoding(latent), finite(latent))

    def _start_decoding(self, latent: Float32) -> Pending:
        return self._decoder.start(latent / np.float32(self.spec.model.latent_scale))

    def _sample(
        self,
        prompt: str,
        clean: Float32,
        masks: Float32,
        *,
        sampler: Sampler,
        recipe: Recipe,
        noise: PhiloxNoise,
        callback: Callback | None,
    ) -> Float32:
        adapter = self.spec.model.prompts[prompt]
        if sampler is not SAMPLERS["stage"] or adapter is None or not masks.any():
            # The device's loop is STAGE's own; the other ways are driven from here, over the same networks.
            return super()._sample(
                prompt, clean, masks, sampler=sampler, recipe=recipe, noise=noise, callback=callback
            )
        self._prepare(adapter, recipe)
        latent, done = np.empty_like(clean), 0
        while done < len(clean):
            part = plan.parts(len(clean) - done, self._buckets)[0]
            rows = slice(done, done + part.length)
            progress = _progress(callback, recipe.steps, done, part.length, len(clean))
            try:
                sampled = self._run(
                    part.bucket, prompt, clean[rows], masks[rows], noise.select(rows), progress
                )
            except DeviceMemoryError as full:
                self._shrink(part.bucket, full)
                continue
            latent[rows] = np.where(sampled.finite[:, None, None, None], sampled.latent, np.float32(np.nan))
            done += part.length
        return latent

    def _prepare(self, adapter: str, recipe: Recipe) -> None:
        """Forget the loops of another adapter or recipe."""
        if (adapter, recipe) != self._prepared:
            self._drop(self._loops)
            self._prepared = (adapter, recipe)

    def _run(
        self,
        bucket: int,
        prompt: str,
        clean: Float32,
        masks: Float32,
        noise: PhiloxNoise,
        progress: Callable[[int], None],
    ) -> Sampled:
        if bucket not in self._loops:
            adapter, recipe = self._prepared
            spec = self.spec.model_copy(
                update={"model": self.spec.model.model_copy(update={"recipe": recipe})}
            )
            self._loops[bucket] = Loop(
                self._device_backend, spec, adapter, bucket, self._stream, self._notify
            )
        return self._loops[bucket].run(clean, masks, self._context(prompt), noise, progress)

    def _shrink(self, bucket: int, full: DeviceMemoryError) -> None:
        """Forget every batch size above half of ``bucket``."""
        left = plan.halved(self._buckets, bucket)
        if not left:
            raise DeviceMemoryError(f"{full}: {_REMEDY}") from full
        self._drop([size for size in self._loops if size not in left])
        self._buckets = left
        self._notify(f"{full}, so a batch of {bucket} is done in batches of {max(left)}")

    def _drop(self, buckets: "list[int] | dict[int, Loop]") -> None:
        # The device would wait for the decoder by itself when it frees memory, but nobody promises that.
        self._beside.synchronize()
        for bucket in list(buckets):
            self._loops.pop(bucket).close()


def _progress(
    callback: Callback | None, steps: int, done: int, count: int, total: int
) -> Callable[[int], None]:
    """A loop's report as one of all ``total`` samples: a smaller batch must not make it start again."""

    def progress(i: int) -> None:
        if callback is not None:
            share = (done + count * (steps - i) / steps) / total
            callback(round(steps * (1 - share)), None)

    return progress


_REMEDY = "end other programs on the GPU or build the engine again with a smaller `--batch`"
