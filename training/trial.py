"""What a finished model paints on good surface, when it is made, to be held against real defects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray

from stage_rt.images.compose import composite
from stage_rt.images.inputs import grown
from stage_rt.images.labels import Figures, measure
from stage_rt.kernels.reference import guide
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.run.supply import Dice, placed
from stage_rt.sampler import Callback, Denoiser, sample

from . import outset
from .adapter import MaskGuidanceAdapter
from .autoencoder import decode
from .denoiser import Contexts, Latents
from .folder import Autoencoder
from .loop import Device, generator
from .presets import Trials

Shown = list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]
"""Images ``[c, S, S]`` and their labels ``[S, S]``."""


class Way(NamedTuple):
    """How a prompt is painted: the weight of the adapters, how much wider than they are the networks are told that
    labels reach, in their pixels, and whether the cells around labels are painted too."""

    guidance: float
    outset: float = 0.0
    wide: bool = False


class Trial(NamedTuple):
    """What was painted in one ``way`` on ``good`` surfaces, and its figures."""

    way: Way
    good: list[NDArray[np.uint8]]
    pairs: Shown
    figures: list[Figures]

    def finished(self, fading: Sequence[float]) -> Shown:
        """The pairs as a run hands them over, with the paint put into the good surface."""
        return [
            (_put(good, image, label, fading), label)
            for good, (image, label) in zip(self.good, self.pairs, strict=True)
        ]


class Networks(NamedTuple):
    """A model's trained networks, in eval mode on their device."""

    unet: UNet2DConditionModel
    vae: Autoencoder
    adapters: dict[str, dict[Branch, MaskGuidanceAdapter]]
    contexts: Contexts


@dataclass(frozen=True)
class Painter:
    """A trained model at work: ``latents`` of its training set, the adapters of each prompt, schedule and branches of
    its recipe, how much is painted and the seed of the training."""

    networks: Networks
    latents: Latents
    adapter_of: Mapping[str, str | None]
    recipe: Recipe
    trials: Trials
    seed: int
    device: Device

    @torch.no_grad()
    def paint(self, number: int, way: Way, called: Callback) -> Trial:
        """Pairs of prompt ``number``, under the same labels with the same noise in whatever way."""
        examples, draws = self.latents.examples, generator(self.seed, "calibration", number)
        pairs = self.trials.pairs
        surface, mask_of = (examples.draw(pairs, draws, prompt=prompt) for prompt in (0, number))
        clean = self.latents.mean(surface).numpy()
        labels = unseen(examples.labels[mask_of].numpy(), self.seed)
        cells = examples.masks.shape[-1]
        told = np.stack([outset.told(label, way.outset, cells) for label in labels])[:, None]
        told = told.astype(np.float32)
        masks = np.stack([grown(mask) for mask in told]) if way.wide else told
        shorter: dict[str, Any] = {
            "recipe": self.recipe.guided(way.guidance).respaced(self.trials.calls),
            "noise": PhiloxNoise([self.seed] * pairs, range(pairs)),
            "callback": called,
        }
        latent = sample(self._denoiser(number, way.guidance), clean, masks, label=told, **shorter)
        images = decode(self.networks.vae, torch.from_numpy(latent), self.device).numpy()
        before = examples.images[surface].numpy()
        figures = [
            measure(_rgb(good), _rgb(image), label, cells)
            for good, image, label in zip(before, images, labels, strict=True)
        ]
        return Trial(way, list(before), list(zip(images, labels, strict=True)), figures)

    def _denoiser(self, number: int, weight: float) -> Denoiser:
        adapter = self.adapter_of[self.latents.examples.names[number]]
        pair = self.networks.adapters[adapter] if adapter else None
        device, networks = self.device, self.networks

        def on_device(array: NDArray[np.float32]) -> torch.Tensor:
            return torch.from_numpy(array).to(device.device)

        def denoise(
            x: NDArray[np.float32], i: int, mask: NDArray[np.float32], branch: Branch
        ) -> NDArray[np.float32]:
            names = torch.full((len(x),), number, device=device.device)
            with device.precision():
                eps = networks.unet(on_device(x), i, networks.contexts(names)).sample.float()
                guided = pair[branch](eps, on_device(mask)).float() if pair else eps
            return guide(eps.cpu().numpy(), guided.cpu().numpy(), weight)

        return denoise


def unseen(labels: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Labels ``[n, S, S]`` that training never showed, made of its own as ``--augment-masks`` makes them.

    Under those it showed a small model paints what it remembers, plainer than what users will get.
    """
    everywhere = np.ones(labels.shape[1:], dtype=np.bool_)
    return np.stack([placed(label, everywhere, Dice(seed, n)) for n, label in enumerate(labels)])


def _put(
    good: NDArray[np.uint8], image: NDArray[np.uint8], label: NDArray[np.bool_], fading: Sequence[float]
) -> NDArray[np.uint8]:
    """The paint of an image in the good one, both ``[c, S, S]``."""
    whole = composite(_rgb(good), _rgb(image), label, exact=True, rim=fading)
    return whole.transpose(2, 0, 1)[: len(good)]


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)))
