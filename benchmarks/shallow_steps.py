"""What shallow steps would gain: ``python benchmarks/shallow_steps.py MODEL ENGINE [--json FILE]``.

A trial of DeepCache (Ma, Fang and Wang, arXiv:2312.00858) before anything is built. A shallow step computes the
UNet's outermost level alone, down and up, and takes what comes from below out of the last whole step; the first step
of each pair and of each branch is whole. In PyTorch, as the UNet of ENGINE, whose other networks are ONNX Runtime's;
ENGINE is that of MODEL, which is ``models/demo``. Photographs and labels are those of `labels.py`, every pair is kept
as it comes. Fill and contrast are what a run measures (`stage_rt.images.labels`), with twice the standard error over
the pairs. ``seconds`` are CPU seconds of the UNet a pair. Give it one core: ``OMP_NUM_THREADS=1 taskset -c 0``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_steps import error
from labels import DEFECTS, SEED, scenes
from numpy.typing import NDArray
from options import keep
from painting import method_of, painted
from torch import Tensor

from stage_rt.engine import Engine
from stage_rt.executor import HostExecutor
from stage_rt.folders import read_contexts, read_engine
from stage_rt.loading import open_backend
from stage_rt.machine import cpu_name
from stage_rt.networks import Backend
from stage_rt.recipe import Recipe
from stage_rt.spec import PROMPTS_FILE, UNET
from stage_rt.training.folder import load_model

WAYS = ((10, 1), (20, 1), (40, 2), (60, 3), (100, 1), (100, 3), (100, 5))
"""Calls a pair, and of how many steps one is whole."""


class Cached:
    """A UNet that keeps what its levels below the outermost one gave at the last whole step."""

    def __init__(self, unet: Any) -> None:
        self._unet, self._below = unet, None
        unet.up_blocks[-1].register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, block: Any, arguments: Any, named: dict[str, Tensor]) -> None:
        self._below = named["hidden_states"]

    def whole(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        result: Tensor = self._unet(x, timestep, context, return_dict=False)[0]
        return result

    def shallow(self, x: Tensor, timestep: Tensor) -> Tensor:
        unet = self._unet
        emb = unet.time_embedding(unet.get_time_embed(sample=x, timestep=timestep))
        skips = [unet.conv_in(x)]
        for resnet in unet.down_blocks[0].resnets:
            skips.append(resnet(skips[-1], emb))
        last = unet.up_blocks[-1]
        up = last(
            hidden_states=self._below, temb=emb, res_hidden_states_tuple=tuple(skips[-len(last.resnets) :])
        )
        result: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(up)))
        return result


class Shallow:
    """A backend whose UNet computes one step of ``interval`` whole; ``calls`` and ``seconds`` by kind."""

    def __init__(self, backend: Backend, unet: Any, recipe: Recipe) -> None:
        self._backend, self._unet, self._recipe = backend, Cached(unet), recipe
        self.interval, self._last, self._since = 1, -1, 0
        self.calls, self.seconds = {"whole": 0, "shallow": 0}, {"whole": 0.0, "shallow": 0.0}

    def run(self, graph: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        if graph != UNET:
            return self._backend.run(graph, **inputs)
        i = int(inputs["timestep"][0])
        kind = "whole" if self._is_whole(i) else "shallow"
        x, timestep, context = (torch.from_numpy(inputs[name]) for name in ("sample", "timestep", "context"))
        began = time.process_time()
        with torch.no_grad():
            result = (
                self._unet.whole(x, timestep, context) if kind == "whole" else self._unet.shallow(x, timestep)
            )
        self.seconds[kind] += time.process_time() - began
        self.calls[kind] += 1
        return np.asarray(result.numpy())

    def _is_whole(self, i: int) -> bool:
        begins = self._last <= i or self._recipe.branch(i) != self._recipe.branch(self._last)
        self._since = 0 if begins else (self._since + 1) % self.interval
        self._last = i
        return self._since == 0

    def close(self) -> None:
        self._backend.close()


def row(engine: Engine, unet: Shallow, calls: int, interval: int, count: int) -> dict[str, Any]:
    """What so many calls make of every label, of which one in ``interval`` is whole."""
    unet.interval = interval
    unet.calls, unet.seconds = dict.fromkeys(unet.calls, 0), dict.fromkeys(unet.seconds, 0.0)
    fills, contrasts = [], []
    for kind in DEFECTS:
        good, _, wanted = scenes(kind, count)
        own = method_of(engine, f"brick+{kind}", calls).recipe
        made = painted(engine, good, wanted, method_of(engine, f"brick+{kind}", calls, own), SEED)
        fills += [result.figures.fill for result in made.results if result.figures]
        contrasts += [result.figures.contrast for result in made.results if result.figures]
    pairs = len(fills)
    a_call = {kind: unet.seconds[kind] / max(unet.calls[kind], 1) for kind in unet.calls}
    return {
        "calls": calls,
        "one whole in": interval,
        "whole calls": round(calls * unet.calls["whole"] / sum(unet.calls.values()), 1),
        "fill": round(float(np.mean(fills)), 3),
        "fill_interval": error(np.array(fills)),
        "contrast": round(float(np.mean(np.abs(contrasts))), 2),
        "contrast_interval": error(np.abs(contrasts)),
        "seconds": round(sum(unet.seconds.values()) / pairs, 3),
        "whole, ms a call": round(1e3 * a_call["whole"], 1),
        "shallow, ms a call": round(1e3 * a_call["shallow"], 1) if interval > 1 else None,
    }


def check(unet: Cached, size: int, context: Tensor) -> None:
    """A shallow step from what the same step left is that step."""
    x, timestep = torch.randn(2, 4, size, size), torch.tensor([500, 500])
    with torch.no_grad():
        whole = unet.whole(x, timestep, context.expand(2, -1, -1))
        assert torch.equal(unet.shallow(x, timestep), whole)
        assert not torch.equal(unet.shallow(x + 1, timestep), whole)


def main(options: argparse.Namespace) -> None:
    spec, model = read_engine(options.engine), load_model(options.model)
    backend = Shallow(open_backend(options.engine, spec), model.unet.eval().float(), spec.model.recipe)
    contexts = read_contexts(options.engine / PROMPTS_FILE, spec.model)
    check(backend._unet, spec.model.latent_size, torch.from_numpy(next(iter(contexts.values())))[None])
    engine = Engine(spec, HostExecutor(spec.model, backend), contexts)
    rows: list[dict[str, Any]] = []
    for calls, interval in WAYS:
        rows.append(row(engine, backend, calls, interval, options.count))
        print(rows[-1], flush=True)
        keep({"machine": cpu_name(), "pairs_a_type": options.count, "rows": rows}, options.json)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--count", type=int, default=4, help="pairs a type, and number of calls")
    parser.add_argument("--json", type=Path)
    main(parser.parse_args())
