"""Who paints for ``stage-rt synth``: this process, others of this machine, or a Ray cluster."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from stage_rt.errors import InputError
from stage_rt.folders import read_engine
from stage_rt.run.crew import Crew
from stage_rt.run.gpus import gpus
from stage_rt.run.painters import Alone, Painters
from stage_rt.run.processes import Processes, Seat, seats
from stage_rt.run.workers import Loaded
from stage_rt.spec import EngineSpec

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Hands(NamedTuple):
    """What the options say of who is to paint."""

    workers: int | None = None
    devices: str | None = None
    ray: str | None = None


@contextmanager
def painters(engine: Path, hands: Hands, notify: Callable[[str], None]) -> Iterator[Painters]:
    """Those who paint with an engine, for as long as the block takes.

    Raises:
        InputError: the options do not fit each other or the engine.
        EngineError, DeviceError, MissingExtraError: as `stage_rt.loading.load`.
    """
    if not any(hands):
        with closing(_load(engine, notify)) as loaded:
            yield Alone(loaded)
        return
    spec, load = read_engine(engine), partial(_load, engine)
    if hands.devices and (hands.workers or hands.ray):
        raise InputError("`--devices` is a process for every GPU already: leave out `--workers` and `--ray`")
    if hands.ray:
        from stage_rt.run.ray import Cluster

        if hands.workers is None:
            raise InputError("`--ray` does not say how many actors are to paint: add `--workers 8`")
        with Crew(spec, Cluster(load, hands.ray, gpu=_on_gpu(spec)), hands.workers, notify) as crew:
            yield crew
        return
    places = _gpus(hands.devices, spec) if hands.devices else _shares(hands.workers or 1, spec)
    with Crew(spec, Processes(load, places), len(places), notify) as crew:
        yield crew


def _load(engine: Path, notify: Callable[[str], None]) -> Loaded:
    """Here, or in a worker, which imports this module for it."""
    from stage_rt.loading import load

    return load(engine, notify=notify)


def _shares(workers: int, spec: EngineSpec) -> list[Seat]:
    if _on_gpu(spec):
        raise InputError("`--workers` shares out the cores and this engine is for a GPU: use `--devices 0,1`")
    return seats(workers)


def _gpus(devices: str, spec: EngineSpec) -> list[Seat]:
    """A seat for every GPU, which is named by its number among those this process may use, or by its UUID."""
    names = devices.split(",")
    if not _on_gpu(spec):
        raise InputError("this engine is for the CPU and `--devices` are GPUs: use `--workers 2`")
    if len(set(names)) < len(names):
        raise InputError(f"`--devices {devices}` names a GPU twice: give every one once")
    visible = os.environ.get(_VISIBLE)
    # CUDA reads the list up to the first that is none; an empty one hides all.
    read = takewhile(lambda one: one not in ("", "-1"), (visible or "").split(","))
    allowed = None if visible is None else list(read)
    # None where NVML is not there to ask: the worker's CUDA then says it.
    there = len(gpus()) or None if allowed is None else len(allowed)
    return [Seat(device=_gpu(name, allowed, there)) for name in names]


def _gpu(name: str, allowed: list[str] | None, there: int | None) -> str:
    by_uuid = name.startswith(("GPU-", "MIG-"))
    if not by_uuid and not (name.isascii() and name.isdecimal()):
        raise InputError(f"`{name}` is no GPU: give numbers or UUIDs, as `--devices 0,1`")
    if there is not None and (0 if by_uuid else int(name)) >= there:
        count = (
            f"this machine has {there}, from 0 on"
            if allowed is None
            else f"`{_VISIBLE}` lets {there} be seen"
        )
        raise InputError(f"there is no GPU {name}: {count}")
    return name if by_uuid or allowed is None else allowed[int(name)]


def _on_gpu(spec: EngineSpec) -> bool:
    return spec.devices != ["cpu"]
