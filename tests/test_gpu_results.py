"""What `benchmarks/gpu` writes down: results of a GPU, and never those of a dry run on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"

BENCH = {
    "date": "2026-11-23T00:00:00+00:00",
    "quick": True,
    "device": {"name": "Some GPU 80GB", "memory_bytes": 8e10},
    "loop": [
        {"dtype": "fp16", "batch": 32, "seconds_a_pair": 0.5},
        {"dtype": "fp16", "batch": 1, "seconds_a_pair": 1},
    ],
    "peers": [{"peer": "eager_two_states", "dtype": "fp16", "batch": 1, "seconds_a_pair": 2}],
    "skipped": ["compile_max_autotune: no time was left"],
}


def collect(out, results):
    command = [sys.executable, str(GPU / "collect.py"), str(out), str(results)]
    return subprocess.run(command, capture_output=True, text=True)


def test_results_and_plot_are_named_after_the_device(tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    (tmp_path / "kernels.json").write_text("[]")
    (tmp_path / "checks.txt").write_text(
        "kernels against NumPy: pass\ncompute-sanitizer memcheck: skipped, none here\n"
    )
    done = collect(tmp_path, tmp_path / "results")
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["gpu-some-gpu-80gb-quick.json", "gpu-some-gpu-80gb-quick.png"]
    result = json.loads((tmp_path / "results" / names[0]).read_text())
    assert result["checks"] == {
        "kernels against NumPy": "pass",
        "compute-sanitizer memcheck": "skipped, none here",
    }
    assert {name: result[name] for name in BENCH} == BENCH


@pytest.mark.parametrize(
    "bench", [None, {**BENCH, "device": {"name": "no GPU: nothing here is a measurement"}}]
)
def test_a_dry_run_is_never_a_result(tmp_path, bench):
    if bench:
        (tmp_path / "bench.json").write_text(json.dumps(bench))
    done = collect(tmp_path, tmp_path / "results")
    assert done.returncode == 1
    assert done.stderr == "nothing was measured on a GPU: no results are written\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("script", ["run.sh", "carry.sh"])
def test_the_scripts_parse(script):
    subprocess.run(["bash", "-n", str(GPU / script)], check=True)


def test_an_unknown_option_is_told():
    done = subprocess.run(["bash", str(GPU / "run.sh"), "--fast"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: benchmarks/gpu/run.sh [--quick]\n")
