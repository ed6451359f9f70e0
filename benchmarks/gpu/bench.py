"""Runs the parts of `parts.py` on a GPU, each in processes of its own and never two at once; see ``run.sh``.

After every part the results lie in ``--out``: ``rows.jsonl`` (a line a part), ``gpu-<device>.json`` (all of them as
one file) and ``log.txt`` (what the processes said). Parts that are in ``WORK/rows.jsonl``, of the same source on the
same kind of GPU with the same driver and PyTorch, are not done again, so the same command goes on where it was cut;
on another machine once that file has been put there. A part that fails or takes too long is told of and costs no
other.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from collect import collect, slug
from parts import CHECKS, Part, Place, plan

ROWS, LOG = "rows.jsonl", "log.txt"
LEAST_SECONDS = 10
"""No part is begun with less time than this."""
LOG_BYTES = 2**22
"""What is kept of the log, its end."""

GUARD = "trap '' HUP INT TERM; read -r _; kill -s KILL 0"
"""Ends its own process group once the other end of its pipe is closed, which a killed process does too."""

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of engines, caches and rows.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--mode", choices=("full", "quick", "dry"), default="full")
    parser.add_argument("--budget", type=float, required=True, help="seconds for everything")
    parser.add_argument("--source", required=True, help="digest of what is measured, as source.sh prints it")
    parser.add_argument("--driver", type=Path, required=True, help="step_driver.cu, compiled")
    parser.add_argument("--sanitizer", type=Path, help="compute-sanitizer")
    parser.add_argument("--checks", action="store_true", help="do no part but the checks")
    options = parser.parse_args()
    device = gpu()
    if device is None:
        sys.exit("no NVIDIA GPU answers here: run this where `nvidia-smi` shows one")
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    key = {
        "source": options.source,
        "device": device,
        "mode": options.mode,
        "driver": driver_release(),
        "torch": metadata.version("torch"),
    }
    bench = Bench(options.work, options.out, key, options.budget)
    place = Place(options.work, own_engines(options.work, key), options.driver, options.sanitizer)
    for part in plan(options.mode, place):
        if part.name in CHECKS or not options.checks:
            bench.do(part)
    failed = bench.failed()
    print(f"{len(bench.finished())} parts finished, {len(failed)} did not; results in {options.out}")
    for name, reason in failed.items():
        print(f"  {name}: {reason}")
    sys.exit(any(name in CHECKS for name in failed))


def gpu() -> str | None:
    """The name of the first GPU, asked of the driver without a context on it; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    asked = [
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
    ]
    return name.value.decode() if all(ask() == 0 for ask in asked) else None


