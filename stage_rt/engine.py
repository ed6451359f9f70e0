"""An engine folder in use: encode, sample, decode."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from stage_rt.backends import Backend, DeviceBackend, open_backend
from stage_rt.errors import EngineError, FailedSamplesError, InputError, PromptError
from stage_rt.files import verify
from stage_rt.inputs import latent_mask, network_image
from stage_rt.noise import PhiloxNoise
from stage_rt.outputs import composite as composited
from stage_rt.outputs import pixels
from stage_rt.recipe import Branch, Recipe
from stage_rt.samplers import SAMPLERS, Sampler
from stage_rt.spec import (
    ENGINE_FILE,
    PROMPTS_FILE,
    UNET,
    VAE_DECODER,
    VAE_ENCODER,
    EngineSpec,
    ModelSpec,
    SamplerName,
    adapter_graph,
    first_fault,
)

Float32 = NDArray[np.float32]
Callback = Callable[[int, Float32 | None], None]
Notify = Callable[[str], None]

LOGVAR_RANGE = (-30.0, 20.0)
"""The authors clamp the log variance of the encoder's posterior to this."""


class Painted(Protocol):
    """What came out of the networks; a device may still be at work on it, and is then waited for."""

    @property
    def images(self) -> Float32:
        """Float32 ``[B, c, S, S]``, about [-1, 1]."""

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Bool ``[B]``, False for a sample with a value in its latent or its image that is not finite."""


class Finished(NamedTuple):
    """A `Painted` with nothing left to wait for."""

    images: Float32
    finite: NDArray[np.bool_]


def warn(notice: str) -> None:
    """Tell the user of the library something, as a `RuntimeWarning`."""
    warnings.warn(notice, RuntimeWarning, stacklevel=2)


def load(engine_dir: str | Path, *, notify: Notify = warn) -> "Engine":
    """Open an engine folder made by ``stage-rt build``.

    ``notify`` is told in one sentence when the engine has to go on in a slower way, as with a smaller batch when
    the device's memory is full.

    Raises:
        EngineError: a file is missing or was changed, or the engine is not for what is installed here.
        DeviceError: the engine needs a GPU that is not here.
        DeviceMemoryError: the GPU's memory is full.
        MissingExtraError: the engine's inference library is not installed.
    """
    folder = Path(engine_dir)
    spec = read_spec(folder)
    backend = open_backend(folder, spec)
    contexts = _contexts(folder / PROMPTS_FILE, spec.model)
    if isinstance(backend, DeviceBackend) and spec.devices != ["cpu"]:
        from stage_rt.cuda.engine import DeviceEngine

        return DeviceEngine(spec, backend, contexts, notify)
    return Engine(spec, backend, contexts)


def read_spec(folder: Path) -> EngineSpec:
    """``engine.json`` of an engine folder.

    Raises:
        EngineError: the file is missing or does not follow `EngineSpec`.
    """
    path = folder / ENGINE_FILE
    try:
        return EngineSpec.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise EngineError(
            f"`{folder}` is not an engine folder (no {ENGINE_FILE}): make one with `stage-rt build`"
        ) from None
    except ValidationError as error:
        where, why = first_fault(error)
        raise EngineError(
            f"`{path}` is not valid at {where} ({why}): build the engine again with `stage-rt build`"
        ) from None


def up_to_date(folder: Path, wanted: EngineSpec) -> bool:
    """Whether ``folder`` holds, whole, an engine of the fingerprint of ``wanted``."""
    try:
        found = read_spec(folder)
        verify(folder, found.files, ENGINE_FILE, EngineError, "it is built again")
    except EngineError:
        return False
    return found.fingerprint == wanted.fingerprint


class Engine:
    """A compiled model; made by `load`.

    ``spec`` is the engine's description, ``prompts`` the sorted names of what it can paint.
    """

    def __init__(self, spec: EngineSpec, backend: Backend, contexts: dict[str, Float32]) -> None:
        self.spec = spec
        self.prompts = sorted(spec.model.prompts)
        self._backend = backend
        self._contexts = contexts

    def synthesize(
        self,
        images: NDArray[np.uint8],
        masks: NDArray[np.bool_] | NDArray[np.uint8],
        *,
        prompt: str,
        seeds: Iterable[int],
        composite: bool = True,
        sampler: SamplerName = "stage",
        recipe: Recipe | None = None,
        callback: Callback | None = None,
    ) -> NDArray[np.uint8]:
        """Paint a defect into photographs, under their masks.

        More samples than the engine's largest batch are painted in several batches.

        Args:
            images: uint8 ``[B, H, W, 3]``.
            masks: bool or uint8 ``[B, H, W]``, not 0 where the defect shall be.
            prompt: what to paint, one of ``prompts``.
            seeds: one integer below 2**64 a sample; the same seed gives the same noise.
            composite: keep the photograph's own pixels and size beyond a narrow ramp around the mask.
            sampler, recipe: as `paint`.
            callback: called as ``callback(i, state)`` after every step of every batch; on a GPU after every 50
                steps and with None for the state.

        Returns:
            uint8 ``[B, H, W, 3]``; without ``composite`` the decoded images, ``[B, S, S, 3]``.

        Raises:
            InputError: shapes or dtypes are wrong.
            PromptError: the model does not know ``prompt``.
            BackendError: the inference library failed.
            FailedSamplesError: a sample came out non-finite; `paint` says which and keeps the others.
        """
        noise = PhiloxNoise(seeds)
        labels = _labels(images, masks, noise)
        photos = np.stack([network_image(image, self.spec.model) for image in images])
        cells = np.stack([latent_mask(label, self.spec.model) for label in labels])
        result = []
        size = max(self.spec.batch)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            painted = self.paint(
                photos[part],
                cells[part],
                prompt=prompt,
                noise=noise.select(part),
                sampler=sampler,
                recipe=recipe,
                callback=callback,
            )
            if not painted.finite.all():
                failed = (start + np.flatnonzero(~painted.finite)).tolist()
                raise FailedSamplesError(
                    f"samples {failed} came out non-finite: use another seed or an fp32 engine"
                )
            result += [pixels(image) for image in painted.images]
        if composite:
            result = [composited(*sample) for sample in zip(images, result, labels, strict=True)]
        return np.stack(result)

    def paint(
        self,
        images: Float32,
        masks: Float32,
        *,
        prompt: str,
        noise: PhiloxNoise,
        sampler: SamplerName = "stage",
        recipe: Recipe | None = None,
        callback: Callback | None = None,
    ) -> Painted:
        """Encode, sample and decode one batch, as `stage_rt.inputs` prepares it.

        Samples with an empty mask take no part in STAGE's loop: no network has a say in their latent.

        Args:
            images: float32 ``[B, c, S, S]`` in [-1, 1].
            masks: float32 ``[B, 1, h, w]``, 0 or 1.
            prompt: what to paint, one of ``prompts``.
            noise: the streams of the B samples.
            sampler: the way from noise to the latent, one of `stage_rt.samplers.SAMPLERS`.
            recipe: schedule and branch plan, the model's own if None.
            callback: called as ``callback(i, state)`` after every step, with the samples in the loop; ``i`` more
                steps follow. On a GPU it is called after every 50 steps and with None for the state.

        Raises:
            InputError, PromptError, BackendError: as `synthesize`.
        """
        self._context(prompt)
        model = self.spec.model
        count = len(noise.seeds)
        _check("images", images, (count, model.image_channels, model.image_size, model.image_size))
        _check("masks", masks, (count, 1, model.latent_size, model.latent_size))
        clean_noise = noise.encode((count, model.latent_channels, model.latent_size, model.latent_size))
        latent = self.encode(images, clean_noise)
        usable, filled = finite(latent), masks.any(axis=(1, 2, 3))
        for part in (usable & filled, usable & ~filled):
            if part.any():
                latent[part] = self._sample(
                    prompt,
                    latent[part],
                    masks[part],
                    sampler=SAMPLERS[sampler],
                    recipe=recipe or model.recipe,
                    noise=noise.select(part),
                    callback=callback,
                )
        return self._paint(latent)

    def encode(self, images: Float32, noise: Float32) -> Float32:
        """The clean latent: a sample of the encoder's posterior times the latent scale.

        ``images`` float32 ``[B, c, S, S]`` and standard normal ``noise`` ``[B, C, h, w]`` to ``[B, C, h, w]``.
        """
        mean, logvar = np.split(self._moments(images), 2, axis=1)
        deviation = np.exp(0.5 * np.clip(logvar, *LOGVAR_RANGE))
        clean: Float32 = np.float32(self.spec.model.latent_scale) * (mean + deviation * noise)
        return clean

    def denoiser(
        self, prompt: str, batch: int, *, guided: bool = True
    ) -> Callable[[Float32, int, Float32, Branch], Float32]:
        """What a sampler calls: the UNet, then the adapter of the branch if the prompt has any and it is ``guided``.

        Raises:
            PromptError: the model does not know ``prompt``.
        """
        context = np.repeat(self._context(prompt)[None], batch, axis=0)
        adapter = self.spec.model.prompts[prompt] if guided else None

        def denoise(x: Float32, i: int, mask: Float32, branch: Branch) -> Float32:
            timestep = np.array([i], dtype=np.int64)
            eps = self._backend.run(UNET, sample=x, timestep=timestep, context=context)
            if adapter is None:
                return eps
            return self._backend.run(adapter_graph(adapter, branch), eps=eps, mask=mask)

        return denoise

    def decode(self, latent: Float32) -> Float32:
        """Latents ``[B, C, h, w]`` to images float32 ``[B, c, S, S]``, about [-1, 1]."""
        return self._backend.run(VAE_DECODER, latent=latent / np.float32(self.spec.model.latent_scale))

    def close(self) -> None:
        """Give the networks' memory back; the engine cannot be used afterwards."""
        self._backend.close()

    def _moments(self, images: Float32) -> Float32:
        return self._backend.run(VAE_ENCODER, image=images)

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
        denoise = self.denoiser(prompt, len(clean), guided=sampler.guided)
        return sampler.run(denoise, clean, masks, recipe=recipe, noise=noise, callback=callback)

    def _paint(self, latent: Float32) -> Painted:
        decoded = self.decode(latent)
        return Finished(decoded, finite(latent) & finite(decoded))

    def _context(self, prompt: str) -> Float32:
        if prompt not in self._contexts:
            raise PromptError(f"unknown prompt {prompt!r}: use one of {', '.join(self.prompts)}")
        return self._contexts[prompt]


