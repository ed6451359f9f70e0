"""A full-size checkpoint of random weights through the whole job: ``python benchmarks/full_size_checkpoint.py``.

Writes a ``model.ckpt`` with every tensor of text2img-large that is used (5.6 GiB in float32) and one training run
in the authors' format, then imports, exports, builds for ONNX Runtime and TensorRT-RTX and runs three steps of the
sampler at batch 1 on the former, each in a process of its own with its seconds and its peak memory, and holds those
steps against diffusers. ``--only generate`` leaves the files for other uses. Needs 14 GiB of memory and 18 GiB of
disk.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from stage_rt.machine import cpu_name

sys.path.append(str(Path(__file__).parents[1] / "tests"))

PROMPT = "bottle+broken_large"
SEED = 5
LIBRARIES = ("torch", "diffusers", "onnxruntime", "tensorrt-rtx-cu13")
RTX = ("--backend", "tensorrt-rtx", "--target", "sm86,sm89,sm120", "--dtype", "fp16", "--batch", "1")
BOUND = 1e-2
"""Largest error of the three estimates and states, relative to the largest value; the graphs are fp16."""


def generate(folder: Path) -> None:
    from authors_files import FULL, write_ldm, write_run

    write_ldm(folder / "model.ckpt", FULL)
    write_run(folder / "run", [PROMPT], sizes=FULL)


def recipe() -> Any:
    """Three steps, one of them of the only branch, so that both adapters run."""
    from stage_rt.recipe import Recipe

    return Recipe(name="three", steps=3, ema_stop=1, only_intervals=((1, 1),))


def inputs() -> tuple[Any, Any, Any]:
    """Clean latent, mask and noise of one sample."""
    from stage_rt.noise import PhiloxNoise

    clean = np.random.default_rng(SEED).standard_normal((1, 4, 32, 32), dtype=np.float32)
    mask = np.zeros((1, 1, 32, 32), np.float32)
    mask[:, :, 10:20, 8:22] = 1
    return clean, mask, PhiloxNoise([SEED])


def trajectory(denoise: Any) -> dict[str, Any]:
    """The guided estimates and the states of the three steps, each ``[3, 1, 4, 32, 32]``."""
    from stage_rt.sampler import sample

    clean, mask, noise = inputs()
    estimates, states = [], []

    def kept(*arguments: Any) -> Any:
        estimates.append(denoise(*arguments))
        return estimates[-1]

    sample(kept, clean, mask, recipe=recipe(), noise=noise, callback=lambda i, state: states.append(state))
    return {"estimates": np.stack(estimates), "states": np.stack(states)}


def steps(engine: Path) -> None:
    """Three steps on the engine, saved beside it."""
    from stage_rt.estimator import Condition
    from stage_rt.executor import HostExecutor
    from stage_rt.folders import read_contexts, read_engine
    from stage_rt.loading import open_backend
    from stage_rt.spec import PROMPTS_FILE

    spec = read_engine(engine)
    context = read_contexts(engine / PROMPTS_FILE, spec.model)[PROMPT]
    executor = HostExecutor(spec.model, open_backend(engine, spec))
    denoise = executor.denoiser(Condition(context, spec.model.prompts[PROMPT]))
    np.savez(engine.parent / "steps.npz", **trajectory(denoise))


def reference(model: Path) -> None:
    """The same steps with diffusers in float32, and the error of the engine's."""
    import torch

    from stage_rt.training.folder import load_model

    loaded = load_model(model)
    adapters = loaded.adapters[str(loaded.spec.prompts[PROMPT])]
    context = loaded.contexts[PROMPT][None]

    @torch.no_grad()
    def denoise(x: Any, i: int, handed: Any, branch: Any) -> Any:
        eps = loaded.unet(torch.from_numpy(x), torch.tensor([i]), context, return_dict=False)[0]
        return adapters[branch](eps, torch.from_numpy(np.ascontiguousarray(handed))).numpy()

    expected = trajectory(denoise)
    with np.load(model.parent / "steps.npz") as found:
        errors = {
            name: float(np.abs(found[name] - e).max() / np.abs(e).max()) for name, e in expected.items()
        }
    (model.parent / "parity.json").write_text(json.dumps({"relative": errors, "bound": BOUND}))


def stages(folder: Path) -> dict[str, list[str]]:
    """The commands in their order."""
    command = [sys.executable, "-c", "import sys; from stage_rt.cli import main; main(sys.argv[1:])"]
    this = [sys.executable, __file__, "--folder", str(folder), "--only"]
    ldm, run, model, graphs, engine = (
        str(folder / name) for name in ("model.ckpt", "run", "model", "graphs", "engine")
    )
    adapters = f"{PROMPT}={run}"
    return {
        "generate": [*this, "generate"],
        "import": [
            *command,
            "import",
            "stage",
            "--ldm",
            ldm,
            "--adapters",
            adapters,
            "-o",
            model,
            "--dtype",
            "fp16",
        ],
        "export": [*command, "export", model, "-o", graphs, "--dtype", "fp16"],
        "build": [*command, "build", graphs, "-o", engine, "--batch", "1"],
        "build_rtx": [*command, "build", graphs, "-o", str(folder / "engine_rtx"), *RTX],
        "steps": [*this, "steps"],
        "reference": [*this, "reference"],
    }


def measured(command: list[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of a process; mapped files count where they were read."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def sizes(folder: Path) -> dict[str, int]:
    """MiB of everything that was made."""
    return {
        entry.name: round(sum(p.stat().st_size for p in [entry, *entry.rglob("*")] if p.is_file()) / 2**20)
        for entry in sorted(folder.iterdir())
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder")
    parser.add_argument(
        "--only", choices=("generate", "steps", "reference"), help="do one part in this process"
    )
    parser.add_argument("--json", type=Path, help="write the results here, after every stage")
    parser.add_argument("--note", help="what else the machine was doing")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.only:
        part = {
            "generate": lambda: generate(folder),
            "steps": lambda: steps(folder / "engine"),
            "reference": lambda: reference(folder / "model"),
        }
        part[arguments.only]()
        return
    result: dict[str, Any] = {
        "device": cpu_name(),
        "system": platform.platform(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "note": arguments.note,
        "stages": {},
    }
    for name, command in stages(folder).items():
        result["stages"][name] = measured(command)
        print(name, result["stages"][name], flush=True)
        if (folder / "parity.json").exists():
            result["parity"] = json.loads((folder / "parity.json").read_text())
        result["mib"] = sizes(folder)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if max(result["parity"]["relative"].values()) > BOUND:
        raise SystemExit(f"the engine differs from diffusers by {result['parity']['relative']}")


if __name__ == "__main__":
    main()
