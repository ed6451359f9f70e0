"""Throughput of the device-resident loop beside PyTorch: ``python bench.py --out DIR [--quick]``; see ``run.sh``.

Every row is measured in a process of its own, so that one that fails or runs out of memory costs no other. What
does not fit into ``--budget`` seconds is left out and listed as skipped; what matters most comes first. ``--device
cpu`` runs the scripts' logic with tiny networks; it measures nothing, and its results say so.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

Row = dict[str, Any]

STEPS = 1000
DTYPES = ("fp16", "bf16")
BATCHES = {False: (32, 1, 8, 64), True: (32, 1)}
"""Full run, and ``--quick``; the ones with targets first."""
EAGER = ("eager_two_states", "eager_single_state")
COMPILE_SECONDS, ROW_SECONDS, PEER_SECONDS = 300, 120, 240
"""Longest a process of each kind may take."""
COMPILED = "compiled.json"
COMPILE_BYTES = 9e9
"""GPU memory one compiling process may need."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of engines and results")
    parser.add_argument(
        "--quick", action="store_true", help="fp16 only, batches 1 and 32, a fifth of the steps"
    )
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compile", action="store_true", help="compile the engines and measure nothing yet")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.task:
        print(json.dumps(TASKS[(task := json.loads(options.task)).pop("task")](options, **task)))
        return
    if options.compile:
        (options.out / COMPILED).write_text(json.dumps(compile_all(options)))
        return
    result = measure(options)
    path = options.out / "bench.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    print(f"written to {path}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(options)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "device": bench.run("machine", 120) or {},
        "loop": [],
        "peers": [],
    }
    if options.device == "cpu":
        bench.skip("loop", "it needs a GPU")
        for peer in (*EAGER, "compile_max_autotune"):
            result["peers"] += bench.rows("peer", PEER_SECONDS, ["fp32"], [2], peer=peer)
        return result | {"skipped": bench.skipped}
    compiled = options.out / COMPILED
    result |= json.loads(compiled.read_text()) if compiled.is_file() else compile_all(options)
    bench.skipped += result.pop("not_compiled")
    batches = BATCHES[options.quick]
    first, then = batches[:2], batches[2:]
    result["loop"] += bench.rows("loop", ROW_SECONDS, ["fp16"], batches)
    for peer in EAGER:
        result["peers"] += bench.rows("peer", PEER_SECONDS, ["fp16"], first, peer=peer)
    if not options.quick:
        result["peers"] += bench.rows("peer", PEER_SECONDS, ["fp16"], first[:1], peer="compile_max_autotune")
        result["loop"] += bench.rows("loop", ROW_SECONDS, ["bf16"], batches)
        for peer in EAGER:
            result["peers"] += bench.rows("peer", PEER_SECONDS, ["fp16"], then, peer=peer)
        result["peers"] += bench.rows("peer", PEER_SECONDS, ["fp16"], first[1:], peer="compile_max_autotune")
    for row in result["loop"]:
        peak = result["device"].get(f"matmul_tflops_{row['dtype']}")
        row["of_matmul_peak"] = row["tflops"] / peak if peak else None
    return result | {"skipped": bench.skipped}


