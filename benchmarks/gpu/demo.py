"""The demo as a user has it on a GPU: ``python demo.py WORK``, whose only line of output is a row.

Traced in fp32, held against PyTorch over a whole trajectory, then painted: all by the commands of
`stage-rt`, which leave an engine and a run in WORK/demo.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "models/demo"
PROMPT, MASKS = "brick+crack", "crack"
BATCH, PAIRS, STEPS = 32, 64, 1000


def main() -> None:
    work = Path(sys.argv[1]) / "demo"
    engine, run = work / "engine", work / "run"
    # An engine that other sources built would be up to date, and built in no time.
    shutil.rmtree(work, ignore_errors=True)
    build = ["build", DEMO, "-o", engine, "--backend", "torch", "--dtype", "fp32", "--batch", BATCH]
    paint = [
        "synth",
        engine,
        "-o",
        run,
        "--normals",
        DEMO / "inputs/normals",
        "--masks",
        DEMO / "inputs/masks" / MASKS,
    ]
    paint += ["--prompt", PROMPT, "--count", PAIRS, "--steps", STEPS, "--augment-masks"]
    built, _ = command(*build)
    verified, told = command("verify", engine, "--model", DEMO, "--json")
    painted, summary = command(*paint, "--json")
    row = {
        "dtype": "fp32",
        "batch": BATCH,
        "build_seconds": built,
        "verify_seconds": verified,
        "verify": json.loads(told)["worst"],
        "pairs": PAIRS,
        "steps": STEPS,
        "synth_seconds": painted,
        "summary": json.loads(summary),
    }
    print(json.dumps(row))


def command(*words: Any) -> tuple[float, str]:
    """Seconds that a command of stage-rt took, and what it printed."""
    start = time.monotonic()
    told = [str(word) for word in words]
    done = subprocess.run(
        [Path(sys.executable).with_name("stage-rt"), *told], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"`stage-rt {' '.join(told)}` ended with code {done.returncode}")
    return time.monotonic() - start, done.stdout


if __name__ == "__main__":
    main()
