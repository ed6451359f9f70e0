"""One training stage: AdamW with warm-up and cosine decay, seeded per step, resumable, losses on disk."""

import csv
import hashlib
import io
import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stage_rt.errors import ModelError
from stage_rt.files import write_atomic

from .presets import Stage

WARMUP_STEPS = 100
CHECKPOINT_SECONDS = 60.0
LOSS_EVERY = 10

Network = TypeVar("Network", bound=nn.Module)
Report = Callable[[str, int, int, float | None], None]
"""Called as ``report(stage, step, steps, loss)`` after every step; what has no loss says None."""


@dataclass(frozen=True)
class Device:
    """Where and in which precision a stage runs."""

    device: torch.device
    autocast: bool

    @classmethod
    def best(cls) -> "Device":
        """A CUDA GPU when there is one; bfloat16 autocast where the hardware multiplies it natively."""
        if torch.cuda.is_available():
            return cls(torch.device("cuda"), torch.cuda.is_bf16_supported())
        return cls(torch.device("cpu"), torch.cpu._is_avx512_bf16_supported())

    def place(self, network: Network) -> Network:
        """``network`` on the device, channels last: what convolutions are fastest in on both kinds."""
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def precision(self) -> torch.autocast:
        """Context in which the networks are called."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)


def generator(seed: int, *where: str | int) -> torch.Generator:
    """A CPU generator that depends on ``seed`` and the place it is used at, not on what ran before.

    So a resumed training draws what an uninterrupted one would have drawn.
    """
    digest = hashlib.sha256(repr((seed, *where)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def fit(
    name: str,
    trainables: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    stage: Stage,
    *,
    seed: int,
    work: Path,
    report: Report,
) -> None:
    """Train ``trainables`` in place; goes on from ``work/<name>.pt``.

    ``work/<name>.csv`` is written anew with every checkpoint: what it held up to the step of the checkpoint that the
    stage goes on from, and what came since.

    Args:
        name: stage name, the stem of its files.
        trainables: module whose parameters are optimised and whose whole state is checkpointed.
        loss_of: scalar loss of one batch, drawn with the generator it is handed.
        stage: steps, batch and peak learning rate.
        seed: seed of the training.
        work: folder of the training's state.
        report: progress callback; what it raises ends the stage, and no step that was done is lost.

    Raises:
        ModelError: the loss or its gradient became non-finite, or the checkpoint is not of this training.
    """
    optimizer = torch.optim.AdamW(trainables.parameters(), lr=stage.rate, weight_decay=1e-4)
    checkpoint = work / f"{name}.pt"
    start, window = _resume(checkpoint, trainables, optimizer)
    losses = _Losses(work / f"{name}.csv", start, window)
    saved = time.monotonic()
    for step in range(start, stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * _schedule(step, stage.steps)
        loss = loss_of(generator(seed, name, step))
        value = float(loss.detach())
        _require_finite(f"{name} loss", value, step, work)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(trainables.parameters(), 1.0))
        # Before it is in the weights, and those in a checkpoint or, after the last step, in the model.
        _require_finite(f"gradient of the {name} loss", norm, step, work)
        optimizer.step()
        losses.add(step, value)
        due = step + 1 == stage.steps or time.monotonic() - saved > CHECKPOINT_SECONDS
        try:
            report(name, step + 1, stage.steps, losses.mean)
        except BaseException:
            due = True
            raise
        finally:
            if due:
                # In this order: rows beyond the checkpoint are passed over, rows missing before it are lost.
                losses.flush()
                _save(checkpoint, step + 1, trainables, optimizer, losses.window)
                saved = time.monotonic()


def _require_finite(what: str, value: float, step: int, work: Path) -> None:
    if not math.isfinite(value):
        raise ModelError(
            f"the {what} became {value} at step {step}",
            f"remove `{work}` and train again with another `--seed`",
        )


def _schedule(step: int, steps: int) -> float:
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _save(
    path: Path, step: int, trainables: nn.Module, optimizer: torch.optim.Optimizer, window: list[float]
) -> None:
    staged = path.with_suffix(".tmp")
    state = {
        "step": step,
        "trainables": trainables.state_dict(),
        "optimizer": optimizer.state_dict(),
        "window": window,
    }
    # Into the file and not by `write_atomic`, which would need the bytes in memory beside the networks.
    try:
        with staged.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        # Of a disk that is full it would keep the rest.
        staged.unlink(missing_ok=True)
        raise


def _resume(path: Path, trainables: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[float]]:
    """The step to go on at, and the losses since the last row of the CSV file; older checkpoints lack these."""
    if not path.exists():
        return 0, []
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        trainables.load_state_dict(state["trainables"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), list(state.get("window", ()))
    except (
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise ModelError(
            f"`{path}` is not a checkpoint of this training ({type(error).__name__}); remove its folder"
        ) from None


class _Losses:
    """Running mean of the loss for the eye, and the mean of every ten steps on disk for the plot.

    ``window`` holds the losses of which there are not ten yet.
    """

    def __init__(self, path: Path, start: int, window: list[float]) -> None:
        self._path = path
        self._rows: list[tuple[int, float]] = []
        self.window = window
        self.mean = math.nan
        if path.exists():
            with path.open(newline="") as file:
                self._rows = [(int(s), float(v)) for s, v in csv.reader(file) if int(s) <= start]
            self.mean = self._rows[-1][1] if self._rows else math.nan

    def add(self, step: int, value: float) -> None:
        self.window.append(value)
        self.mean = value if math.isnan(self.mean) else 0.98 * self.mean + 0.02 * value
        if len(self.window) == LOSS_EVERY:
            self._rows.append((step + 1, sum(self.window) / LOSS_EVERY))
            self.window.clear()

    def flush(self) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows((step, f"{value:.6g}") for step, value in self._rows)
        write_atomic(self._path, text.getvalue().encode())
