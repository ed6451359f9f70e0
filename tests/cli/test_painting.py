"""Who paints: what the options ask for fits the engine, and cores and GPUs are shared out without an overlap."""

import multiprocessing
import os
import sys
from contextlib import suppress

import pytest
from fake_engine import FakeEngine, stand_in

from stage_rt.cli import painting
from stage_rt.cli.painting import Hands, painters
from stage_rt.errors import InputError, MissingExtraError
from stage_rt.run import processes
from stage_rt.run.painters import Alone
from stage_rt.run.processes import Seat, seats


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """What an engine for some devices is opened with."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(painting, "gpus", list)
    made = []

    def crew(spec, transport, size, notify):
        made.append((transport, size))
        raise KeyboardInterrupt

    def ask(kinds=("cpu",), **options):
        engine = FakeEngine()
        engine.spec = engine.spec.model_copy(update={"devices": list(kinds)})
        monkeypatch.setattr(painting, "read_engine", lambda folder: engine.spec)
        monkeypatch.setitem(sys.modules, "stage_rt.loading", stand_in(engine))
        monkeypatch.setattr(painting, "Processes", lambda load, places: places)
        monkeypatch.setattr(painting, "Crew", crew)
        made.clear()
        try:
            with painters(tmp_path, Hands(**options), print) as hands:
                return hands
        except KeyboardInterrupt:
            return made[0]

    return ask


def test_without_options_this_process_paints(opened):
    assert isinstance(opened(), Alone)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_engine_is_closed_once_all_is_painted(tmp_path, monkeypatch, stopped):
    """So TensorRT-RTX keeps the kernels that it compiled."""
    engine = FakeEngine()
    monkeypatch.setitem(sys.modules, "stage_rt.loading", stand_in(engine))
    with suppress(KeyboardInterrupt), painters(tmp_path, Hands(), print):
        assert engine.closed == 0
        if stopped:
            raise KeyboardInterrupt
    assert engine.closed == 1


def test_a_worker_closes_its_engine_before_it_ends(monkeypatch):
    engine, ended = FakeEngine(), []
    monkeypatch.setattr(processes.os, "_exit", lambda code: ended.append((code, engine.closed)))
    mine, theirs = multiprocessing.Pipe()
    mine.send(None)
    processes._serve(0, theirs, lambda notify: engine, Seat())
    assert ended[0] == (0, 1)
    mine.close()


def test_every_worker_has_a_share_of_the_cores(monkeypatch):
    for cores, workers, shares in (
        ({0, 1, 2, 3}, 2, [(0, 1), (2, 3)]),
        ({3, 5, 9}, 2, [(3,), (5, 9)]),
        ({4}, 3, [(4,), (4,), (4,)]),
        ({0, 1}, 3, [(0,), (0,), (1,)]),
        (set(range(64)), 1, [tuple(range(64))]),
    ):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: cores)
        assert [seat.cores for seat in seats(workers)] == shares


def test_workers_are_processes_of_this_machine(opened):
    places, size = opened(workers=2)
    assert (size, len(places)) == (2, 2)
    assert all(place.cores and place.device is None for place in places)


def test_every_gpu_has_a_process(opened, monkeypatch):
    gpu = ("sm90",)
    assert opened(gpu, devices="0,3") == ([Seat(device="0"), Seat(device="3")], 2)
    assert opened(gpu, devices="GPU-1f,MIG-2") == ([Seat(device="GPU-1f"), Seat(device="MIG-2")], 2)
    # Of those that a scheduler lets this process see.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert opened(gpu, devices="1,0") == ([Seat(device="GPU-7"), Seat(device="4")], 2)
    with pytest.raises(InputError, match="there is no GPU 2: `CUDA_VISIBLE_DEVICES` lets 2 be seen"):
        opened(gpu, devices="2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,-1,5")
    with pytest.raises(InputError, match="there is no GPU 1: `CUDA_VISIBLE_DEVICES` lets 1 be seen"):
        opened(gpu, devices="0,1")


def test_more_gpus_than_the_machine_has_are_told_their_number(opened, monkeypatch):
    gpu = ("sm90",)
    monkeypatch.setattr(painting, "gpus", lambda: [object()] * 2)
    assert opened(gpu, devices="1,0,GPU-9") == (
        [Seat(device="1"), Seat(device="0"), Seat(device="GPU-9")],
        3,
    )
    with pytest.raises(InputError, match=r"^there is no GPU 2: this machine has 2, from 0 on$"):
        opened(gpu, devices="0,2")
    # NVML counts GPUs of the machine, and not those of this process.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(InputError, match="there is no GPU 1: `CUDA_VISIBLE_DEVICES` lets 1 be seen"):
        opened(gpu, devices="1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert opened(gpu, devices="2")[1] == 1


@pytest.mark.parametrize("hidden", ["", "-1"])
@pytest.mark.parametrize("name", ["0", "GPU-1f"])
def test_of_hidden_gpus_there_is_none(opened, monkeypatch, hidden, name):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(InputError, match=f"there is no GPU {name}: `CUDA_VISIBLE_DEVICES` lets 0 be seen"):
        opened(("sm90",), devices=name)


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (("sm90",), {"workers": 2}, "this engine is for a GPU: use `--devices 0,1`"),
        (
            ("cpu",),
            {"devices": "0"},
            "this engine is for the CPU and `--devices` are GPUs: use `--workers 2`",
        ),
        (("sm90",), {"devices": "0,1,0"}, "`--devices 0,1,0` names a GPU twice: give every one once"),
        (("sm90",), {"devices": "0,x"}, "`x` is no GPU: give numbers or UUIDs"),
        (("sm90",), {"devices": "0,"}, "`` is no GPU: give numbers or UUIDs"),
        (("sm90",), {"devices": "0", "workers": 2}, "leave out `--workers` and `--ray`"),
        (("cpu",), {"ray": "auto"}, "`--ray` does not say how many actors are to paint: add `--workers 8`"),
        (("sm90",), {"devices": "0", "ray": "auto"}, "leave out `--workers` and `--ray`"),
    ],
)
def test_options_that_do_not_fit_are_refused(opened, kinds, options, message):
    with pytest.raises(InputError, match=message):
        opened(kinds, **options)


def test_without_ray_its_extra_is_named(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"`--ray` needs Ray, which is not installed: `pip install"):
        opened(ray="auto", workers=2)