def _contexts(path: Path, model: ModelSpec) -> dict[str, Float32]:
    remedy = "build the engine again with `stage-rt build`"
    try:
        contexts = load_file(path)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"`{path}` cannot be read ({error}): {remedy}") from error
    shape = (model.tokens, model.context_dim)
    for prompt in model.prompts:
        if prompt not in contexts or contexts[prompt].shape != shape:
            raise EngineError(f"`{path}` holds no context of shape {shape} for prompt {prompt!r}: {remedy}")
    return {prompt: contexts[prompt].astype(np.float32) for prompt in model.prompts}


def finite(arrays: Float32) -> NDArray[np.bool_]:
    """Bool ``[B]``: which of ``arrays`` ``[B, c, h, w]`` hold only finite numbers."""
    return np.asarray(np.isfinite(arrays).all(axis=(1, 2, 3)))


def _labels(images: NDArray[Any], masks: NDArray[Any], noise: PhiloxNoise) -> NDArray[np.bool_]:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise InputError(f"`images` must be uint8 of shape [B, H, W, 3], got {images.dtype} {images.shape}")
    if masks.shape != images.shape[:3] or masks.dtype not in (np.bool_, np.uint8):
        raise InputError(
            f"`masks` must be bool or uint8 of shape {images.shape[:3]}, got {masks.dtype} {masks.shape}"
        )
    if len(noise.seeds) != len(images) or not len(images):
        raise InputError(
            f"`seeds` must hold one integer a sample, got {len(noise.seeds)} for {len(images)} images"
        )
    return np.asarray(masks != 0)


def _check(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(f"`{name}` must be float32 of shape {shape}, got {array.dtype} {array.shape}")
