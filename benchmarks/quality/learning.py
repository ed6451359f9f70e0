"""One segmenter trained on pictures, and what it finds in others."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stage_rt.files import sha256
from stage_rt.names import SegmenterName
from stage_rt.training.loop import Device

from .pictures import Pictures
from .segmenters.calibrated import Calibrated
from .segmenters.encoder import load_encoder

AUXILIARY = 0.4
"""Weight of an auxiliary head's loss, as mmsegmentation has it."""
SCALES, BRIGHTNESS, CONTRAST = (0.75, 1.5), 32.0, (0.5, 1.5)
"""How crops are changed in training: factor of their size, and, as mmsegmentation does, for every other one levels
that are added and the factor of all levels. A tile is lit three times as brightly as another; but a line's camera
stands where it stands, and crops from half to twice the size take a lesson twice as long to learn."""
GOOD, AROUND = 1 / 3, 3 / 8
"""Shares of the crops of a batch: from good photographs, and of the others around a defect. A segmenter that sees
fewer empty surfaces beside painted pairs than beside real ones alone answers every dark edge with a defect, and a
comparison of the two measures that. With 3/4 around a few real defects they are learned by heart: whatever took their
place helped, pairs that show nothing under their labels most of all."""
DEFECT = 5
"""Weight of a defect's pixel in the cross entropy; scores are rid of it in the end (`Calibrated.bring`). With 1 a
type of few pixels was given up for good in two of 28 lessons."""
WEIGHT = 4
"""How many real defects the painted pairs of a type count for (`painted_shares`). With half of the crops painted
beside twelve real cracks these are learned less well, and any source harms; with a quarter beside three no source
teaches much."""
BATCH_OF_TEST = 16