def driver_release() -> str:
    """The driver's release as NVML tells it, as ``580.159.04``; ``unknown`` where there is no NVML."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "unknown"
    release = ctypes.create_string_buffer(80)
    asked = [nvml.nvmlInit_v2, lambda: nvml.nvmlSystemGetDriverVersion(release, len(release))]
    return release.value.decode() if all(ask() == 0 for ask in asked) else "unknown"


def own_engines(work: Path, key: Mapping[str, str]) -> Path:
    """The folder of engines that these sources make here; those of other sources, gigabytes each, are removed."""
    own = work / "engines" / f"{slug(key['device'])}-{key['source']}-torch-{key['torch']}"
    for other in own.parent.glob("*"):
        if other != own:
            shutil.rmtree(other)
    return own


class Bench:
    """The records of a benchmark, and the time that is left to it.

    A record is ``part`` (its name), ``date``, ``seconds``, either ``row`` or ``failed``, and the key: ``source``,
    ``device``, ``mode``, ``driver`` and ``torch``. Those of another key do not count.
    """

    def __init__(self, work: Path, out: Path, key: Mapping[str, str], budget: float) -> None:
        self._work, self._out, self._key = work, out, key
        self._end = time.monotonic() + budget
        self._records = [record for record in read(work / ROWS) if self._key.items() <= record.items()]
        if not any(record["part"] == "kernels" for record in self._records):
            # What the check of other sources found.
            (work / "kernels.json").unlink(missing_ok=True)
        self.publish()

    def finished(self) -> dict[str, Any]:
        """The rows by the names of their parts."""
        return {record["part"]: record["row"] for record in self._records if "row" in record}

    def failed(self) -> dict[str, str]:
        """Why a part has no row, by its name."""
        last = {record["part"]: record["failed"] for record in self._records if "failed" in record}
        return {name: reason for name, reason in last.items() if name not in self.finished()}

    def do(self, part: Part) -> bool:
        """Do a part that has no row yet; whether it has one now."""
        if part.name in self.finished():
            say(f"{part.name}: there already")
            return True
        if part.needs in self.failed():
            return self._keep(part, 0, failed=f"{part.needs} failed")
        if part.before and part.made and not part.made.exists():
            # The row of an earlier machine, whose files are not here.
            self._records = [record for record in self._records if record["part"] != part.before.name]
            if not self.do(part.before):
                return self._keep(part, 0, failed=f"there is no {part.before.name}")
        left = self._end - time.monotonic()
        if left < LEAST_SECONDS:
            return self._keep(part, 0, failed="no time was left")
        say(f"{part.name} ...")
        begun = time.monotonic()
        code, printed = run(part.command, min(part.seconds, left), self._work / "logs" / f"{part.name}.log")
        seconds = time.monotonic() - begun
        self._log(part.name)
        if code is None:
            return self._keep(part, seconds, failed=f"it took longer than {min(part.seconds, left):.0f} s")
        if code < 0:
            return self._keep(part, seconds, failed=f"ended by {signal.Signals(-code).name}: see {LOG}")
        if code:
            return self._keep(part, seconds, failed=last_line(self._work / "logs" / f"{part.name}.log"))
        row = "pass" if part.name in CHECKS else json.loads(printed.strip().splitlines()[-1])
        return self._keep(part, seconds, row=row)

    def publish(self) -> None:
        """Leave all results in the folder for them, whole files each."""
        if (self._work / ROWS).exists():
            replace(self._out / ROWS, (self._work / ROWS).read_bytes())
        kernels = self._work / "kernels.json"
        checked = json.loads(kernels.read_text()) if kernels.is_file() else []
        result = collect(self._key, self.finished(), self.failed(), checked)
        name = "dry" if self._key["mode"] == "dry" else f"gpu-{slug(self._key['device'])}"
        replace(self._out / f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())

    def _keep(self, part: Part, seconds: float, **outcome: Any) -> bool:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"part": part.name, **self._key, "date": date, "seconds": round(seconds, 1), **outcome}
        self._records.append(record)
        with (self._work / ROWS).open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        say(f"  {json.dumps(outcome)}")
        self.publish()
        return "row" in outcome

    def _log(self, name: str) -> None:
        whole = (self._work / LOG).read_bytes() if (self._work / LOG).exists() else b""
        whole += f"\n=== {name}\n".encode() + (self._work / "logs" / f"{name}.log").read_bytes()
        for folder in (self._work, self._out):
            replace(folder / LOG, whole[-LOG_BYTES:])


def run(command: list[str], seconds: float, log: Path) -> tuple[int | None, str]:
    """The exit code of a process and what it printed; None where it had to be ended. Nothing of it is left running.

    ``log`` gets what it says beside that. Both go to files: what it leaves behind would hold a pipe open.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    printed = log.with_suffix(".out")
    with log.open("w") as said, printed.open("w") as out, guarded() as group:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=said,
            process_group=group,
            # Where a library crashes, the log shall tell in which call.
            env=os.environ | {"PYTHONFAULTHANDLER": "1"},
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
    process.wait()
    with log.open("a") as said:
        said.write(printed.read_text())
    return code, printed.read_text()


@contextmanager
def guarded() -> Iterator[int]:
    """The number of a process group of which nothing is left after the block, nor after this process.

    A compiler leaves helpers, which would share the GPU with the next part; and a part that outlives this process, as
    when its terminal is gone, would share it with the parts of the next one.
    """
    guard = subprocess.Popen(["sh", "-c", GUARD], stdin=subprocess.PIPE, process_group=0)
    try:
        yield guard.pid
    finally:
        # Nobody has waited for the guard yet, so the number is still the group's.
        os.killpg(guard.pid, signal.SIGKILL)
        guard.communicate()


def read(path: Path) -> list[Record]:
    """The records of a file; the last line may have been cut."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            say(f"a line of {path} was cut and is left out")
    return found


def replace(path: Path, content: bytes) -> None:
    """Write a file that is never seen half written."""
    staged = path.with_name(f".{path.name}")
    staged.write_bytes(content)
    shutil.move(staged, path)


def last_line(path: Path) -> str:
    """The last line of a log that says anything."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason"


def say(text: str) -> None:
    print(f"bench.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
