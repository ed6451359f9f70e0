"""Segmenters that were trained, and what they say, kept by their content.

A segmenter whose pictures, lesson and seed are the same is never trained again, however often the evaluation is cut
off or asked for more.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import nn

from stage_rt.files import write_atomic
from stage_rt.training.loop import Device

from . import metrics, realism
from .learning import Lesson, find, learn
from .metrics import Counts, Scores
from .pictures import Pictures
from .segmenters import SEGMENTERS

FORMAT = 1
"""Of what is kept; another one is computed anew."""


@dataclass(frozen=True)
class Figures:
    """Of one segmenter on the test: ``counts`` int64 ``[N, C, C]``, the anomaly channel's scores, and the classes
    uint8 ``[N, S, S]`` that it ``found``."""

    counts: Counts
    scores: Scores
    found: NDArray[np.uint8]


@dataclass(frozen=True)
class Opinion:
    """Of one segmenter on a source's pairs, by type: IoU with their labels, and how far they are from real ones."""

    iou: dict[str, float]
    distance: dict[str, realism.Distance]


@dataclass(frozen=True)
class Trials:
    """What all segmenters of an evaluation share; ``folder`` is where results are kept."""

    folder: Path
    types: list[str]
    lesson: Lesson
    test: Pictures
    device: Device = field(default_factory=Device.best)

    def figures(self, learned: Pictures, seed: int, progress: Callable[[float], None]) -> Figures:
        """Of the segmenter that learned these pictures, which is trained if it was not yet."""
        path = self._trained(learned, seed, progress)
        kept = json.loads(path.with_suffix(".json").read_text())
        with np.load(path.with_suffix(".npz")) as file:
            return Figures(np.array(kept["counts"], dtype=np.int64), Scores(*kept["scores"]), file["found"])

    def opinion(self, learned: Pictures, seed: int, source: Pictures) -> Opinion:
        """Of the segmenter that learned these pictures, on pairs of a source."""
        trained = self._trained(learned, seed, lambda share: None)
        path = trained.with_name(f"{trained.name}-{source.digest[:16]}.json")
        if not path.exists():
            network: nn.Module = SEGMENTERS[self.lesson.segmenter](self._classes)
            network.load_state_dict(load(trained.with_suffix(".safetensors").read_bytes()))
            write_atomic(path, json.dumps(self._look(self.device.place(network).eval(), source)).encode())
        kept = json.loads(path.read_text())
        distances = {kind: realism.Distance(*one) for kind, one in kept["distance"].items()}
        return Opinion(kept["iou"], distances)

    @property
    def _classes(self) -> int:
        return len(self.types) + 1

    def _trained(self, learned: Pictures, seed: int, progress: Callable[[float], None]) -> Path:
        """The stem of a segmenter's files; the JSON is written last."""
        key = {
            "format": FORMAT,
            "lesson": asdict(self.lesson),
            "seed": seed,
            "types": self.types,
            "learned": learned.digest,
            "tested": self.test.digest,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self.folder / digest[:32]
        if path.with_suffix(".json").exists():
            progress(1.0)
            return path
        network = learn(learned, self._classes, self.lesson, seed, self.device, progress)
        found = find(network, self.test, self.device)
        counts = metrics.confusion(found.classes, self.test.classes, self._classes)
        scores = metrics.scores(found.anomaly.astype(np.float32), self.test.classes > 0)
        shown = io.BytesIO()
        np.savez_compressed(shown, found=found.classes)
        self.folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        write_atomic(path.with_suffix(".safetensors"), save(weights))
        write_atomic(path.with_suffix(".npz"), shown.getvalue())
        kept = {"counts": counts.tolist(), "scores": scores}
        write_atomic(path.with_suffix(".json"), json.dumps(kept).encode())
        return path

    def _look(self, network: nn.Module, source: Pictures) -> dict[str, Any]:
        said = metrics.confusion(find(network, source, self.device).classes, source.classes, self._classes)
        each = metrics.iou(said.sum(axis=0))
        distance = {}
        for number, kind in enumerate(self.types, start=1):
            painted, real = (
                realism.features(
                    network, pictures.pick((pictures.classes == number).any(axis=(1, 2))), self.device
                )
                for pictures in (source, self.test)
            )
            distance[kind] = realism.compare(painted, real)
        return {
            "iou": {kind: float(each[n]) for n, kind in enumerate(self.types, start=1)},
            "distance": distance,
        }
