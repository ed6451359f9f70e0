"""What a finished model is asked for by default: guidance, rim and outset that look most real, and the least fill."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import wasserstein_distance

from stage_rt.images.compose import composite
from stage_rt.images.inputs import grown
from stage_rt.images.labels import Figures, measure
from stage_rt.kernels.reference import guide
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.run.supply import Dice, placed
from stage_rt.sampler import Callback, Denoiser, sample
from stage_rt.spec import PromptDefaults

from . import outset, rim
from .adapter import MaskGuidanceAdapter
from .autoencoder import decode
from .data import Examples
from .denoiser import Contexts, Latents
from .folder import Autoencoder
from .loop import Device, Report, generator
from .presets import Trials

GUIDANCES = (1.0, 1.5, 2.0, 3.0)
"""Weights that are tried."""
HARDLY_WORSE = 1.05
"""Distances of a few pairs, under the same labels and with the same noise, are not surer than this."""
FINE = 2.0
"""Deviation of the blur that parts a defect's fine texture from its shading, in pixels of the network."""
LEAST_QUANTILE = 0.2
"""Quantile of the fill of those pairs that every pair is expected to reach, .."""
ENOUGH = 0.9
""".. and the most that is expected: to paint again for the last few pixels costs more than they are worth."""


Way = tuple[float, float]
"""A guidance and an outset."""

Shown = list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]
"""Images ``[c, S, S]`` and their labels ``[S, S]``."""


class Trial(NamedTuple):
    """What was painted on ``good`` surfaces with one guidance, and its figures; ``wide``: the cells around too."""

    good: list[NDArray[np.uint8]]
    pairs: Shown
    figures: list[Figures]
    wide: bool

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


def calibrate(
    networks: Networks,
    latents: Latents,
    adapter_of: dict[str, str | None],
    recipe: Recipe,
    trials: Trials,
    seed: int,
    device: Device,
    report: Report,
    *,
    reach: bool = False,
) -> tuple[dict[str, PromptDefaults], float]:
    """Paint defects of every prompt into good surface; the guidance that looks most real is chosen.

    For each guidance, with labels told of as they are and a little wider (`stage_rt.training.outset`), the
    distributions of figures over painted pairs are held against those over real ones (`_looks`). What has the least
    distance wins, or the recipe's own guidance without an outset where that is hardly worse. With ``reach``, where
    real defects go on beyond their labels and it looks more like them, the cells around are painted too, and how much
    of that is kept is measured (`stage_rt.training.rim`).

    Args:
        networks: the trained model.
        latents: the training set's latents.
        adapter_of: the adapters of each prompt.
        recipe: schedule and branches of the model.
        trials: how much is painted.
        seed: seed of the training.
        device: where the networks are.
        report: called after every call of the networks.
        reach: whether the cells around labels are tried too.

    Returns:
        The defaults of every prompt, and the model's ``round_trip``.
    """
    examples = latents.examples
    numbers = range(1, len(examples.names))
    real = {n: _shown(examples, torch.nonzero(examples.prompt == n).flatten()) for n in numbers}
    beyond = {n: reach and rim.reaches_beyond(rim.mean_profile(real[n])) for n in numbers}
    each = len(GUIDANCES) * len(outset.TRIED)
    calls, done = trials.calls * sum(each + beyond[n] for n in numbers), 0
    defaults, changes = {}, []

    def called(*_: object) -> None:
        nonlocal done
        done += 1
        report("calibration", done, calls, None)

    for n in numbers:
        prompt = examples.names[n]

        def painted(
            weight: float,
            wide: bool,
            beyond: float,
            number: int = n,
            adapter: str | None = adapter_of[prompt],
        ) -> Trial:
            own = recipe.guided(weight)
            return _painted(
                networks,
                latents,
                number,
                adapter,
                own,
                trials,
                seed,
                device,
                called,
                wide=wide,
                beyond=beyond,
            )

        best, tried = _best(painted, real[n], recipe.guidance, reach=beyond[n])
        changes += [one.threshold for trial in tried for one in trial.figures]
        least = min(float(np.quantile([one.fill for one in best.figures], LEAST_QUANTILE)), ENOUGH)
        defaults[prompt] = PromptDefaults(
            guidance=best.guidance, min_fill=round(least, 3), rim=best.rim, outset=best.outset
        )
    return defaults, round(float(np.median(changes)), 1)


class _Best(NamedTuple):
    """The guidance, rim and outset that look most real, and the figures of what was painted so."""

    guidance: float
    rim: tuple[float, ...]
    outset: float
    figures: list[Figures]


