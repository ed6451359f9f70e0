"""What runs an engine's networks and its sampling loop; `HostExecutor` drives any backend from NumPy."""

import itertools
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stage_rt.estimator import Condition, Estimator
from stage_rt.names import SamplerName
from stage_rt.networks import Backend
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress
from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import Denoiser
from stage_rt.samplers import SAMPLERS
from stage_rt.samplers.fast import Foreground
from stage_rt.slots import HostSlots, Slots
from stage_rt.spec import FOREGROUND, VAE_DECODER, VAE_ENCODER, ModelSpec, adapter_graph

Float32 = NDArray[np.float32]


class Painted(Protocol):
    """What came out of the networks; a device may still be at work on it, and is then waited for."""

    @property
    def images(self) -> Float32:
        """Float32 ``[B, c, S, S]``, about [-1, 1]."""

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Bool ``[B]``, False for a sample with a value in its latent or its image that is not finite."""


class Executor(Protocol):
    """Encoder, sampling loop and decoder of one engine, for batches up to the engine's largest."""

    def encode(self, images: Float32) -> Float32:
        """Mean and log variance of the latents' distribution: ``[B, c, S, S]`` to ``[B, 2 C, h, w]``."""

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
        """Latents ``[B, C, h, w]`` with a defect under ``masks`` ``[B, 1, h, w]``, none of which is empty.

        ``label`` is what adapters are handed in place of ``masks`` (`stage_rt.sampler.sample`). ``steps`` is in the
        sampler's range; ``progress`` is told the share of the sampler's calls that are done.

        Raises:
            BackendError: the inference library failed.
        """

    def slots(self, adapter: str | None, size: int) -> Slots:
        """A batch of the engine's ``size`` for STAGE's loop whose samples stand at steps of their own.

        Raises:
            BackendError: a network cannot be loaded or run.
            DeviceMemoryError: it does not fit.
        """

    def decode(self, latent: Float32) -> Painted:
        """The images of unscaled latents ``[B, C, h, w]``."""

    def close(self) -> None:
        """Give the networks' memory back; the executor cannot be used afterwards."""


class Finished(NamedTuple):
    """A `Painted` with nothing left to wait for."""

    images: Float32
    finite: NDArray[np.bool_]


class HostExecutor:
    """An `Executor` that calls the backend's graphs one by one, over any of `stage_rt.samplers`."""

    def __init__(self, model: ModelSpec, backend: Backend) -> None:
        self._model, self._backend = model, backend

    def encode(self, images: Float32) -> Float32:
        """See `Executor`."""
        return self._backend.run(VAE_ENCODER, image=images)

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
        """See `Executor`."""
        way = SAMPLERS[sampler]
        told: dict[str, Any] = {"label": label} if way.guided else {}
        if way.system == "fast":
            told["foreground"] = self.foreground(condition)
        denoise = self.denoiser(
            condition if way.guided else condition._replace(adapter=None),
            guidance=recipe.guidance,
            prompt_guidance=recipe.prompt_guidance,
        )
        done, calls = itertools.count(1), way.calls(recipe, steps)
        latent: Float32 = way.run(
            denoise,
            clean,
            masks,
            recipe=recipe,
            noise=noise,
            steps=steps,
            callback=lambda i, state: progress(next(done) / calls),
            **told,
        )
        return latent

    def denoiser(
        self, condition: Condition, *, guidance: float = 1.0, prompt_guidance: float = 1.0
    ) -> Denoiser:
        """What a sampler calls: the UNet, then the adapter of the branch if the condition has any.

        ``guidance`` is the weight of the adapter's estimate against the UNet's, ``prompt_guidance`` that of the
        UNet's for the prompt against its estimate for good surface, which the condition then has.
        """

        estimate = Estimator(self._backend, condition.adapter)

        def denoise(x: Float32, i: int, mask: Float32, branch: Branch) -> Float32:
            count = len(x)
            surface = condition.surface
            return estimate(
                x,
                np.full(count, i, np.int64),
                mask,
                contexts=np.repeat(condition.context[None], count, axis=0),
                surfaces=None if surface is None else np.repeat(surface[None], count, axis=0),
                only=np.full(count, branch is Branch.ONLY),
                guidance=guidance,
                prompt_guidance=prompt_guidance,
            )

        return denoise

    def foreground(self, condition: Condition) -> Foreground:
        """The foreground network of a prompt, as FAST's sampler calls it."""
        graph = adapter_graph(str(condition.adapter), FOREGROUND)

        def foresee(x: Float32, i: int, mask: Float32) -> Float32:
            return self._backend.run(graph, sample=x, timestep=np.full(len(x), i, np.int64), mask=mask)

        return foresee

    def slots(self, adapter: str | None, size: int) -> HostSlots:
        """See `Executor`."""
        return HostSlots(self._backend, self._model, adapter, size)

    def decode(self, latent: Float32) -> Finished:
        """See `Executor`."""
        images = self._backend.run(VAE_DECODER, latent=latent)
        return Finished(images, finite(latent) & finite(images))

    def close(self) -> None:
        """See `Executor`."""
        self._backend.close()


def finite(arrays: Float32) -> NDArray[np.bool_]:
    """Bool ``[B]``: which of ``arrays`` ``[B, c, h, w]`` hold only finite numbers."""
    return np.asarray(np.isfinite(arrays).all(axis=(1, 2, 3)))