@dataclass(frozen=True)
class Lesson:
    """How a segmenter is trained: which, for how many steps of how many crops, at which peak learning rate.

    ``crop`` is the side of the crops in pixels, ``encoder`` a file of trained weights to begin with. Crops are
    turned by quarters where ``turn`` is set (`stage_rt.quality.directions`).
    """

    segmenter: SegmenterName
    steps: int
    batch: int
    rate: float
    crop: int
    encoder: Path | None = None
    turn: bool = False

    @property
    def digest(self) -> str:
        """sha256 of all of it, the file's content in place of its name."""
        content = asdict(self) | {"encoder": self.encoder and sha256(self.encoder)}
        content |= {
            "scales": SCALES,
            "brightness": BRIGHTNESS,
            "contrast": CONTRAST,
            "shares": (GOOD, AROUND),
            "defect": DEFECT,
            "crops": "by type",
            "labels": "nearest, centred",
            "calibrated": True,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Found:
    """What a segmenter says of pictures: ``classes`` uint8 ``[N, S, S]``, ``anomaly`` float16, log odds."""

    classes: NDArray[np.uint8]
    anomaly: NDArray[np.float16]


def learn(
    parts: Sequence[Pictures],
    good: Pictures,
    shares: Sequence[float],
    painted: Sequence[float],
    lesson: Lesson,
    seed: int,
    device: Device,
    progress: Callable[[float], None],
) -> Calibrated:
    """A segmenter of as many classes as there are ``shares``, trained on crops that are mirrored, turned, scaled and
    lit otherwise at random.

    A share of every batch is of ``good`` photographs, the same whatever else is learned from. The other crops are of
    pictures that show a defect, of each type as often, from the labelled ``parts``: real pairs, painted ones, or real
    ones and then painted ones. Where both show a type, a share ``painted`` of its crops, one a type, is of painted
    pictures, so that many pairs do not crowd out real defects. `AROUND` of the crops lie around a labelled pixel,
    the others anywhere. Cross entropy and soft Dice (Milletari et al., 3DV 2016) over the defect classes together,
    which counts small defects as much as large ones.

    A lesson shows several times as many labelled pixels as photographs have. What it taught is brought to ``shares``,
    those of all pixels of defective photographs that each class has: without it a source of pairs is judged by how
    much of its pictures it labels.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = Calibrated(lesson.segmenter, len(shares))
    shown = np.zeros(len(shares))
    if lesson.encoder is not None:
        load_encoder(network.network, lesson.encoder)
    network = device.place(network).train()
    optimizer = torch.optim.AdamW(network.parameters(), lesson.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lesson.rate, lesson.steps)
    labelled = [_Labelled.of(pictures) for pictures in parts]
    for step in range(lesson.steps):
        x, y = _batch(labelled, good, painted, lesson, rng)
        shown += np.bincount(y.ravel(), minlength=len(shares))
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
    shown[1:] *= DEFECT
    network.bring(shown / shown.sum(), shares)
    return network.eval()


def painted_shares(defects: Sequence[int]) -> list[float]:
    """What share of each type's crops is painted beside so many real ``defects`` of it: `WEIGHT` to their number."""
    return [WEIGHT / (WEIGHT + number) for number in defects]


def shares_of(pictures: Pictures, classes: int) -> list[float]:
    """The share of the pixels of all ``pictures`` that each of the classes has."""
    counts = np.bincount(pictures.classes.ravel(), minlength=classes)
    return [float(count) / pictures.classes.size for count in counts]


def _loss(scores: Tensor, target: Tensor) -> Tensor:
    shown = functional.one_hot(target, scores.shape[1]).permute(0, 3, 1, 2)[:, 1:].float()
    found = scores.softmax(dim=1)[:, 1:]
    both, either = (found * shown).sum(dim=(0, 2, 3)), (found + shown).sum(dim=(0, 2, 3))
    dice = 1 - ((2 * both + 1) / (either + 1)).mean()
    weights = torch.full((scores.shape[1],), float(DEFECT), device=scores.device)
    weights[0] = 1
    return functional.cross_entropy(scores, target, weights) + dice


class _Labelled(NamedTuple):
    """Pictures, which of them show each class that there is, and the labelled pixels of each, ``[M, 2]``."""

    pictures: Pictures
    holding: Mapping[int, NDArray[np.integer]]
    pixels: Sequence[NDArray[np.integer]]

    @classmethod
    def of(cls, pictures: Pictures) -> "_Labelled":
        present = np.unique(pictures.classes).tolist()
        holding = {number: np.flatnonzero(pictures.showing(number)) for number in present if number}
        return cls(pictures, holding, [np.argwhere(label) for label in pictures.classes])


def _batch(
    parts: Sequence[_Labelled],
    good: Pictures,
    painted: Sequence[float],
    lesson: Lesson,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Network inputs ``[B, 3, s, s]`` and classes ``[B, s, s]``, each crop changed on its own."""
    crops = []
    classes = sorted(set().union(*(part.holding for part in parts)))
    empty = round(GOOD * lesson.batch) if len(good) else 0
    around = empty + round(AROUND * (lesson.batch - empty))
    for number in range(lesson.batch):
        if number < empty:
            crops.append(_crop(good, int(rng.integers(len(good))), lesson, rng, None))
            continue
        kind = classes[int(rng.integers(len(classes)))]
        showing = [part for part in parts if kind in part.holding]
        part = showing[-1 if rng.random() < painted[kind - 1] else 0]
        shown = int(rng.choice(part.holding[kind]))
        crops.append(
            _crop(part.pictures, shown, lesson, rng, part.pixels[shown] if number < around else None)
        )
    return inputs(np.stack([image for image, _ in crops])), torch.from_numpy(
        np.stack([label for _, label in crops])
    ).long()


def _crop(
    pictures: Pictures,
    number: int,
    lesson: Lesson,
    rng: np.random.Generator,
    around: NDArray[np.integer] | None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A crop of a picture and its label: at a random scale, mirrored, turned and in another light.

    It shows one of the pixels ``around``, ``[M, 2]``, or lies anywhere.
    """
    side = min(round(lesson.crop / np.exp(rng.uniform(*np.log(SCALES)))), pictures.classes.shape[1])
    window = _window(pictures.classes.shape[1], side, rng, around)
    image, label = _scaled(pictures.images[number][window], pictures.classes[number][window], lesson.crop)
    for axis in (0, 1):
        if rng.random() < 0.5:
            image, label = np.flip(image, axis), np.flip(label, axis)
    if lesson.turn and rng.random() < 0.5:
        image, label = np.rot90(image), np.rot90(label)
    return _lit(image, rng), label


def _scaled(
    image: NDArray[np.uint8], label: NDArray[np.uint8], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    def sized(array: NDArray[np.uint8], how: int) -> NDArray[np.uint8]:
        return np.asarray(cv2.resize(array, (side, side), interpolation=how), dtype=np.uint8)

    smooth = cv2.INTER_AREA if len(label) > side else cv2.INTER_LINEAR
    return sized(image, smooth), sized(label, cv2.INTER_NEAREST_EXACT)


def _lit(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Levels of a crop in another light, and as another camera would give them."""
    levels = image.astype(np.float32)
    if rng.random() < 0.5:
        levels = levels + np.float32(rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    if rng.random() < 0.5:
        levels = levels * np.float32(rng.uniform(*CONTRAST))
    return levels.clip(0, 255)


def _window(
    side: int, crop: int, rng: np.random.Generator, around: NDArray[np.integer] | None
) -> tuple[slice, slice]:
    """Where a crop of a picture of ``side`` pixels is: with one of the pixels ``around``, or anywhere."""
    span = side - crop
    corner = rng.integers(0, span + 1, 2)
    if around is not None:
        pixel = around[int(rng.integers(len(around)))]
        corner = np.clip(pixel - rng.integers(0, crop, 2), 0, span)
    top, left = corner.tolist()
    return slice(top, top + crop), slice(left, left + crop)


def inputs(images: NDArray[np.floating] | NDArray[np.uint8]) -> Tensor:
    """Levels 0 to 255 ``[B, S, S, 3]`` as a network is handed them, float32 ``[B, 3, S, S]`` in [-1, 1].

    Channels come last in memory, as convolutions on CPUs like it (a fifth of a step saved).
    """
    scaled = np.asarray(images, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(scaled).permute(0, 3, 1, 2)


@torch.no_grad()
def asked(
    network: nn.Module, pictures: Pictures, device: Device
) -> Iterator[tuple[slice, Tensor, NDArray[np.uint8]]]:
    """Which ``pictures`` each batch holds, its scores float32 ``[B, C, S, S]`` and classes ``[B, S, S]``."""
    for start in range(0, len(pictures), BATCH_OF_TEST):
        part = slice(start, start + BATCH_OF_TEST)
        with device.precision():
            scores = network(inputs(pictures.images[part]).to(device.device)).float()
        yield part, scores, scores.argmax(dim=1).to(torch.uint8).cpu().numpy()


@torch.no_grad()
def find(network: nn.Module, pictures: Pictures, device: Device) -> Found:
    """The class of every pixel and the log odds of any defect there."""
    classes, anomaly = [], []
    for _, said, found in asked(network, pictures, device):
        classes.append(found)
        # Probabilities near 1 are one number in half precision.
        anomaly.append((said[:, 1:].logsumexp(dim=1) - said[:, 0]).half().cpu().numpy())
    return Found(np.concatenate(classes), np.concatenate(anomaly))
