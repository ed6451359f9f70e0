"""Engines of closed-form networks (`mock_networks`) on the host, with the folders that a server asks for."""

import json
import time
from pathlib import Path

import numpy as np
from coming_and_going import LEVELS
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
