"""Segmenters that were trained, and what they say, kept by their content.

A segmenter whose pictures, lesson, seed and arithmetic are the same is never trained again, however often the
evaluation is cut off or asked for more; on another test it is only tested again.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import nn

from stage_rt.errors import StageError
from stage_rt.files import write_atomic
from stage_rt.machine import cores
from stage_rt.training.loop import Device

from . import metrics, realism
from .learning import Found, Lesson, find, learn
from .metrics import Counts, Scores
from .pictures import Pictures
from .segmenters.calibrated import Calibrated
from .side_by_side import one_thread, side_by_side

FORMAT = 4
"""Of what is kept; another one is computed anew."""
FIGURES, OPINION, LEARNED, WHOLE = "-figures", "-by-defect", "-learned", "-defects-found"
"""What a segmenter was asked, at the end of the files' names."""


@dataclass(frozen=True)
class Figures:
    """Of one segmenter on the test: ``counts`` int64 ``[N, C, C]``, the anomaly channel's scores, and the file with
    the classes that it found, which of all segmenters together take gigabytes."""

    counts: Counts
    scores: Scores
    answers: Path

    def found(self, pictures: Sequence[int]) -> NDArray[np.uint8]:
        """The classes uint8 ``[n, S, S]`` that it found on some ``pictures`` of the test."""
        with np.load(self.answers) as file:
            classes: NDArray[np.uint8] = file["found"][list(pictures)]
        return classes


@dataclass(frozen=True)
class Opinion:
    """Of one segmenter on a source's pairs, by type: IoU with their labels, and how far they are from real ones."""

    iou: dict[str, float]
    distance: dict[str, realism.Distance]


@dataclass(frozen=True)
class Job:
    """One segmenter to be trained: the row it is of, the parts it learns, and its seed."""

    name: str
    parts: Sequence[Pictures]
    seed: int


