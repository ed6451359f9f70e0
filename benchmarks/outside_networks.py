"""How much of a run is spent outside the networks: ``python benchmarks/outside_networks.py ENGINE [BATCH]``.

Paints one batch with an engine whose every network call is timed, and prints the share of the rest: the fused
step, the noise, casts and copies. DESIGN's bound for a CPU is 2 %.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage_rt.engine import Engine
from stage_rt.executor import HostExecutor
from stage_rt.folders import read_contexts, read_engine
from stage_rt.loading import open_backend
from stage_rt.machine import cpu_name
from stage_rt.networks import Backend
from stage_rt.noise import PhiloxNoise
from stage_rt.spec import PROMPTS_FILE


class Timed:
    """A backend that adds up the seconds its graphs take."""

    def __init__(self, backend: Backend) -> None:
        self.seconds = 0.0
        self._backend = backend

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        start = time.perf_counter()
        output = self._backend.run(graph, **inputs)
        self.seconds += time.perf_counter() - start
        return output

    def close(self) -> None:
        self._backend.close()


def main(folder: Path, batch: int) -> None:
    spec = read_engine(folder)
    backend = Timed(open_backend(folder, spec))
    contexts = read_contexts(folder / PROMPTS_FILE, spec.model)
    engine = Engine(spec, HostExecutor(spec.model, backend), contexts)
    model = spec.model
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (batch, model.image_channels, model.image_size, model.image_size))
    masks = np.zeros((batch, 1, model.latent_size, model.latent_size), dtype=np.float32)
    masks[..., :4, :4] = 1
    whole, networks = [], []
    for seed in range(3):
        backend.seconds, start = 0.0, time.perf_counter()
        engine.paint(
            images.astype(np.float32), masks, prompt=engine.prompts[0], noise=PhiloxNoise([seed] * batch)
        )
        whole.append(time.perf_counter() - start)
        networks.append(backend.seconds)
    share = np.median([1 - part / total for part, total in zip(networks, whole, strict=True)])
    print(
        f"{cpu_name()}\nbatch {batch}: {np.median(whole):.2f} s a batch, {share:.2%} of it outside the networks"
    )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 8)
