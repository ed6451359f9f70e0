"""What a finished model is asked for by default: guidance, rim and outset that look most real, and the least fill."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import wasserstein_distance

from stage_rt.recipe import Recipe
from stage_rt.spec import PromptDefaults

from . import outset, rim
from .data import Examples
from .denoiser import Latents
from .loop import Device, Report
from .presets import Trials
from .trial import Networks, Painter, Shown, Trial, Way

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
    painter = Painter(networks, latents, adapter_of, recipe, trials, seed, device)
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
        paint = partial(painter.paint, n, called=called)
        best, tried = _best(paint, real[n], recipe.guidance, reach=beyond[n])
        changes += [one.threshold for trial in tried for one in trial.figures]
        least = min(float(np.quantile([one.fill for one in best.trial.figures], LEAST_QUANTILE)), ENOUGH)
        defaults[examples.names[n]] = PromptDefaults(
            guidance=best.trial.way.guidance,
            outset=best.trial.way.outset,
            rim=best.rim,
            min_fill=round(least, 3),
        )
    return defaults, round(float(np.median(changes)), 1)


class _Best(NamedTuple):
    """What looks most real of all that was painted, and the rim that belongs to it."""

    trial: Trial
    rim: tuple[float, ...]


def _best(
    paint: Callable[[Way], Trial], real: Shown, own: float, *, reach: bool
) -> tuple[_Best, list[Trial]]:
    """What looks most like ``real`` defects of all that is tried, and everything that was painted.

    Defects that ``reach`` beyond their labels are painted with the cells around labels and without first, with the
    recipe's ``own`` guidance and no outset.
    """
    edge, looks = rim.mean_profile(real), _looks(real, reach=reach)

    def fade(trial: Trial) -> tuple[float, ...]:
        return rim.fading(edge, rim.mean_profile(trial.pairs)) if trial.way.wide else ()

    def judged(way: Way) -> tuple[float, Trial]:
        trial = paint(way)
        shown = trial.finished(fade(trial)) if reach else trial.pairs
        return distance(_looks(shown, reach=reach), looks), trial

    both = [judged(Way(own, wide=wide)) for wide in (False, True) if reach or not wide]
    first = min(both, key=lambda one: one[0])
    wide = first[1].way.wide
    ways = [Way(weight, beyond, wide) for weight, beyond in product(GUIDANCES, outset.TRIED)]
    others = [judged(way) for way in ways if way != first[1].way]
    tried = {trial.way: (away, trial) for away, trial in (first, *others)}
    best = tried[chosen({way: away for way, (away, _) in tried.items()}, first[1].way)][1]
    return _Best(best, fade(best)), [trial for _, trial in (*both, *others)]


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
