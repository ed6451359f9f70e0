"""What `benchmarks/gpu` writes down of the parts it did: one result, its plot, and nothing of a dry run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"

KEY = {"source": "0123", "device": "Some GPU 80GB", "mode": "full"}
FINISHED = {
    "kernels": "pass",
    "machine": {"memory_bytes": 8e10, "matmul_tflops_fp16": 800},
    "compile_fp16_32_compiled": {"dtype": "fp16", "batch": 32, "seconds": 100},
    "loop_fp16_32_compiled": {
        "dtype": "fp16",
        "batch": 32,
        "way": "compiled",
        "seconds_a_pair": 0.5,
        "tflops": 400,
    },
    "loop_fp16_1_traced": {
        "dtype": "fp16",
        "batch": 1,
        "way": "traced",
        "seconds_a_pair": 1,
        "tflops": 200,
    },
    "peer_eager_fp16_32": {"peer": "eager", "dtype": "fp16", "batch": 32, "seconds_a_pair": 2},
}
FAILED = {"loop_checks": "AssertionError", "peer_compiled_fp16_32": "it took longer than 420 s"}


@pytest.fixture
def collect(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import collect

    return collect


def drawn(path):
    command = [sys.executable, str(GPU / "collect.py"), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_rows_become_one_result(collect):
    result = collect.collect(KEY, FINISHED, FAILED, [])
    assert result["checks"] == {
        "kernels": "pass",
        "loop_checks": "AssertionError",
        "memcheck": "not done",
        "racecheck": "not done",
        "loop_memcheck": "not done",
        "engine_traced": "not done",
        "engine_compiled": "not done",
    }
    assert result["not_done"] == {"peer_compiled_fp16_32": "it took longer than 420 s"}
    assert [(row["batch"], row["of_matmul_peak"]) for row in result["loop"]] == [(32, 0.5), (1, 0.25)]
    assert collect.series(result) == {
        "stage-rt, device-resident loop, AOTInductor, fp16": [(32, 0.5)],
        "stage-rt, device-resident loop, PyTorch's kernels, fp16": [(1, 1)],
        "PyTorch eager, single state, fp16": [(32, 2)],
    }
    assert all(result[name] == value for name, value in KEY.items())


def test_a_result_is_drawn_beside_itself(collect, tmp_path):
    path = tmp_path / "gpu-some-gpu-80gb.json"
    path.write_text(json.dumps(collect.collect(KEY, FINISHED, FAILED, [])))
    done = drawn(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_is_never_drawn(collect, tmp_path):
    machine = {"name": "no GPU: nothing here is a measurement"}
    path = tmp_path / "dry.json"
    path.write_text(json.dumps(collect.collect(KEY, FINISHED | {"machine": machine}, {}, [])))
    done = drawn(path)
    assert (done.returncode, done.stderr) == (
        1,
        "nothing was measured on a GPU: there is nothing to draw\n",
    )
    assert not path.with_suffix(".png").exists()
