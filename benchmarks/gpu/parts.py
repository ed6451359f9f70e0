"""What is done on a GPU, part by part: the checks of the kernels first, then rows, those with targets first."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

Mode = Literal["full", "quick", "dry"]
Way = Literal["traced", "compiled", "tuned", "plain"]
"""How an engine's networks are made: traced, compiled, compiled with kernels chosen by trying them, or compiled and
computing at every step what depends on prompt or timestep alone."""

CHECK_SECONDS, MACHINE_SECONDS, COMPILE_SECONDS, LOOP_SECONDS, PEER_SECONDS = 90, 60, 400, 120, 120
TUNED_SECONDS, DEMO_SECONDS = 900, 900
"""The longest a part of each kind may take; max-autotune tries every matrix product in many ways."""

COMPILER = "engine_compiled"
"""The check without which nothing is compiled."""
CHECKS = ("kernels", "loop_checks", "memcheck", "racecheck", "loop_memcheck", "engine_traced", COMPILER)
"""Parts that pass or fail; every other gives a row of figures."""


class Part(NamedTuple):
    """A process: its name, the longest it may take in seconds, and its command.

    ``before`` makes the file ``made`` that this part reads, and is left out where that is there already. Without the
    check that it ``needs`` a part is not begun.
    """

    name: str
    seconds: float
    command: list[str]
    before: "Part | None" = None
    made: Path | None = None
    needs: str | None = None


class Place(NamedTuple):
    """Where things are: the folder that is worked in, that of the engines, which holds none that another source or
    another PyTorch made, the compiled ``step_driver``, and compute-sanitizer or None."""

    work: Path
    engines: Path
    driver: Path
    sanitizer: Path | None


def plan(mode: Mode, place: Place) -> Iterator[Part]:
    """The parts of a mode, in order. ``dry`` does one of each kind with tiny networks and measures nothing."""
    for part in _parts(mode, place):
        yield part if mode != "dry" else _patient(part)


def _patient(part: Part) -> Part:
    """Nobody pays for a dry run by the minute, and its machine may have other things to do."""
    before = part.before and _patient(part.before)
    return part._replace(seconds=20 * part.seconds, before=before)


def _parts(mode: Mode, place: Place) -> Iterator[Part]:
    dtype, first = ("fp32", (1,)) if mode == "dry" else ("fp16", (32, 1))
    yield from _checks(mode, place)
    yield _task(mode, place, "machine", MACHINE_SECONDS)
    # What is traced is there in seconds; a compiler may take all the time there is.
    for batch in first:
        yield _loop(mode, place, dtype, batch, "traced")
    for batch in first:
        yield _peer(mode, place, "authors_eager", dtype, batch)
    yield _peer(mode, place, "eager", dtype, first[0])
    if mode == "full":
        yield Part("demo", DEMO_SECONDS, [sys.executable, str(HERE / "demo.py"), str(place.work)])
    if mode != "dry":
        yield Part(COMPILER, COMPILE_SECONDS, [*_pytest("test_gpu_engine.py"), "-k", "inductor"])
    for batch in first:
        yield _loop(mode, place, dtype, batch, "compiled")
    yield _peer(mode, place, "compiled", dtype, first[0])
    if mode == "full":
        yield from _rest(mode, place, dtype, first)


def _rest(mode: Mode, place: Place, dtype: str, first: tuple[int, ...]) -> Iterator[Part]:
    """What is measured with all the time there is."""
    for batch in (8, 64):
        yield _loop(mode, place, dtype, batch, "traced")
    yield _peer(mode, place, "eager", dtype, 1)
    rows: tuple[tuple[Way, str, tuple[int, ...]], ...] = (
        ("tuned", dtype, first),
        ("compiled", dtype, (8, 64)),
        ("plain", dtype, first),
        ("traced", "bf16", first),
        ("compiled", "bf16", first),
    )
    for way, each, batches in rows:
        for batch in batches:
            yield _loop(mode, place, each, batch, way)
    yield _peer(mode, place, "compiled", dtype, 1)


def _checks(mode: Mode, place: Place) -> Iterator[Part]:
    kernels = [sys.executable, str(HERE / "check_step.py"), str(place.driver)]
    loop = _pytest("test_gpu.py")
    yield Part("kernels", CHECK_SECONDS, [*kernels, "--json", str(place.work / "kernels.json")])
    yield Part("loop_checks", CHECK_SECONDS, loop)
    if place.sanitizer:
        for tool in ("memcheck", "racecheck"):
            yield Part(tool, CHECK_SECONDS, [*kernels, "--under", *_under(place.sanitizer, tool)])
        # Batches that are filled up, in all dtypes; the others would take minutes.
        under = [*_under(place.sanitizer, "memcheck"), *loop, "-k", "3-4 or own_are"]
        yield Part("loop_memcheck", CHECK_SECONDS, under)
    if mode != "dry":
        yield Part("engine_traced", CHECK_SECONDS, [*_pytest("test_gpu_engine.py"), "-k", "torch"])


def _pytest(name: str) -> list[str]:
    """The tests of a file that need a GPU; one that is skipped fails them."""
    options = ("-q", "-p", "no:cacheprovider", "-W", "default", "-m", "gpu")
    return [sys.executable, "-P", str(HERE / "unskipped.py"), *options, str(ROOT / "tests/cuda" / name)]


def _under(sanitizer: Path, tool: str) -> list[str]:
    # Calls that fail are ours to see to, and cuda-bindings asks an older driver for functions that it has not got.
    return [str(sanitizer), "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]


def _loop(mode: Mode, place: Place, dtype: str, batch: int, way: Way) -> Part:
    what: dict[str, Any] = {"dtype": dtype, "batch": batch, "way": way}
    seconds = TUNED_SECONDS if way == "tuned" else COMPILE_SECONDS
    part = _task(mode, place, "loop", LOOP_SECONDS, **what)
    return part._replace(
        before=_task(mode, place, "compile", seconds, **what),
        made=engine(place.engines, **what) / "engine.json",
        needs=None if way == "traced" else COMPILER,
    )


def _peer(mode: Mode, place: Place, peer: str, dtype: str, batch: int) -> Part:
    # PyTorch compiles this one before its first step.
    seconds = TUNED_SECONDS if peer == "compiled" else PEER_SECONDS
    return _task(mode, place, "peer", seconds, peer=peer, dtype=dtype, batch=batch)


def _task(mode: Mode, place: Place, task: str, seconds: float, **arguments: Any) -> Part:
    call = json.dumps({"task": task, "mode": mode, "engines": str(place.engines), **arguments})
    return Part(
        "_".join([task, *map(str, arguments.values())]),
        seconds,
        [sys.executable, str(HERE / "tasks.py"), call],
    )


def engine(engines: Path, dtype: str, batch: int, way: Way) -> Path:
    """Folder of an engine."""
    return engines / f"{dtype}-b{batch}-{way}"
