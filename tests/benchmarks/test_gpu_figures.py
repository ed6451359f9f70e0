"""What the figures of `benchmarks/gpu/tasks.py` are made of, on stand-ins for a GPU."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stage_rt.export import hoist
from stage_rt.export.networks import networks, random_inputs
from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import UNET, adapter_graph

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import tasks

    return tasks


def test_a_rate_is_of_what_the_networks_of_its_way_do(tasks, monkeypatch):
    from model import ADAPTER, random_model

    def counted(model):
        graphs, total = networks(model), 0
        for graph in (UNET, adapter_graph(ADAPTER, Branch.AWARE)):
            handed = random_inputs(graph, model, batch=1, timesteps=[1], generator=torch.Generator())
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                graphs[graph](**{name: tensor.to("meta") for name, tensor in handed.items()})
            total += counter.get_total_flops()
        return total / 1e12

    # Nothing is computed on this device, so its tables need not be exact.
    monkeypatch.setattr(hoist, "_exactly", lambda layer, x: layer(x.to("meta")))
    plain = random_model("full", "meta", Recipe.authors())
    freed = hoist.hoisted_model(plain)
    freed = replace(freed, contexts={name: text.to("meta") for name, text in freed.contexts.items()})
    assert tasks._tflops("plain", 32, 0.5) == pytest.approx(64 * counted(plain), rel=5e-4)
    for way in ("traced", "compiled", "tuned"):
        assert tasks._tflops(way, 32, 0.5) == pytest.approx(64 * counted(freed), rel=5e-4)


def test_the_memory_of_a_peer_is_what_its_steps_hold(tasks, monkeypatch):
    """The model has 3000 bytes, and 1500 once it is cast; a step needs 400 more; 200 are held by others."""
    device = SimpleNamespace(live=200, reserved=200)

    def made(*arguments):
        device.live = device.reserved = 3200
        return random_model(*arguments)

    def cast(*arguments):
        device.live, denoise = 1700, denoiser(*arguments)

        def step(*handed):
            device.reserved = max(device.reserved, device.live + 400)
            return denoise(*handed)

        return step

    def empty_cache():
        device.reserved = device.live

    random_model, denoiser = tasks.random_model, tasks.denoiser
    changed = {
        "random_model": made,
        "denoiser": cast,
        "_size": lambda mode: "tiny",
        "_device": lambda mode: "cpu",
    }
    for name, value in changed.items():
        monkeypatch.setattr(tasks, name, value)
    stand_in = {
        "mem_get_info": lambda: (10_000 - device.reserved, 10_000),
        "max_memory_reserved": lambda: 3600,
        "empty_cache": empty_cache,
        "synchronize": lambda: None,
    }
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    row = tasks.peer("quick", None, "eager", "fp32", 1)
    assert row["memory_bytes"] == 1900


def test_clocks_are_those_under_load(tasks, monkeypatch, tmp_path):
    program, running = tmp_path / "nvidia-smi", tmp_path / "running"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --id=GPU-0123 ] || exit 6\n'
        "for try in $(seq 200); do\n"
        f"  [ -e {running} ] && echo '1980 MHz, 2619 MHz' && exit\n"
        "  sleep 0.05\n"
        "done\n"
        "echo '345 MHz, 2619 MHz'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    device = SimpleNamespace(uuid="0123")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert tasks._clocks(running.touch) == "1980 MHz, 2619 MHz"
    device.uuid = "of another GPU"
    assert tasks._clocks(running.touch) is None
