"""An engine in use: what it is asked for is checked here, then encoded, sampled and decoded by its executor."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import EngineError, FailedSamplesError, InputError, PromptError
from stage_rt.estimator import Condition
from stage_rt.executor import Executor, Painted, finite
from stage_rt.method import method_of
from stage_rt.names import SamplerName, ViewName
from stage_rt.noise import PhiloxNoise, stream
from stage_rt.progress import Progress, portion, silent
from stage_rt.recipe import Recipe
from stage_rt.sampler import check_inputs, untouched
from stage_rt.samplers import check_sampler, recipe_of, steps_of
from stage_rt.slots import Slots
from stage_rt.spec import EngineSpec
from stage_rt.strokes import Piece, divide, paint_pieces, pasted_into

Float32 = NDArray[np.float32]

LOGVAR_RANGE = (-30.0, 20.0)
"""The authors clamp the log variance of the encoder's posterior to this."""


class Engine:
    """A compiled model; made by `stage_rt.load`.

    ``spec`` is the engine's description, ``prompts`` the sorted names of what it can paint. An engine belongs to the
    process that loaded it; after `close` it cannot be used.
    """

    def __init__(self, spec: EngineSpec, executor: Executor, contexts: dict[str, Float32]) -> None:
        self.spec = spec
        self.prompts = sorted(spec.model.prompts)
        self._executor = executor
        self._contexts = contexts
        self._process = os.getpid()
        self._closed = False

    @property
    def executor(self) -> Executor:
        """What runs the networks."""
        return self._executor

    def over(self, executor: Executor) -> "Engine":
        """This engine on another executor of the same networks, as one that shares them out."""
        return Engine(self.spec, executor, self._contexts)

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
        steps: int | None = None,
        view: ViewName | None = None,
        progress: Progress = silent,
    ) -> NDArray[np.uint8]:
        """Paint a defect into photographs, under their masks.

        A pair is what ``stage-rt synth`` paints of that photograph, mask and prompt as the first one of a run of its
        seed: with what was measured for the prompt, labels that were painted too little once more. More samples than
        the engine's largest batch are painted in several batches.

        Args:
            images: uint8 ``[B, H, W, 3]``.
            masks: bool or uint8 ``[B, H, W]``, not 0 where the defect shall be.
            prompt: what to paint, one of ``prompts``.
            seeds: one integer below 2**64 a sample; the same seed gives the same noise.
            composite: keep the photograph's own size, and its own pixels beyond the mask and the prompt's rim; of
                photographs painted whole, beyond a narrow feather around it.
            sampler, steps: as `paint`.
            recipe: schedule and branch plan in place of the model's own, without the guidance and the outset that
                were measured with that.
            view: paint whole photographs, or squares around the defects; as the model was trained if None.
            progress: told the share of all sampling that is done.

        Returns:
            uint8 ``[B, H, W, 3]``; without ``composite`` the decoded images, ``[B, S, S, 3]``.

        Raises:
            InputError: shapes, dtypes, the sampler's name or its steps are wrong, or squares are not composited.
            PromptError: the model does not know ``prompt``.
            EngineError: the engine is closed or of another process.
            BackendError: the inference library failed.
            FailedSamplesError: a sample came out non-finite; `paint` says which and keeps the others.
        """
        noise = PhiloxNoise(seeds)
        labels, model = _labels(images, masks, noise), self.spec.model
        self.condition(prompt)
        if recipe is not None:
            _require("recipe", recipe, Recipe)
        method = method_of(
            model,
            prompt,
            sampler=sampler,
            recipe=recipe,
            steps=steps,
            # One that is handed over says all of it.
            prompt_guidance=None if recipe is None else recipe.prompt_guidance,
            view=view,
        )
        if method.region and not composite:
            raise InputError('squares around defects cannot be had without compositing: use `view="whole"`')
        pieces = divide(list(images), list(labels), model, method)

        def streams(piece: Piece, attempt: int) -> tuple[int, int]:
            return int(noise.seeds[piece.place]), stream(0, piece.number, attempt)

        size = max(self.spec.batch)
        strokes = paint_pieces(self, pieces, method, streams=streams, size=size, progress=progress)()
        failed = {piece.place for piece, one in zip(pieces, strokes, strict=True) if one.levels is None}
        if failed:
            raise FailedSamplesError(
                f"samples {sorted(failed)} came out non-finite: use another seed or an fp32 engine"
            )
        if not composite:
            return np.stack([stroke.levels for stroke in strokes if stroke.levels is not None])
        result = []
        for place, photo in enumerate(images):
            mine = [number for number, piece in enumerate(pieces) if piece.place == place]
            own, done = [pieces[number] for number in mine], [strokes[number] for number in mine]
            result.append(pasted_into(photo, own, done, model, method))
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
        steps: int | None = None,
        progress: Progress = silent,
        labels: Float32 | None = None,
    ) -> Painted:
        """Encode, sample and decode one batch, as `stage_rt.images.inputs` prepares it.

        Samples with an empty mask take no part in STAGE's loop: no network has a say in their latent.

        Args:
            images: float32 ``[B, c, S, S]`` in [-1, 1].
            masks: float32 ``[B, 1, h, w]``, 0 or 1.
            prompt: what to paint, one of ``prompts``.
            noise: the streams of the B samples.
            sampler: the way from noise to the latent, one of `stage_rt.samplers.SAMPLERS`.
            recipe: schedule and branch plan, the model's own if None.
            steps: how many levels the sampler visits, its own number if None; 10 to 1000 for a schedule of 1000.
            progress: told the share of the batch's sampling that is done.
            labels: the masks that adapters are handed, as ``masks`` and within them, where more is painted than them.

        Raises:
            InputError, PromptError, EngineError, BackendError: as `synthesize`.
        """
        self._check_usable()
        model = self.spec.model
        condition = self.condition(prompt)
        check_sampler(sampler, model)
        recipe = recipe_of(sampler, model.recipe) if recipe is None else recipe
        _require("recipe", recipe, Recipe)
        model.check(recipe)
        _require("noise", noise, PhiloxNoise)
        steps, count = steps_of(sampler, recipe, steps), len(noise.seeds)
        _check("images", images, (count, model.image_channels, model.image_size, model.image_size))
        cells = (count, 1, model.latent_size, model.latent_size)
        _check("masks", masks, cells)
        if labels is not None:
            _check("labels", labels, cells)
        clean_noise = noise.encode((count, model.latent_channels, model.latent_size, model.latent_size))
        latent = self.encode(images, clean_noise)
        usable, filled = finite(latent), masks.any(axis=(1, 2, 3))
        done = 0.0
        for part in (usable & filled, usable & ~filled):
            if not part.any():
                continue
            clean, mask, streams = latent[part], masks[part], noise.select(part)
            label = None if labels is None else labels[part]
            share = done + float(part.sum() / usable.sum())
            if sampler == "stage" and not mask.any():
                latent[part] = untouched(clean, mask, recipe=recipe, noise=streams)
            else:
                check_inputs(clean, mask, label)
                latent[part] = self._executor.sample(
                    condition,
                    clean,
                    mask,
                    label=label,
                    sampler=sampler,
                    recipe=recipe,
                    steps=steps,
                    noise=streams,
                    progress=portion(progress, done, share),
                )
            done = share
        return self._executor.decode(self._unscaled(latent))

    def encode(self, images: Float32, noise: Float32) -> Float32:
        """The clean latent: a sample of the encoder's posterior times the latent scale.

        ``images`` float32 ``[B, c, S, S]`` and standard normal ``noise`` ``[B, C, h, w]`` to ``[B, C, h, w]``.

        Raises:
            EngineError, BackendError: as `synthesize`.
        """
        self._check_usable()
        mean, logvar = np.split(self._executor.encode(images), 2, axis=1)
        deviation = np.exp(0.5 * np.clip(logvar, *LOGVAR_RANGE))
        clean: Float32 = np.float32(self.spec.model.latent_scale) * (mean + deviation * noise)
        return clean

    def decode(self, latent: Float32) -> Float32:
        """Latents ``[B, C, h, w]`` to images float32 ``[B, c, S, S]``, about [-1, 1].

        Raises:
            EngineError, BackendError: as `synthesize`.
        """
        self._check_usable()
        return self._executor.decode(self._unscaled(latent)).images

    def slots(self, prompt: str, size: int) -> Slots:
        """A batch whose samples stand at steps of their own, in STAGE's loop, for all prompts with these adapters.

        ``size`` is one of the engine's batch sizes. One thread at a time uses it.

        Raises:
            InputError: the engine was not built for ``size``, or its adapters are not STAGE's.
            PromptError: the model does not know ``prompt``.
            EngineError, BackendError: as `synthesize`.
            DeviceMemoryError: it does not fit beside what is there.
        """
        self._check_usable()
        check_sampler("stage", self.spec.model)
        if size not in self.spec.batch:
            sizes = ", ".join(map(str, self.spec.batch))
            raise InputError(f"the engine was not built for a batch of {size}: use one of {sizes}")
        return self._executor.slots(self.condition(prompt).adapter, size)

    def condition(self, prompt: str) -> Condition:
        """What ``prompt`` is to the networks.

        Raises:
            PromptError: the model does not know it.
        """
        model = self.spec.model
        if not isinstance(prompt, str) or prompt not in model.prompts:
            raise PromptError(f"unknown prompt {prompt!r}: use one of {', '.join(self.prompts)}")
        surface = self._contexts[model.surface] if model.surface else None
        return Condition(self._contexts[prompt], model.prompts[prompt], surface)

    def close(self) -> None:
        """Give the networks' memory back; a second time nothing is left to be done."""
        # What a forked child holds of a device or of threads is the parent's to give back.
        closed, self._closed = self._closed, True
        if not closed and self._process == os.getpid():
            self._executor.close()

    def _unscaled(self, latent: Float32) -> Float32:
        return latent / np.float32(self.spec.model.latent_scale)

    def _check_usable(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed: load it again with `stage_rt.load`")
        if self._process != os.getpid():
            raise EngineError(
                "the engine was loaded before `os.fork`, and its threads and devices stayed with the parent process: "
                "load it in the child with `stage_rt.load`"
            )


def _require(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InputError(
            f"`{name}` must be a `{kind.__module__}.{kind.__name__}`, got {type(value).__name__}"
        )


def _labels(images: NDArray[Any], masks: NDArray[Any], noise: PhiloxNoise) -> NDArray[np.bool_]:
    _require("images", images, np.ndarray)
    _require("masks", masks, np.ndarray)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise InputError(f"`images` must be uint8 of shape [B, H, W, 3], got {images.dtype} {images.shape}")
    if masks.shape != images.shape[:3] or masks.dtype not in (np.bool_, np.uint8):
        raise InputError(
            f"`masks` must be bool or uint8 of shape {images.shape[:3]}, got {masks.dtype} {masks.shape}"
        )
    if not len(images):
        raise InputError("`images` holds none: give one image a sample")
    if len(noise.seeds) != len(images):
        raise InputError(
            f"`seeds` must hold one integer a sample, got {len(noise.seeds)} for {len(images)} images"
        )
    return np.asarray(masks != 0)


def _check(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    _require(name, array, np.ndarray)
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(f"`{name}` must be float32 of shape {shape}, got {array.dtype} {array.shape}")
