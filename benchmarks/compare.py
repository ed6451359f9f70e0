"""This engine beside what people would use instead: ``python benchmarks/compare.py MODEL GRAPHS ENGINE...``.

All paint the same latents from the same noise in the same few steps, in turn and in one process; MODEL, GRAPHS
(the float32 export of it) and every ENGINE hold the same weights. A peer's noise was drawn beforehand and costs it
nothing; an ENGINE draws its own. On one core the seconds are CPU seconds, so that who else is on that core has no
say; on several they are the wall's. What counts are the ratios.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from options import keep
from torch import nn

from stage_rt.executor import HostExecutor
from stage_rt.export.networks import Denoiser as TorchUNet
from stage_rt.folders import read_engine
from stage_rt.loading import load
from stage_rt.machine import cores, cpu_name
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import silent
from stage_rt.recipe import Branch, Recipe
from stage_rt.sampler import Denoiser, sample
from stage_rt.spec import UNET, adapter_graph
from stage_rt.timing import Timing, in_turn, ratio
from stage_rt.training.folder import Model, load_model

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import two_state

Array = NDArray[np.float32]
Network = Callable[[str, dict[str, NDArray[Any]]], Array]
"""A graph by its name, with its inputs."""

RECIPE = Recipe(name="short", steps=20, ema_stop=4, only_intervals=((14, 15), (6, 7)))
"""The authors' loop in a fiftieth of its steps, with its share of the only branch."""


class Prepared:
    """The draws of a `PhiloxNoise` for every step, made beforehand."""

    def __init__(self, noise: PhiloxNoise, shape: tuple[int, ...]) -> None:
        cells = (shape[0], 1, *shape[2:])
        steps = range(RECIPE.steps)
        self._initial = noise.initial(shape)
        self._background = [noise.background(i, shape) for i in steps]
        self._mask = [noise.mask(i, cells) for i in steps]
        self._posterior = [noise.posterior(i, shape) for i in steps]

    def initial(self, shape: tuple[int, ...]) -> Array:
        return self._initial

    def background(self, i: int, shape: tuple[int, ...]) -> Array:
        return self._background[i]

    def mask(self, i: int, shape: tuple[int, ...]) -> Array:
        return self._mask[i]

    def posterior(self, i: int, shape: tuple[int, ...]) -> Array:
        return self._posterior[i]


def denoiser(network: Network, context: Array, adapter: str) -> Denoiser:
    def denoise(x: Array, i: int, mask: Array, branch: Branch) -> Array:
        contexts = np.repeat(context[None], len(x), axis=0)
        eps = network(UNET, {"sample": x, "timestep": np.full(len(x), i), "context": contexts})
        return network(adapter_graph(adapter, branch), {"eps": eps, "mask": mask})

    return denoise


def in_torch(model: Model, adapter: str, *, compiled: bool = False, half: bool = False) -> Network:
    """The networks as diffusers and the authors run them, adapters with their BatchNorm."""
    networks: dict[str, nn.Module] = {UNET: TorchUNet(model.unet).eval()}
    networks |= {
        adapter_graph(adapter, branch): net.eval() for branch, net in model.adapters[adapter].items()
    }
    if half:
        networks = {name: network.to(memory_format=torch.channels_last) for name, network in networks.items()}
    if compiled:
        networks = {name: torch.compile(network) for name, network in networks.items()}

    @torch.inference_mode()
    def run(graph: str, inputs: dict[str, NDArray[Any]]) -> Array:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return np.asarray(networks[graph](**tensors).float().contiguous().numpy())

    return run


def in_onnxruntime(graphs: Path, adapter: str) -> Network:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    sessions = {
        graph: onnxruntime.InferenceSession(graphs / f"{graph}.onnx", options) for graph in used(adapter)
    }
    return lambda graph, inputs: sessions[graph].run(None, inputs)[0]


def in_openvino(graphs: Path, adapter: str) -> Network:
    core = openvino.Core()
    compiled = {graph: core.compile_model(graphs / f"{graph}.onnx", "CPU") for graph in used(adapter)}
    return lambda graph, inputs: compiled[graph](inputs, share_inputs=True)[0]