def _best(
    painted: Callable[[float, bool, float], Trial], real: Shown, own: float, *, reach: bool
) -> tuple[_Best, list[Trial]]:
    """What looks most like ``real`` defects of all that is tried, and everything that was painted.

    ``painted`` paints with a guidance, with the cells around labels or without, and with an outset. Defects that
    ``reach`` beyond their labels are tried both ways first, with the recipe's ``own`` guidance and no outset.
    """
    edge, looks = rim.mean_profile(real), _looks(real, reach=reach)

    def fade(trial: Trial) -> tuple[float, ...]:
        return rim.fading(edge, rim.mean_profile(trial.pairs)) if trial.wide else ()

    def judged(weight: float, wide: bool, beyond: float) -> tuple[float, Trial]:
        trial = painted(weight, wide, beyond)
        shown = trial.finished(fade(trial)) if reach else trial.pairs
        return distance(_looks(shown, reach=reach), looks), trial

    both = [judged(own, wide, 0.0) for wide in (False, True) if reach or not wide]
    first = min(both, key=lambda one: one[0])
    ways = [way for way in product(GUIDANCES, outset.TRIED) if way != (own, 0.0)]
    others = {way: judged(way[0], first[1].wide, way[1]) for way in ways}
    tried = {(own, 0.0): first, **others}
    weight, beyond = chosen({way: away for way, (away, _) in tried.items()}, (own, 0.0))
    best = tried[weight, beyond][1]
    return _Best(weight, fade(best), beyond, best.figures), [trial for _, trial in (*both, *others.values())]


def chosen(distances: Mapping[Way, float], own: Way) -> Way:
    """The way of least distance; the ``own`` one if its distance is at most `HARDLY_WORSE` times that."""
    best = min(distances, key=distances.__getitem__)
    return own if distances.get(own, np.inf) <= HARDLY_WORSE * distances[best] else best


def distance(painted: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    """Mean Wasserstein distance of two sets of figures ``[n, k]``, in deviations of the real ones."""
    spread = real.std(axis=0) + 1e-6
    return float(
        np.mean(
            [wasserstein_distance(p, r) for p, r in zip((painted / spread).T, (real / spread).T, strict=True)]
        )
    )


def appearance(image: NDArray[np.uint8], label: NDArray[np.bool_]) -> tuple[float, float, float]:
    """How a defect looks in an image ``[c, S, S]``: its mean less that of a ring around it, the same of its outermost
    pixels, and its fine texture.

    The texture is the deviation from a mean over `FINE` pixels: the deviation from the label's own mean would call a
    surface with a gradient across it textured, and praise paint that is merely uneven.
    """
    grey = image.mean(axis=0, dtype=np.float64)
    ring = ndimage.binary_dilation(label, iterations=12) & ~ndimage.binary_dilation(label, iterations=3)
    around = float(grey[ring].mean()) if ring.any() else float(grey.mean())
    weight = ndimage.gaussian_filter(label.astype(np.float64), FINE)
    smooth = ndimage.gaussian_filter(np.where(label, grey, 0.0), FINE) / np.maximum(weight, 1e-6)
    edge = grey[outset.outermost(label)].mean()
    return float(grey[label].mean()) - around, float(edge) - around, float((grey - smooth)[label].std())


def _looks(pairs: Shown, *, reach: bool) -> NDArray[np.float64]:
    """`appearance` of each, ``[n, 3]``, and if defects ``reach`` beyond their labels what is there, ``[n, 4]``."""
    looks = np.array([appearance(image, label) for image, label in pairs])
    if not reach:
        return looks
    edges = np.array([rim.profile(image, label)[1] for image, label in pairs])
    return np.column_stack([looks, np.nan_to_num(edges)])


def _shown(examples: Examples, index: torch.Tensor, most: int = 200) -> Shown:
    """Up to ``most`` examples with their labels; those whose label nobody sees are left out."""
    index = index[:: -(-len(index) // most)]
    pairs = zip(examples.images[index].numpy(), examples.labels[index].numpy(), strict=True)
    return [(image, label) for image, label in pairs if label.any()]


@torch.no_grad()
def _painted(
    networks: Networks,
    latents: Latents,
    number: int,
    adapter: str | None,
    recipe: Recipe,
    trials: Trials,
    seed: int,
    device: Device,
    called: Callback,
    *,
    wide: bool,
    beyond: float,
) -> Trial:
    """Pairs of prompt ``number``, under the same labels for all recipes; ``wide``: with the cells around them.

    ``beyond`` is the outset of labels, in pixels of the network.
    """
    examples, draws = latents.examples, generator(seed, "calibration", number)
    surface, mask_of = (examples.draw(trials.pairs, draws, prompt=prompt) for prompt in (0, number))
    clean = latents.mean(surface).numpy()
    labels = _unseen(examples.labels[mask_of].numpy(), seed)
    cells = examples.masks.shape[-1]
    told = np.stack([outset.told(label, beyond, cells) for label in labels])[:, None].astype(np.float32)
    masks = np.stack([grown(mask) for mask in told]) if wide else told
    denoise = _denoiser(networks, number, adapter, recipe.guidance, device)
    noise = PhiloxNoise([seed] * trials.pairs, range(trials.pairs))
    shorter: dict[str, Any] = {"recipe": recipe.respaced(trials.calls), "noise": noise, "callback": called}
    latent = sample(denoise, clean, masks, label=told, **shorter)
    images = decode(networks.vae, torch.from_numpy(latent), device).numpy()
    before = examples.images[surface].numpy()
    figures = [
        measure(_rgb(good), _rgb(image), label, cells)
        for good, image, label in zip(before, images, labels, strict=True)
    ]
    return Trial(list(before), list(zip(images, labels, strict=True)), figures, wide)


def _unseen(labels: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
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


def _denoiser(
    networks: Networks, number: int, adapter: str | None, weight: float, device: Device
) -> Denoiser:
    pair = networks.adapters[adapter] if adapter else None

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
