"""One segmenter trained on pictures, and what it finds in others."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stage_rt.names import SegmenterName
from stage_rt.training.loop import Device

from .pictures import Pictures
from .segmenters import SEGMENTERS

AUXILIARY = 0.4
"""Weight of an auxiliary head's loss, as mmsegmentation has it."""
EXPOSURE = (0.85, 1.15)
"""Range of the factor that a picture's brightness is changed by in training."""
BATCH_OF_TEST = 16


@dataclass(frozen=True)
class Lesson:
    """How a segmenter is trained: which, for how many steps of how many pictures, at which peak learning rate."""

    segmenter: SegmenterName
    steps: int
    batch: int
    rate: float


@dataclass(frozen=True)
class Found:
    """What a segmenter says of pictures: ``classes`` uint8 ``[N, S, S]``, ``anomaly`` float16 of any defect there."""

    classes: NDArray[np.uint8]
    anomaly: NDArray[np.float16]


def learn(
    pictures: Pictures,
    classes: int,
    lesson: Lesson,
    seed: int,
    device: Device,
    progress: Callable[[float], None],
) -> nn.Module:
    """A segmenter of ``classes`` classes, trained on pictures drawn uniformly, mirrored and brightened at random.

    Cross entropy and soft Dice (Milletari et al., 3DV 2016) over the defect classes together, which counts small
    defects as much as large ones.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = device.place(SEGMENTERS[lesson.segmenter](classes)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lesson.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lesson.rate, lesson.steps)
    for step in range(lesson.steps):
        x, y = _batch(pictures, rng.integers(0, len(pictures), lesson.batch), rng)
        with device.precision():
            scores = network(x.to(device.device))
        heads = scores if isinstance(scores, list) else [scores]
        weights = [1.0, *[AUXILIARY] * (len(heads) - 1)]
        target = y.to(device.device)
        loss = sum(
            (weight * _loss(head.float(), target) for weight, head in zip(weights, heads, strict=True)),
            torch.zeros((), device=device.device),
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        progress((step + 1) / lesson.steps)
    return network.eval()


def _loss(scores: Tensor, target: Tensor) -> Tensor:
    shown = functional.one_hot(target, scores.shape[1]).permute(0, 3, 1, 2)[:, 1:].float()
    found = scores.softmax(dim=1)[:, 1:]
    both, either = (found * shown).sum(dim=(0, 2, 3)), (found + shown).sum(dim=(0, 2, 3))
    dice = 1 - ((2 * both + 1) / (either + 1)).mean()
    return functional.cross_entropy(scores, target) + dice


def _batch(pictures: Pictures, index: NDArray[np.integer], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Network inputs ``[B, 3, S, S]`` and classes ``[B, S, S]``, each picture mirrored and brightened on its own."""
    images, classes = pictures.images[index].astype(np.float32), pictures.classes[index].copy()
    images *= rng.uniform(*EXPOSURE, (len(index), 1, 1, 1)).astype(np.float32)
    for axis in (1, 2):
        turned = rng.random(len(index)) < 0.5
        images[turned], classes[turned] = np.flip(images[turned], axis), np.flip(classes[turned], axis)
    return inputs(images), torch.from_numpy(np.ascontiguousarray(classes)).long()


def inputs(images: NDArray[np.floating] | NDArray[np.uint8]) -> Tensor:
    """Levels 0 to 255 ``[B, S, S, 3]`` as a network is handed them, float32 ``[B, 3, S, S]`` in [-1, 1]."""
    scaled = np.asarray(images, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


@torch.no_grad()
def find(network: nn.Module, pictures: Pictures, device: Device) -> Found:
    """The class of every pixel and how likely any defect is there."""
    classes, anomaly = [], []
    for start in range(0, len(pictures), BATCH_OF_TEST):
        x = inputs(pictures.images[start : start + BATCH_OF_TEST]).to(device.device)
        with device.precision():
            likely = network(x).float().softmax(dim=1)
        classes.append(likely.argmax(dim=1).to(torch.uint8).cpu().numpy())
        anomaly.append((1 - likely[:, 0]).half().cpu().numpy())
    return Found(np.concatenate(classes), np.concatenate(anomaly))