def used(adapter: str) -> list[str]:
    return [UNET, *(adapter_graph(adapter, branch) for branch in Branch)]


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(cores())
    model = load_model(options.model)
    spec, prompt = model.spec, sorted(model.spec.prompts)[0]
    adapter, context = spec.prompts[prompt], model.contexts[prompt].numpy()
    assert adapter is not None
    shape = (options.batch, spec.latent_channels, spec.latent_size, spec.latent_size)
    noise = PhiloxNoise(range(options.batch))
    given, clean = Prepared(noise, shape), noise.encode(shape)
    mask = np.zeros((options.batch, 1, *shape[2:]), np.float32)
    mask[..., 8:20, 8:24] = 1

    def loop(way: Callable[..., Array], network: Network) -> Callable[[], Array]:
        denoise = denoiser(network, context, adapter)
        return lambda: way(denoise, clean, mask, recipe=RECIPE, noise=given)

    ways: dict[str, Callable[[], Array]] = {}
    opened = []
    for folder in options.engine:
        engine = read_engine(folder)
        opened.append(load(folder))
        executor = opened[-1].executor
        assert isinstance(executor, HostExecutor)
        ways[f"ours, {engine.backend} {engine.dtype}"] = lambda executor=executor, at=opened[-1]: (
            executor.sample(
                at.condition(prompt),
                clean,
                mask,
                sampler="stage",
                recipe=RECIPE,
                steps=RECIPE.steps,
                noise=noise,
                progress=silent,
            )
        )
    eager, half = in_torch(model, adapter), in_torch(load_model(options.model), adapter, half=True)
    ways["PyTorch eager, the authors' two states"] = loop(two_state.sample, eager)
    ways["diffusers, one state"] = loop(sample, eager)
    ways["PyTorch bf16 autocast, channels last, two states"] = loop(two_state.sample, half)
    if not options.no_compile:
        ways["torch.compile, one state"] = loop(sample, in_torch(model, adapter, compiled=True))
    ways["ONNX Runtime, NumPy loop"] = loop(sample, in_onnxruntime(options.graphs, adapter))
    ways["OpenVINO, NumPy loop"] = loop(sample, in_openvino(options.graphs, adapter))
    report(ways, options)


def report(ways: dict[str, Callable[[], Array]], options: argparse.Namespace) -> None:
    witness = next(name for name in ways if "authors" in name)
    outputs = {name: way() for name, way in ways.items()}
    clock = time.process_time if cores() == 1 else time.perf_counter
    seconds = in_turn(ways, options.rounds, warm_up=0, clock=clock)
    first, largest = next(iter(ways)), float(np.abs(outputs[witness]).max())
    rows = []
    for name, taken in seconds.items():
        step = Timing.of([1e3 * each / RECIPE.steps for each in taken])
        beside = ratio(taken, seconds[first])
        off = float(np.abs(outputs[name] - outputs[witness]).max()) / largest
        rows.append(
            {
                "way": name,
                "ms_a_step": [round(each, 2) for each in step[:3]],
                "times_the_first": [round(each, 3) for each in beside[:3]],
                "largest_error": float(f"{off:.1e}"),
            }
        )
        spread = f"{beside.median:.2f} ({beside.low:.2f}-{beside.high:.2f})"
        print(
            f"{name:50} {step.median:8.2f} ms a step, {spread} times the first, off by {off:.1e}", flush=True
        )
    result = {
        "machine": cpu_name(),
        "cores": cores(),
        "clock": "CPU seconds" if clock is time.process_time else "wall",
        "batch": options.batch,
        "steps": RECIPE.steps,
        "rounds": options.rounds,
        "libraries": {
            name: version(name) for name in ("torch", "diffusers", "onnxruntime", "openvino", "numpy")
        },
        "medians_and_quartiles": rows,
    }
    keep(result, options.json)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("graphs", type=Path)
    parser.add_argument("engine", type=Path, nargs="+", help="the first is what the others are held against")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--no-compile", action="store_true", help="without torch.compile, which takes minutes"
    )
    parser.add_argument("--json", type=Path)
    main(parser.parse_args())