@dataclass(frozen=True)
class Trials:
    """What all segmenters of an evaluation share: ``good`` photographs, which all learn from too, and the ``test``.

    ``shares`` of pixels that each class has in defective photographs, and the shares of each type's crops that are
    ``painted`` where there are real ones too, are the same for all rows; ``folder`` is where results are kept.
    ``subjects`` are numbers of what the pictures of the test show.
    """

    folder: Path
    types: list[str]
    lesson: Lesson
    shares: list[float]
    painted: list[float]
    good: Pictures
    test: Pictures
    subjects: NDArray[np.integer]
    device: Device = field(default_factory=Device.best)

    def train(self, jobs: Sequence[Job], progress: Callable[[float, str], None]) -> None:
        """Train the segmenters that were not yet: on CPUs one a core at once, on a GPU one after another.

        Args:
            jobs: what they learn.
            progress: told the share that is done and what was learned last.

        Raises:
            StageError: a file cannot be written, or a process was killed.
        """
        missing = list({path: job for job in jobs if not (path := self._tested(job)).exists()}.values())
        before, workers = len(jobs) - len(missing), min(len(missing), self._at_once)
        if workers > 1:
            for done, job in enumerate(
                side_by_side(partial(_learn, self), missing, workers), start=before + 1
            ):
                progress(done / len(jobs), job.name)
        else:
            for done, job in enumerate(missing, start=before):

                def learning(share: float, done: int = done, name: str = job.name) -> None:
                    progress((done + share) / len(jobs), name)

                self.learn(job, learning)

    def figures(self, job: Job) -> Figures:
        """Of a segmenter that was trained."""
        path = self._tested(job)
        kept = json.loads(path.read_text())
        counts = np.array(kept["counts"], dtype=np.int64)
        return Figures(counts, Scores(*kept["scores"]), path.with_suffix(".npz"))

    def opinions(self, jobs: Sequence[Job], sources: Sequence[Pictures]) -> list[list[Opinion]]:
        """Of segmenters that were trained, on the pairs of every source: a list a source, one a segmenter.

        Raises:
            StageError: as `train`.
        """
        missing = [
            job for job in jobs if not all(self._opinion_file(job, source).exists() for source in sources)
        ]
        asked = partial(self.ask, sources=sources)
        if (workers := min(len(missing), self._at_once)) > 1:
            for _ in side_by_side(asked, missing, workers):
                pass
        else:
            for job in missing:
                asked(job)
        return [[self._opinion(job, source) for job in jobs] for source in sources]

    def ask(self, job: Job, sources: Sequence[Pictures]) -> None:
        """Keep what a segmenter that was trained says of the pairs of every source."""
        network = self._network(job)
        real = realism.look(network, self.test, self.device).features
        for source in sources:
            if not (path := self._opinion_file(job, source)).exists():
                write_atomic(path, json.dumps(self._look(network, source, real)).encode())

    def fit(self, job: Job, learned: Pictures) -> dict[str, float]:
        """IoU by type of a segmenter that was trained on pictures that it learned; kept too."""
        path = self._about(job, learned.digest, LEARNED)
        if not path.exists():
            each = self._iou(find(self._network(job), learned, self.device).classes, learned)
            write_atomic(path, json.dumps(self._by_type(each)).encode())
        fits: dict[str, float] = json.loads(path.read_text())
        return fits

    def defects_found(self, job: Job) -> metrics.Floats:
        """Of a segmenter that was trained; kept too. See `stage_rt.quality.metrics.defects_found`."""
        path = self._whole(job)
        if not path.exists():
            self._keep_whole(path, find(self._network(job), self.test, self.device))
        return np.array(json.loads(path.read_text()), dtype=np.float64)

    def _keep_whole(self, path: Path, found: Found) -> None:
        shares = metrics.defects_found(found.anomaly, self.test.classes, self.subjects, self._classes)
        write_atomic(path, json.dumps(shares.tolist()).encode())

    def _whole(self, job: Job) -> Path:
        """The file of the defects that a segmenter found."""
        return self._about(job, self._defects_of_test, WHOLE)

    def _tested(self, job: Job) -> Path:
        """The file of a segmenter's figures on the test, written last."""
        return self._about(job, self.test.digest, FIGURES)

    def _opinion_file(self, job: Job, source: Pictures) -> Path:
        return self._about(job, self._defects_of_test + source.digest, OPINION)

    @property
    def _defects_of_test(self) -> str:
        """Digest of the test's pictures and of which of them show the same: the pictures alone do not tell."""
        numbers = np.asarray(self.subjects, dtype=np.int64)
        return self.test.digest + hashlib.sha256(numbers.tobytes()).hexdigest()

    def _network(self, job: Job) -> nn.Module:
        network = Calibrated(self.lesson.segmenter, self._classes)
        network.load_state_dict(load(self._weights(job).read_bytes()))
        return self.device.place(network).eval()

    def _about(self, job: Job, content: str, about: str) -> Path:
        """The file of what a segmenter says, asked ``about`` what has that content."""
        digest = hashlib.sha256(content.encode()).hexdigest()
        return self.folder / f"{self._name(job)}-{digest[:16]}{about}.json"

    def _opinion(self, job: Job, source: Pictures) -> Opinion:
        kept = json.loads(self._opinion_file(job, source).read_text())
        distances = {kind: realism.Distance(*one) for kind, one in kept["distance"].items()}
        return Opinion(kept["iou"], distances)

    @property
    def _at_once(self) -> int:
        return cores() if self.device.device.type == "cpu" else 1

    @property
    def _classes(self) -> int:
        return len(self.shares)

    def _name(self, job: Job) -> str:
        """What a segmenter's files are called: all that its weights follow from."""
        key = {
            "format": FORMAT,
            "lesson": self.lesson.digest,
            "seed": job.seed,
            "types": self.types,
            "shares": self.shares,
            "painted": self.painted,
            "learned": [part.digest for part in (*job.parts, self.good)],
            "arithmetic": [torch.__version__, self.device.device.type, self.device.autocast],
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]

    def _weights(self, job: Job) -> Path:
        return self.folder / f"{self._name(job)}.safetensors"

    def learn(self, job: Job, progress: Callable[[float], None]) -> None:
        """Train one segmenter unless it was, test it and keep both.

        Raises:
            StageError: a file cannot be written, or what the segmenter says is not finite; then it is not kept.
        """
        with one_thread():
            trained = self._weights(job).exists()
            network = self._network(job) if trained else self._learned(job, progress)
            found = find(network, self.test, self.device)
        if not np.isfinite(found.anomaly).all():
            self._weights(job).unlink()
            raise StageError(
                f"the segmenter that learned {job.name!r} (seed {job.seed}) came out non-finite",
                "give another `--segmenter`, or another `--encoder` if you gave one",
            )
        counts = metrics.confusion(found.classes, self.test.classes, self._classes)
        scores = metrics.scores(found.anomaly, self.test.classes > 0)
        shown = io.BytesIO()
        np.savez_compressed(shown, found=found.classes)
        path = self._tested(job)
        write_atomic(path.with_suffix(".npz"), shown.getvalue())
        self._keep_whole(self._whole(job), found)
        write_atomic(path, json.dumps({"counts": counts.tolist(), "scores": scores}).encode())

    def _learned(self, job: Job, progress: Callable[[float], None]) -> nn.Module:
        network = learn(
            job.parts, self.good, self.shares, self.painted, self.lesson, job.seed, self.device, progress
        )
        weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        write_atomic(self._weights(job), save(weights))
        return network

    def _iou(self, found: NDArray[np.uint8], pictures: Pictures) -> NDArray[np.float64]:
        return metrics.iou(metrics.confusion(found, pictures.classes, self._classes).sum(axis=0))

    def _by_type(self, each: NDArray[np.float64]) -> dict[str, float]:
        return {kind: float(each[number]) for number, kind in enumerate(self.types, start=1)}

    def _look(self, network: nn.Module, source: Pictures, real: realism.Floats) -> dict[str, Any]:
        """IoU by type, and how far the source's defects are from those of the test, whose features are ``real``."""
        seen = realism.look(network, source, self.device)
        distance = {}
        for number, kind in enumerate(self.types, start=1):
            shown = self.test.showing(number)
            painted = seen.features[source.showing(number)]
            distance[kind] = realism.compare(painted, real[shown], self.subjects[shown])
        return {"iou": self._by_type(self._iou(seen.classes, source)), "distance": distance}


def _learn(trials: Trials, job: Job) -> None:
    trials.learn(job, lambda share: None)
