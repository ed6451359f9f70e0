"""How far painted defects are from real ones in the features of a segmenter that learned real ones alone."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stage_rt.training.loop import Device

from .learning import asked
from .pictures import Pictures

HALVES = 50
"""How often the real defects are halved for the noise floor."""

Floats = NDArray[np.float64]
Numbers = NDArray[np.integer]


class Distance(NamedTuple):
    """Kernel distance of painted from real defects, and ``floor``, its 95th percentile between halves of the real."""

    distance: float
    floor: float


class Seen(NamedTuple):
    """What a segmenter says of pictures: ``classes`` uint8 ``[N, S, S]``, and ``features`` float64 ``[N, d]``.

    The features are what goes into its last layer, in the mean under each picture's labels; 0 where there are none.
    """

    classes: NDArray[np.uint8]
    features: Floats


@torch.no_grad()
def look(network: nn.Module, pictures: Pictures, device: Device) -> Seen:
    """Classes and features of ``pictures`` in one pass."""
    kept: list[Tensor] = []
    last: nn.Module = network.last  # type: ignore[assignment]  # PyTorch types attributes as tensors
    handle = last.register_forward_hook(lambda _, given, __: kept.append(given[0].float()))
    classes, rows = [], []
    try:
        for part, _, found in asked(network, pictures, device):
            classes.append(found)
            seen = kept.pop()
            label = torch.from_numpy(pictures.classes[part] > 0).float()[:, None].to(seen.device)
            share = functional.interpolate(label, seen.shape[-2:], mode="area")
            mean = (seen * share).sum(dim=(2, 3)) / share.sum(dim=(2, 3)).clamp(min=1e-6)
            rows.append(mean.cpu().double().numpy())
    finally:
        handle.remove()
    return Seen(np.concatenate(classes), np.concatenate(rows))


def compare(painted: Floats, real: Floats, subjects: Numbers, seed: int = 0) -> Distance:
    """Features ``[n, d]`` of painted defects against those ``[m, d]`` of real ones, in deviations of both together.

    Features that no real defect has would have no deviation of their own. ``subjects`` ``[m]`` are numbers of the
    real defects: photographs of one are alike for another reason than that both are real, and are of one half.
    """
    rng = np.random.default_rng(seed)
    both = np.concatenate([painted, real])
    mean, spread = both.mean(axis=0), both.std(axis=0) + 1e-6
    painted, real = (painted - mean) / spread, (real - mean) / spread
    floors = []
    for _ in range(HALVES):
        half = np.isin(subjects, rng.permutation(np.unique(subjects))[::2])
        floors.append(kid(real[half], real[~half], subjects[half], subjects[~half]))
    return Distance(kid(painted, real, np.arange(len(painted)), subjects), float(np.quantile(floors, 0.95)))


def kid(first: Floats, second: Floats, of_first: Numbers, of_second: Numbers) -> float:
    """Unbiased squared maximum mean discrepancy with the cubic kernel of KID (Binkowski et al., ICLR 2018).

    Two features ``of`` one subject are not independent, and within a side only those of two are compared; nan where a
    side has fewer than two subjects.
    """
    if min(len(set(of.tolist())) for of in (of_first, of_second)) < 2:
        return float("nan")
    within = _within(first, of_first) + _within(second, of_second)
    return float(within - 2 * _kernel(first, second).mean())


def _within(features: Floats, subjects: Numbers) -> float:
    apart = subjects[:, None] != subjects
    return float(_kernel(features, features)[apart].mean())


def _kernel(a: Floats, b: Floats) -> Floats:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)
