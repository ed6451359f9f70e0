"""The parts of the benchmark that need Python: ``python tasks.py CALL``, which prints a row; `parts.py` makes CALL.

CALL is JSON: the task, the mode, the folder of engines, and what the task takes. In the mode ``dry`` the same
code runs tiny networks on softcuda and on the CPU; its rows are no measurements.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from launches import launches, summary
from model import ADAPTER, GFLOP, PROMPT, random_model
from parts import Mode, Way, engine
from peers import PEERS, denoiser
from safetensors.numpy import load_file

from stage_rt.names import BackendName
from stage_rt.noise import PhiloxNoise
from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import PROMPTS_FILE, UNET, EngineSpec, ModelSpec, adapter_graph

Row = dict[str, Any]

STEPS = 1000
ROUNDS = {"full": 30, "quick": 30, "dry": 2}
"""Launches that are timed together."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> None:
    call = json.loads(sys.argv[1])
    task, mode, engines = call.pop("task"), call.pop("mode"), Path(call.pop("engines"))
    print(json.dumps(TASKS[task](mode, engines, **call)))


def machine(mode: Mode, engines: Path) -> Row:
    """What is measured on, and the ceilings it sets: a large matrix product and a large copy."""
    row: Row = {"torch": torch.__version__, "python": sys.version.split()[0], "cpu_cores": os.cpu_count()}
    if mode == "dry":
        return row | {"name": "no GPU: nothing here is a measurement"}
    row |= {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    row["memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
    for name in ("fp16", "bf16"):
        a, b = (torch.randn(8192, 8192, device="cuda").to(DTYPES[name]) for _ in range(2))
        row[f"matmul_tflops_{name}"] = 2 * 8192**3 / _event_seconds(lambda a=a, b=b: a @ b, 20) / 1e12
    row["clocks_under_load"] = _clocks(lambda: a @ b)
    big = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    half = 2**31
    row["copy_tb_s"] = 2 * half / _event_seconds(lambda: big[:half].copy_(big[half:]), 20) / 1e12
    return row


def _event_seconds(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of one call, by the device's clock."""
    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(marks)) / 1e3


def _clocks(load: Callable[[], object]) -> str | None:
    """Clocks of the multiprocessors and of the memory while ``load`` runs again and again; without nvidia-smi None.

    At rest they are a fraction of that, and tell nothing of a measurement.
    """
    if not shutil.which("nvidia-smi"):
        return None
    query = [f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}", "--query-gpu=clocks.sm,clocks.mem"]
    command = ["nvidia-smi", *query, "--format=csv,noheader"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asked:
        while asked.poll() is None:
            load()
            torch.cuda.synchronize()
        told = asked.communicate()[0].strip()
    return None if asked.returncode else told


def compile_engine(mode: Mode, engines: Path, dtype: str, batch: int, way: Way) -> Row:
    """The loop's networks compiled ahead of time, or traced; a folder a dtype, batch and way."""
    from stage_rt.backends.packages import package
    from stage_rt.export.hoist import hoisted_model
    from stage_rt.export.pytorch import describe, write
    from stage_rt.files import staged_folder

    start = time.monotonic()
    model = random_model(_size(mode), _device(mode), Recipe.authors())
    if way != "plain":
        model = hoisted_model(model)
    backend: BackendName = "torch" if way == "traced" else "inductor"
    wanted = describe(model.spec, backend, dtype, [batch], "cpu" if mode == "dry" else None, "0" * 64)
    graphs = [UNET, *(adapter_graph(ADAPTER, branch) for branch in Branch)]
    folder = engine(engines, dtype, batch, way)
    with staged_folder(folder, replace=folder.exists()) as staged:
        write(
            model,
            wanted,
            staged,
            graphs=graphs,
            tuned=way == "tuned",
            say=partial(print, file=sys.stderr, flush=True),
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "dtype": dtype,
        "batch": batch,
        "way": way,
        "seconds": time.monotonic() - start,
        "bytes": size,
        "launches": None
        if way == "traced"
        else {graph: summary(launches(folder / package(graph, batch))) for graph in graphs},
        "memory_bytes": None if mode == "dry" else torch.cuda.max_memory_reserved(),
    }


def loop(mode: Mode, engines: Path, dtype: str, batch: int, way: Way) -> Row:
    """The loop, and its networks alone, in the same process and in turn."""
    from stage_rt.cuda import device
    from stage_rt.cuda.loop import Loop
    from stage_rt.folders import read_engine

    folder = engine(engines, dtype, batch, way)
    spec = _shortened(read_engine(folder), mode)
    notices: list[str] = []
    with device.active() as cuda, ExitStack() as opened:
        free = cuda.mem_get_info()[0]
        backend, stream = _backend(mode, folder, spec), device.Stream()
        opened.callback(stream.close)
        opened.callback(backend.close)
        running = Loop(backend, spec.model, spec.model.recipe, ADAPTER, batch, stream, notices.append)
        opened.callback(running.close)
        memory = free - cuda.mem_get_info()[0]
        context = load_file(folder / PROMPTS_FILE)[PROMPT]
        figures = _loop_figures(running, stream, backend, mode, spec, context, way)
    return {
        "dtype": dtype,
        "batch": batch,
        "way": way,
        "engine": f"{spec.backend}, torch {torch.__version__}",
        **figures,
        "memory_bytes": memory,
        "replayed": not any("kernel by kernel" in notice for notice in notices),
        "notices": notices,
    }


def _loop_figures(
    running: Any, stream: Any, backend: Any, mode: Mode, spec: EngineSpec, context: Any, way: Way
) -> Row:
    (batch,) = spec.batch
    recipe = spec.model.recipe
    clean, mask, noise = _inputs(spec.model, batch)

    def whole() -> float:
        start = time.perf_counter()
        sampled = running.run(clean, mask, context, noise)
        taken = time.perf_counter() - start
        if not sampled.finite.all():
            raise SystemExit("a sample is not finite")
        return taken / recipe.steps

    small = batch <= 8
    bare, looped = [_networks_alone(running, stream, backend, ROUNDS[mode])], []
    for _ in range(3 if small else 1):
        looped.append(whole())
        bare.append(_networks_alone(running, stream, backend, ROUNDS[mode]))
    step, alone = statistics.median(looped), statistics.median(bare)
    latents = [running.run(clean, mask, context, noise).latent for _ in range(2 if small else 0)]
    return {
        "steps": recipe.steps,
        "bare_ms_a_step": 1e3 * alone,
        "loop_ms_a_step": 1e3 * step,
        "loop_over_bare": step / alone,
        "seconds_a_pair": step * STEPS / batch,
        "pairs_an_hour": 3600 * batch / (step * STEPS),
        "tflops": _tflops(way, batch, step) if mode != "dry" else None,
        "same_bits_again": bool(np.array_equal(*latents)) if small else None,
    } | (_at_batch_one(running, stream, backend, mode, spec, context) if batch == 1 else {})


def _tflops(way: Way, batch: int, step: float) -> float:
    """TFLOP/s of an engine whose step takes ``step`` seconds: of what it does, not of what it was spared."""
    return GFLOP["plain" if way == "plain" else "freed"] * batch / step / 1e3


def _at_batch_one(running: Any, stream: Any, backend: Any, mode: Mode, spec: EngineSpec, context: Any) -> Row:
    """Where a step is short enough for what lies between two to count, and the host's loop to be waited for."""
    ten = _networks_alone(running, stream, backend, ROUNDS[mode], steps=10)
    return {"bare_ms_a_step_ten_a_graph": 1e3 * ten, **_parity(running, backend, spec, context)}


def _networks_alone(running: Any, stream: Any, backend: Any, rounds: int, *, steps: int = 1) -> float:
    """Seconds a step of UNet and adapter, ``steps`` of them recorded as one graph and replayed: the bare engine."""
    from stage_rt.cuda import device, graphs

    def enqueue() -> None:
        for _ in range(steps):
            running.enqueue_networks(Branch.AWARE)

    with device.active(), backend.recording():
        graph = graphs.capture(stream.handle, enqueue)
    with device.active():
        for _ in range(3):
            graph.launch()
        stream.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            graph.launch()
        stream.synchronize()
        seconds = (time.perf_counter() - start) / (rounds * steps)
        graph.close()
    return seconds


def _parity(running: Any, backend: Any, spec: EngineSpec, context: Any) -> Row:
    """The loop against the CPU's sampler over the same networks, called from the host one by one."""
    from stage_rt.sampler import sample

    clean, mask, noise = _inputs(spec.model, 1)

    def denoise(x: Any, i: int, handed: Any, branch: Any) -> Any:
        eps = backend.run(UNET, sample=x, timestep=np.array([i]), context=context[None])
        return backend.run(adapter_graph(ADAPTER, branch), eps=eps, mask=handed)

    expected = sample(denoise, clean, mask, recipe=spec.model.recipe, noise=noise)
    found = running.run(clean, mask, context, noise).latent
    return {"max_abs_host_loop": float(np.abs(found - expected).max())}


def peer(mode: Mode, engines: Path, peer: str, dtype: str, batch: int) -> Row:
    """A peer's steps, timed by the host's clock around a whole stretch; both branches in the recipe's shares."""
    on_gpu = mode != "dry"
    # Fewer steps with the recipe's own share of only steps; a step costs the same wherever it is.
    warm, timed = (10, 40) if on_gpu else (2, 4)
    recipe = Recipe(
        name="short", steps=warm + timed, ema_stop=2, only_intervals=((1, 2), (warm, warm + timed // 5))
    )
    free = torch.cuda.mem_get_info()[0] if on_gpu else 0
    model = random_model(_size(mode), _device(mode), recipe)
    loop, compiled = PEERS[peer]
    denoise = denoiser(model, batch, _device(mode), DTYPES[dtype], compiled if on_gpu else None)
    clean, mask, _ = _inputs(model.spec, batch)
    tensors = [torch.from_numpy(array).to(_device(mode)) for array in (clean, mask)]
    finish = torch.cuda.synchronize if on_gpu else lambda: None
    # Compiles, chooses convolutions and records both branches before anything is timed.
    for _ in loop(denoise, *tensors, recipe):
        pass
    if on_gpu:
        # The model in float32, and what was tried, are none of what its steps need.
        torch.cuda.empty_cache()
    steps = loop(denoise, *tensors, recipe)
    for _ in range(warm):
        next(steps)
    finish()
    start = time.perf_counter()
    for _ in range(timed):
        next(steps)
    finish()
    step = (time.perf_counter() - start) / timed
    return {
        "peer": peer,
        "dtype": dtype,
        "batch": batch,
        "ms_a_step": 1e3 * step,
        "seconds_a_pair": step * STEPS / batch,
        "pairs_an_hour": 3600 * batch / (step * STEPS),
        "memory_bytes": free - torch.cuda.mem_get_info()[0] if on_gpu else None,
    }


def _inputs(model: ModelSpec, batch: int) -> tuple[Any, Any, PhiloxNoise]:
    noise = PhiloxNoise([5] * batch, range(batch))
    clean = noise.encode((batch, model.latent_channels, model.latent_size, model.latent_size))
    mask = np.zeros((batch, 1, model.latent_size, model.latent_size), np.float32)
    quarter = model.latent_size // 4
    mask[:, :, quarter : 2 * quarter, quarter : 3 * quarter] = 1
    return clean, mask, noise


def _shortened(spec: EngineSpec, mode: Mode) -> EngineSpec:
    """All steps in ``full``; else the authors' recipe in fewer, with the only branch at the same shares."""
    if mode == "full":
        return spec
    steps = STEPS // 5 if mode == "quick" else 20
    only = ((7 * steps // 10, 8 * steps // 10), (3 * steps // 10, 4 * steps // 10))
    recipe = Recipe(name="short", steps=steps, ema_stop=steps // 5, only_intervals=only)
    return spec.model_copy(update={"model": spec.model.model_copy(update={"recipe": recipe})})


def _backend(mode: Mode, folder: Path, spec: EngineSpec) -> Any:
    from stage_rt.backends.pytorch import PyTorchBackend

    backend = PyTorchBackend(folder, spec)
    if mode != "dry":
        return backend
    from dry import OnSoftcuda

    return OnSoftcuda(backend, spec)


def _size(mode: Mode) -> str:
    return "tiny" if mode == "dry" else "full"


def _device(mode: Mode) -> str:
    return "cpu" if mode == "dry" else "cuda"


TASKS: dict[str, Callable[..., Row]] = {
    "machine": machine,
    "compile": compile_engine,
    "loop": loop,
    "peer": peer,
}

if __name__ == "__main__":
    main()
