"""Engines of closed-form networks (`mock_networks`) on the host, with the folders that a server asks for.

Run as a script it is the command line with such engines in place of the real ones: ``python closed_engine.py DELAY
serve ENGINE ...``; every call of a network takes ``DELAY`` seconds.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
from coming_and_going import LEVELS
from fake_engine import labels, photographs
from mock_networks import PROMPTS, SURFACE, TOKENS, WIDTH, HostBackend, spec

from stage_rt.engine import Engine
from stage_rt.executor import HostExecutor


class SlowBackend(HostBackend):
    """Takes ``delay`` seconds for every call of a network; keeps no list of them."""

    def __init__(self, delay=0.0):
        super().__init__()
        self._delay = delay

    def run(self, graph, **inputs):
        time.sleep(self._delay)
        output = super().run(graph, **inputs)
        self.calls.clear()
        return output


def engine_spec(batch=(4,)):
    return spec(LEVELS, batch=batch).model_copy(update={"devices": ["cpu"]})


def closed_engine(backend=None, batch=(4,)) -> Engine:
    made = engine_spec(batch)
    rng = np.random.default_rng(0)
    contexts = {name: rng.standard_normal((TOKENS, WIDTH)).astype(np.float32) for name in (*PROMPTS, SURFACE)}
    return Engine(made, HostExecutor(made.model, backend or HostBackend()), contexts)


def engine_folder(folder: Path, batch=(4,)) -> Path:
    """A folder with the description of that engine and nothing else."""
    folder.mkdir(parents=True)
    text = engine_spec(batch).sealed()
    assert json.loads(text)
    (folder / "engine.json").write_text(text)
    return folder


def furnish(folder: Path) -> Path:
    """``folder`` with the engine ``tiles``, photographs in ``normals`` and masks in ``masks/crack``."""
    engine_folder(folder / "tiles")
    photographs(folder / "normals", 3, (160, 120))
    labels(folder / "masks" / "crack", 4, (160, 120))
    return folder


class Site:
    """``stage-rt serve`` as this script, over ``tiles``, ``normals`` and ``masks`` of a folder, into its ``data``."""

    def __init__(self, here: Path, *options: str, delay: float = 0.0):
        self.here = here
        folders = ["--data", here / "data", "--normals", here / "normals", "--masks", here / "masks"]
        self._log = (here / "log").open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                str(delay),
                "serve",
                here / "tiles",
                *folders,
                "--port",
                "0",
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.url = self.process.stdout.readline().strip().rstrip("/")

    def log(self) -> str:
        return (self.here / "log").read_text()

    def close(self) -> int:
        self.process.terminate()
        code = self.process.wait(60)
        self.process.stdout.close()
        self._log.close()
        return code


if __name__ == "__main__":
    module = ModuleType("stage_rt.loading")
    module.load = lambda folder, **options: closed_engine(SlowBackend(float(sys.argv[1])))  # type: ignore[attr-defined]
    sys.modules["stage_rt.loading"] = module
    from stage_rt.cli import main

    main(sys.argv[2:])
