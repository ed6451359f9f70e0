"""The full-size model from random weights to an engine: seconds, peak memory and sizes of every stage.

``python benchmarks/full_size.py SCRATCH [--backend tensorrt-rtx|onnxruntime|openvino]`` makes the 872.3 M-parameter
UNet, the authors' two adapters and their autoencoder with random weights, exports them and builds an engine for them,
each in a process of its own; an engine for a CPU then paints one pair in `STEPS` steps, and shows nothing by it but
what that costs. 6 GB of SCRATCH are used, in fp32 10, and given back. Nothing needs a GPU.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stage_rt.machine import cpu_name

RESULTS = Path(__file__).parent / "results"

ADAPTER_PARAMETERS = 2_662_532
VAE_PARAMETERS = 83_653_863

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 256,
}
BOUNDS = {
    "export": {"seconds": 70, "peak_bytes": 4.5e9},
    "build": {"seconds": 25, "peak_bytes": 6.5e9},
}
"""To hold on two cores; the build's are those of TensorRT-RTX for three targets."""
PHASES = "phases.json"
LIBRARIES = {"tensorrt-rtx": "tensorrt-rtx-cu13", "onnxruntime": "onnxruntime", "openvino": "openvino"}
GRAPHS = {"tensorrt-rtx": "fp16", "onnxruntime": "fp32", "openvino": "bf16"}
"""Dtype of the graphs that each is given."""
BUILDS = {
    "tensorrt-rtx": "--dtype fp16 --batch 8 --target sm86,sm89,sm120",
    "onnxruntime": "--dtype fp32 --batch 1",
    "openvino": "--dtype bf16 --batch 1",
}
PROMPT = "random+weights"
STEPS = 50
ENGINE_SHARE = 1.02
"""Size of the engine beside that of the fp16 weights."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path, help="folder to work in; must not exist")
    parser.add_argument("--backend", default="tensorrt-rtx", choices=tuple(BUILDS))
    parser.add_argument("--cores", type=int, default=2, help="cores every stage may use")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage = STAGES[options.stage]
        stage(options.scratch, GRAPHS[options.backend])
        return
    options.scratch.mkdir(parents=True)
    try:
        result = measure(options.scratch, options.backend, options.cores)
    finally:
        shutil.rmtree(options.scratch)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"full_size-{options.backend}-{slug(cpu_name())}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    print(f"written to {path}")


def measure(scratch: Path, backend: str, cores: int) -> dict[str, Any]:
    """Run every stage in its own process, on the same ``cores`` cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = str(cores)
    model, graphs, engine = scratch / "model", scratch / "graphs", scratch / "engine"
    command = [sys.executable, "-c", "from stage_rt.cli import main; main()"]
    own = [sys.executable, __file__, scratch, "--backend", backend, "--stage"]
    build = ["build", graphs, "-o", engine, "--backend", backend, *BUILDS[backend].split()]
    stages = {
        "generate": ([*own, "generate"], model),
        "export": ([*own, "export"], graphs),
        "build": ([*command, *build], engine),
    }
    if backend != "tensorrt-rtx":
        stages["paint"] = ([*command, *paint(scratch, engine)], scratch / "run")
    figures = {name: timed(name, [*map(str, words)], folder) for name, (words, folder) in stages.items()}
    phases = json.loads((scratch / PHASES).read_text())
    # The marks taken between the phases took the kernel's own with them.
    figures["export"]["peak_bytes"] = max(phase["peak_bytes"] for phase in phases)
    share = figures["build"]["bytes"] / weights_bytes(model)
    return {
        "device": cpu_name(),
        "system": platform.platform(),
        "backend": backend,
        "versions": {name: version(name) for name in ("torch", "diffusers", "onnx", LIBRARIES[backend])},
        "stages": figures,
        "export_phases": phases,
        "engine_to_weights": share,
        "held": held(figures, backend, share),
    }


def paint(scratch: Path, engine: Path) -> list[str]:
    """The command that paints one pair; its photograph and its mask are written first."""
    import numpy as np
    from PIL import Image

    photo = np.random.default_rng(0).integers(90, 160, (256, 256, 3), dtype=np.uint8)
    label = np.zeros((256, 256), np.uint8)
    label[100:160, 80:180] = 255
    options = []
    for name, picture in {"normals": photo, "masks": label}.items():
        (scratch / name).mkdir()
        Image.fromarray(picture).save(scratch / name / "0.png")
        options += [f"--{name}", scratch / name]
    return [
        "synth",
        engine,
        "-o",
        scratch / "run",
        *options,
        "--prompt",
        PROMPT,
        "--steps",
        str(STEPS),
        "--count",
        "1",
        "--batch",
        "1",
    ]


