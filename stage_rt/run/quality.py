"""Whether a painted region is good enough, and painting it again from another stream while it is not."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.images.labels import Figures


class Stroke(NamedTuple):
    """A painted region: uint8 ``[S, S, 3]`` and its figures, both None if it is not finite.

    ``round_trip`` is how much the networks changed it where nothing is painted (`stage_rt.images.labels`),
    ``attempts`` how often it was painted.
    """

    levels: NDArray[np.uint8] | None
    figures: Figures | None
    round_trip: float = 0.0
    attempts: int = 1

    @property
    def fill(self) -> float:
        """The share of the label that was painted; below every share where nothing usable was."""
        return -1.0 if self.figures is None else self.figures.fill


Attempt = Callable[[Sequence[int], int], Sequence[Stroke]]
"""Paints some regions of a batch, by their place in it, from the streams of attempt ``n``."""


def refill(paint: Attempt, count: int, *, min_fill: float, retries: int) -> list[Stroke]:
    """Paint ``count`` regions, and those below ``min_fill`` up to ``retries`` times again; the best of each stays."""
    best = list(paint(range(count), 0))
    for attempt in range(1, retries + 1):
        weak = [place for place, stroke in enumerate(best) if stroke.fill < min_fill]
        if not weak:
            break
        for place, stroke in zip(weak, paint(weak, attempt), strict=True):
            kept = max(best[place], stroke, key=lambda stroke: stroke.fill)
            best[place] = kept._replace(attempts=attempt + 1)
    return best


def combined(figures: Sequence[Figures]) -> Figures:
    """The figures of a pair from those of its regions: means over its labelled pixels, and the worst leak."""
    sizes = np.array([one.label_pixels for one in figures], dtype=np.float64)
    weights = sizes / sizes.sum() if sizes.any() else np.full(len(figures), 1 / len(figures))

    def mean(name: str) -> float:
        return float(weights @ [getattr(one, name) for one in figures])

    return Figures(
        fill=mean("fill"),
        leak=max(one.leak for one in figures),
        contrast=mean("contrast"),
        threshold=mean("threshold"),
        label_pixels=int(sizes.sum()),
    )