def compile_all(options: argparse.Namespace) -> dict[str, Any]:
    """Every engine at once, as far as the GPU's memory goes: compiling is the host's work, and nothing is timed."""
    bench = Bench(options)
    dtypes = DTYPES[: 1 if options.quick else 2]
    wanted = [(dtype, batch) for dtype in dtypes for batch in BATCHES[options.quick]]
    memory = (bench.run("memory", 60) or {}).get("bytes", 0)
    workers = int(min(len(wanted), max(1, memory // COMPILE_BYTES)))
    # Each process would start a helper for every core.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    with ThreadPoolExecutor(workers) as pool:
        running = [
            pool.submit(bench.run, "compile", COMPILE_SECONDS, dtype=dtype, batch=batch)
            for dtype, batch in wanted
        ]
    return {"compile": [row for each in running if (row := each.result())], "not_compiled": bench.skipped}


class Bench:
    """Starts the processes and keeps the time; ``skipped`` lists what was left out, and why."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._end = time.monotonic() + options.budget
        self.skipped: list[str] = []

    def rows(self, task: str, seconds: float, dtypes: Any, batches: Any, **more: Any) -> list[Row]:
        pairs = [(dtype, batch) for dtype in dtypes for batch in batches]
        found = [self.run(task, seconds, dtype=dtype, batch=batch, **more) for dtype, batch in pairs]
        return [row for row in found if row]

    def run(self, task: str, seconds: float, **arguments: Any) -> Row | None:
        """The last line a task prints, which is its row; None when it was left out or failed."""
        name = " ".join(map(str, (task, *arguments.values())))
        left = self._end - time.monotonic()
        if left < 15:
            return self.skip(name, "no time was left")
        options = self._options
        command = [sys.executable, __file__, "--out", str(options.out), "--device", options.device]
        command += ["--quick"] * options.quick + ["--task", json.dumps({"task": task, **arguments})]
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=min(seconds, left))
        except subprocess.TimeoutExpired:
            return self.skip(name, f"it took longer than {min(seconds, left):.0f} s")
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it gave no reason"]
            (options.out / f"{name.replace(' ', '-')}.log").write_text(done.stderr)
            return self.skip(name, lines[-1])
        row: Row = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"  {json.dumps(row)}", file=sys.stderr, flush=True)
        return row

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(f"{name}: {reason}")
        print(f"  skipped {name}: {reason}", file=sys.stderr, flush=True)


def memory(options: argparse.Namespace) -> Row:
    """Bytes of memory the GPU has."""
    import torch

    return {"bytes": torch.cuda.get_device_properties(0).total_memory}


def machine(options: argparse.Namespace) -> Row:
    """What is measured on, and the ceilings it sets: a large matrix product and a large copy."""
    import torch

    row: Row = {"torch": torch.__version__, "python": sys.version.split()[0], "cpu_cores": os.cpu_count()}
    if options.device == "cpu":
        return row | {"name": "no GPU: nothing here is a measurement"}
    row |= {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        row["driver_and_clocks"] = told.strip()
    row["memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
    for name in DTYPES:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
        a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
        row[f"matmul_tflops_{name}"] = 2 * 8192**3 / device_seconds(lambda a=a, b=b: a @ b, 20) / 1e12
    big = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    half = 2**31
    row["copy_tb_s"] = 2 * half / device_seconds(lambda: big[:half].copy_(big[half:]), 20) / 1e12
    return row


def device_seconds(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of one call, by the device's clock."""
    import torch

    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(marks)) / 1e3


def compile_engine(options: argparse.Namespace, dtype: str, batch: int) -> Row:
    """The loop's networks compiled ahead of time; a folder a dtype and batch."""
    from model import ADAPTER, random_model

    from stage_rt.export.inductor import describe, write
    from stage_rt.recipe import Branch, Recipe
    from stage_rt.spec import UNET, adapter_graph

    start = time.monotonic()
    recipe = Recipe.authors()
    model = random_model(_size(options), options.device, recipe)
    wanted = describe(model.spec, dtype, [batch], "cpu" if options.device == "cpu" else None, "0" * 64)
    folder = _engine(options, dtype, batch)
    folder.mkdir(parents=True)
    write(model, wanted, folder, graphs=[UNET, *(adapter_graph(ADAPTER, branch) for branch in Branch)])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"dtype": dtype, "batch": batch, "seconds": time.monotonic() - start, "bytes": size}


def loop(options: argparse.Namespace, dtype: str, batch: int) -> Row:
    """The loop, and its networks alone, in the same process and in turn."""
    import numpy as np
    import torch
    from model import ADAPTER, GFLOP, PROMPT
    from safetensors.numpy import load_file

    from stage_rt.backends.inductor import InductorBackend
    from stage_rt.cuda import device, graphs
    from stage_rt.cuda.loop import Loop
    from stage_rt.folders import read_engine
    from stage_rt.recipe import Branch
    from stage_rt.spec import PROMPTS_FILE

    folder = _engine(options, dtype, batch)
    spec = _shortened(read_engine(folder), options)
    context = load_file(folder / PROMPTS_FILE)[PROMPT]
    free = torch.cuda.mem_get_info()[0]
    notices: list[str] = []
    stream = device.Stream()
    running = Loop(
        InductorBackend(folder, spec), spec.model, spec.model.recipe, ADAPTER, batch, stream, notices.append
    )
    memory = free - torch.cuda.mem_get_info()[0]
    clean, mask, noise = _inputs(spec.model, batch)
    engine_stream = torch.cuda.ExternalStream(stream.handle)

    def networks_alone() -> float:
        """Seconds a step of UNet and adapter, recorded as one graph and replayed: the bare engine."""
        with device.active():
            graph = graphs.capture(stream.handle, lambda: running.enqueue_networks(Branch.AWARE))
            with torch.cuda.stream(engine_stream):
                seconds = device_seconds(graph.launch, 30)
            graph.close()
        return seconds

    def whole() -> float:
        start = time.perf_counter()
        sampled = running.run(clean, mask, context, noise)
        taken = time.perf_counter() - start
        assert sampled.finite.all(), "a sample is not finite"
        return taken / spec.model.recipe.steps

    small = batch <= 8
    bare, looped = [networks_alone()], []
    for _ in range(3 if small else 1):
        looped.append(whole())
        bare.append(networks_alone())
    step, alone = statistics.median(looped), statistics.median(bare)
    latents = [running.run(clean, mask, context, noise).latent for _ in range(2 if small else 0)]
    row = {
        "dtype": dtype,
        "batch": batch,
        "engine": f"inductor, torch {torch.__version__}",
        "steps": spec.model.recipe.steps,
        "bare_ms_a_step": 1e3 * alone,
        "loop_ms_a_step": 1e3 * step,
        "loop_over_bare": step / alone,
        "seconds_a_pair": step * STEPS / batch,
        "pairs_an_hour": 3600 * batch / (step * STEPS),
        "tflops": GFLOP["full"] * batch / step / 1e3,
        "memory_bytes": memory,
        "replayed": not notices,
        "notices": notices,
        "same_bits_again": bool(np.array_equal(*latents)) if small else None,
    }
    return row | (_parity(running, folder, spec, context) if batch == 1 else {})


def _parity(running: Any, folder: Path, spec: Any, context: Any) -> Row:
    """The loop against the CPU's sampler over the same networks, called from the host one by one."""
    import numpy as np
    from model import ADAPTER

    from stage_rt.backends.inductor import InductorBackend
    from stage_rt.sampler import sample
    from stage_rt.spec import UNET, adapter_graph

    backend = InductorBackend(folder, spec)
    clean, mask, noise = _inputs(spec.model, 1)

    def denoise(x: Any, i: int, handed: Any, branch: Any) -> Any:
        eps = backend.run(UNET, sample=x, timestep=np.array([i]), context=context[None])
        return backend.run(adapter_graph(ADAPTER, branch), eps=eps, mask=handed)

    expected = sample(denoise, clean, mask, recipe=spec.model.recipe, noise=noise)
    found = running.run(clean, mask, context, noise).latent
    return {"max_abs_host_loop": float(np.abs(found - expected).max())}


def peer(options: argparse.Namespace, dtype: str, batch: int, peer: str) -> Row:
    """A peer's steps, timed by the host's clock around a whole stretch; both branches in the recipe's shares."""
    import torch
    from model import random_model
    from peers import PEERS, denoiser

    from stage_rt.recipe import Recipe

    loop, compiled = PEERS[peer]
    on_gpu = options.device == "cuda"
    # Fewer steps with the recipe's own share of only steps; a step costs the same wherever it is.
    warm, timed = (10, 40) if on_gpu else (2, 4)
    recipe = Recipe(
        name="short", steps=warm + timed, ema_stop=2, only_intervals=((1, 2), (warm, warm + timed // 5))
    )
    model = random_model(_size(options), options.device, recipe)
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    denoise = denoiser(model, batch, options.device, kinds[dtype], compiled if on_gpu else None)
    clean, mask, _ = _inputs(model.spec, batch)
    tensors = [torch.from_numpy(array).to(options.device) for array in (clean, mask)]
    finish = torch.cuda.synchronize if on_gpu else lambda: None
    if compiled:
        # Compiles and records both branches before anything is timed.
        for _ in loop(denoise, *tensors, recipe):
            pass
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
        "memory_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
    }


def _inputs(model: Any, batch: int) -> tuple[Any, Any, Any]:
    import numpy as np

    from stage_rt.noise import PhiloxNoise

    noise = PhiloxNoise([5] * batch, range(batch))
    clean = noise.encode((batch, model.latent_channels, model.latent_size, model.latent_size))
    mask = np.zeros((batch, 1, model.latent_size, model.latent_size), np.float32)
    quarter = model.latent_size // 4
    mask[:, :, quarter : 2 * quarter, quarter : 3 * quarter] = 1
    return clean, mask, noise


def _shortened(spec: Any, options: argparse.Namespace) -> Any:
    """For ``--quick`` the authors' recipe in a fifth of the steps, with the only branch at the same shares."""
    if not options.quick:
        return spec
    from stage_rt.recipe import Recipe

    recipe = Recipe(name="fifth", steps=STEPS // 5, ema_stop=40, only_intervals=((140, 160), (60, 80)))
    return spec.model_copy(update={"model": spec.model.model_copy(update={"recipe": recipe})})


def _size(options: argparse.Namespace) -> str:
    return "full" if options.device == "cuda" else "tiny"


def _engine(options: argparse.Namespace, dtype: str, batch: int) -> Path:
    return Path(options.out, "engines", f"{dtype}-b{batch}")


def show(result: dict[str, Any]) -> None:
    """A table for people."""
    print(result["device"].get("name", "unknown device"))
    for row in result["loop"]:
        print(
            f"loop {row['dtype']} batch {row['batch']:3}: {row['loop_ms_a_step']:8.3f} ms a step, "
            f"{row['loop_over_bare']:.3f} x bare, {row['seconds_a_pair']:.3f} s a pair, {row['tflops']:.0f} TFLOP/s"
        )
    for row in result["peers"]:
        print(
            f"{row['peer']:22} {row['dtype']} batch {row['batch']:3}: {row['ms_a_step']:8.3f} ms a step, "
            f"{row['seconds_a_pair']:.3f} s a pair"
        )
    for line in result["skipped"]:
        print(f"skipped {line}")


TASKS: dict[str, Callable[..., Row]] = {
    "memory": memory,
    "machine": machine,
    "compile": compile_engine,
    "loop": loop,
    "peer": peer,
}

if __name__ == "__main__":
    main()