def timed(name: str, command: list[str], folder: Path) -> dict[str, float]:
    """Seconds and peak resident memory of a process, and the size of what it wrote."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"stage {name} failed with exit code {code}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def generate(scratch: Path, dtype: str) -> None:
    """Write the model folder in fp16; no more than one network is in memory."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file

    sys.path.append(str(Path(__file__).parent / "gpu"))
    from model import FULL_PARAMETERS, UNETS

    from stage_rt.recipe import Branch, Recipe
    from stage_rt.spec import MODEL_FILE, PROMPTS_FILE, ModelSpec
    from stage_rt.training.adapter import MaskGuidanceAdapter

    folder = scratch / "model"
    spec = ModelSpec(
        image_size=256,
        latent_size=32,
        latent_scale=0.18215,
        tokens=77,
        context_dim=1280,
        recipe=Recipe.authors(),
        prompts={PROMPT: "random"},
    )
    torch.manual_seed(0)
    write_random(folder / "unet", UNet2DConditionModel, UNETS["full"], FULL_PARAMETERS)
    write_random(folder / "vae", AutoencoderKL, VAE, VAE_PARAMETERS)
    for branch in Branch:
        write_random(folder / "adapters/random" / branch, MaskGuidanceAdapter, {}, ADAPTER_PARAMETERS)
    save_file({PROMPT: torch.randn(spec.tokens, spec.context_dim)}, folder / PROMPTS_FILE)
    (folder / MODEL_FILE).write_text(spec.model_dump_json(indent=2) + "\n")


def write_random(folder: Path, kind: Any, config: dict[str, Any], parameters: int) -> None:
    """A network whose weights keep the variance of what goes through it; never there in float32."""
    import torch
    from torch import nn

    with torch.device("meta"):
        network = nn.Module.to(kind(**config), torch.float16)
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    nn.Module.to_empty(network, device="cpu")
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim > 1:
                bound = (3 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound)
            else:
                # Gains and running variances are 1; biases, running means and counters 0.
                is_gain = name.endswith((".weight", "running_var"))
                tensor.fill_(1 if is_gain else 0)
    network.save_pretrained(folder)


def weights_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in model.rglob("*.safetensors"))


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\(\w+\)", "", name).lower()).strip("-")


def held(stages: dict[str, dict[str, float]], backend: str, share: float) -> dict[str, bool]:
    """Each bound and whether it was held; all were set for fp16 and TensorRT-RTX."""
    if backend != "tensorrt-rtx":
        return {}
    return {
        "engine_to_weights": share <= ENGINE_SHARE,
        **{
            f"{stage}.{figure}": stages[stage][figure] <= limit
            for stage, limits in BOUNDS.items()
            for figure, limit in limits.items()
        },
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['device']}, {result['backend']}, {result['versions']}")
    print(f"{'stage':<10} {'seconds':>8} {'CPU s':>8} {'peak GB':>8} {'written GB':>11}")
    for name, stage in result["stages"].items():
        print(
            f"{name:<10} {stage['seconds']:>8.1f} {stage['cpu_seconds']:>8.1f} "
            f"{stage['peak_bytes'] / 1e9:>8.2f} {stage['bytes'] / 1e9:>11.3f}"
        )
    for phase in result["export_phases"]:
        print(f"{phase['phase']:<45} {phase['seconds']:>8.1f} s {phase['peak_bytes'] / 1e9:>6.2f} GB")
    print(f"engine / fp16 weights {result['engine_to_weights']:.3f}")
    for bound, kept in result["held"].items():
        print(f"{bound:<20} {'held' if kept else 'NOT HELD'}")


def export(scratch: Path, dtype: str) -> None:
    """Export, with seconds and peak memory of every phase written to ``phases.json``."""
    from stage_rt.export.graphs import export as run

    phases: list[dict[str, Any]] = []
    started = 0.0

    def close() -> None:
        if phases:
            phases[-1] |= {"seconds": time.perf_counter() - started, "peak_bytes": own_peak()}

    def say(phase: str) -> None:
        nonlocal started
        close()
        phases.append({"phase": phase})
        started = time.perf_counter()
        # Starts the high-water mark anew (proc(5)).
        Path("/proc/self/clear_refs").write_text("5")

    run(scratch / "model", scratch / "graphs", dtype=dtype, say=say)
    close()
    (scratch / PHASES).write_text(json.dumps(phases))


def own_peak() -> int:
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


STAGES = {"generate": generate, "export": export}

if __name__ == "__main__":
    main()
