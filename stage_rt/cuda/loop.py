"""The sampling loop on the device: nothing is allocated, copied or waited for between the first step and the last."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stage_rt import batches
from stage_rt.cuda import device, plan
from stage_rt.cuda.plan import Kind
from stage_rt.cuda.slots import DeviceSlots
from stage_rt.estimator import Condition
from stage_rt.networks import DeviceBackend
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress, silent
from stage_rt.recipe import Branch, Recipe
from stage_rt.slots import Sampled
from stage_rt.spec import ModelSpec

Float32 = NDArray[np.float32]
Notify = Callable[[str], None]


class Loop:
    """The loop of one recipe at one batch size with one pair of adapters, all samples in lockstep.

    Equal counters are all it is: one graph a branch, and nothing copied once they are set (`cuda.slots`).

    Args:
        backend: where the networks come from.
        model: sizes of its latents.
        recipe: schedule, branch plan and guidances.
        adapter: which pair of adapters, None for the UNet's own estimate.
        batch: one of the engine's batch sizes.
        stream: what everything is launched in.
        notify: told, in one sentence, when steps are not replayed, or not to the bit.

    Raises:
        DeviceMemoryError: it does not fit.
        BackendError: a network or a kernel cannot be loaded or run.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        model: ModelSpec,
        recipe: Recipe,
        adapter: str | None,
        batch: int,
        stream: device.Stream,
        notify: Notify,
    ) -> None:
        self._recipe, self._adapter, self._batch = recipe, adapter, batch
        self._stretches = plan.stretches(len(recipe.coefficients))
        kinds = [Kind(each) for each in np.unique(plan.kinds(recipe, adapter is not None)).tolist()]
        self._slots = DeviceSlots(backend, model, recipe, adapter, batch, kinds, stream, notify)

    def run(
        self,
        clean: Float32,
        mask: Float32,
        context: Float32,
        noise: PhiloxNoise,
        progress: Progress = silent,
        *,
        surface: Float32 | None = None,
        label: Float32 | None = None,
    ) -> Sampled:
        """Sample up to ``batch`` latents (`stage_rt.sampler.sample`).

        Args:
            clean: float32 ``[B, C, h, w]``.
            mask: float32 ``[B, 1, h, w]``, 0 or 1.
            context: float32 ``[tokens, dim]``, the same for every sample.
            noise: the streams of the B samples.
            progress: told the share of the steps that are done, every `plan.PROGRESS_STEPS` steps.
            surface: the context of good surface, where the recipe weighs the prompt against it.
            label: what the adapters are handed in place of ``mask``.

        Raises:
            BackendError, DeviceMemoryError: the device failed.
        """
        told = mask if label is None else label
        whole = [
            batches.padded(each, self._batch) for each in (clean, mask, told, noise.seeds, noise.samples)
        ]
        condition = Condition(context, self._adapter, surface)
        streams = PhiloxNoise(whole[3].tolist(), whole[4].tolist())
        with device.active():
            try:
                counters = self._slots.fill(condition, whole[0], whole[1], whole[2], self._recipe, streams)
                done = None
                for stretch in self._stretches:
                    counters = self._slots.step(counters, stretch.steps)
                    if done is not None:
                        progress(done)
                    done = stretch.done
            finally:
                # Whatever went wrong, the buffers are free again only once the device is done with them.
                self._slots.wait()
            progress(self._stretches[-1].done)
            return self._slots.taken(slice(len(clean)))

    def enqueue_networks(self, branch: Branch) -> None:
        """Launch the networks of a branch's step and nothing else: what it costs at least."""
        surface = Kind.SURFACE if self._recipe.prompt_guidance != 1 else Kind(0)
        self._slots.enqueue_networks(surface | plan.OF[branch])

    def close(self) -> None:
        """Wait for what is running, then give graphs, memory and networks back, in that order; only once."""
        self._slots.close()
