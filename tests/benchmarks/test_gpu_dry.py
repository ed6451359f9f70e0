"""`benchmarks/gpu/run.sh --dry` as typed, from a Python that has PyTorch and nothing else, and again."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
WHEELS, SOFTCUDA = ROOT / "build/dry/wheels", ROOT / "build/softcuda"
PARTS = [
    *("kernels", "loop_checks", "machine", "compile_fp32_1_traced", "loop_fp32_1_traced"),
    *("peer_authors_eager_fp32_1", "peer_eager_fp32_1"),
    *("compile_fp32_1_compiled", "loop_fp32_1_compiled", "peer_compiled_fp32_1"),
]


def needs(name):
    """A distribution and all that it needs."""
    found, waiting = {}, [name]
    while waiting:
        requirement = Requirement(waiting.pop())
        wanted = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if wanted not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[wanted] = metadata.distribution(wanted)
            waiting += found[wanted].requires or []
    return found.values()


@pytest.fixture
def bare(tmp_path):
    """A Python with pip, PyTorch and what PyTorch needs, as links to what is installed here."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "bare")], check=True)
    (site,) = (tmp_path / "bare/lib").glob("python*/site-packages")
    for distribution in needs("torch"):
        tops = {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return tmp_path / "bare/bin/python"


def missing():
    if (SOFTCUDA / "missing").is_file() or not (SOFTCUDA / "lib/libcuda.so.1").is_file():
        return "runs on softcuda: `make softcuda`"
    current = subprocess.run([ROOT / "benchmarks/gpu/source.sh"], capture_output=True, text=True, check=True)
    if not (WHEELS / "source").is_file() or (WHEELS / "source").read_text() != current.stdout:
        return "needs the wheels of these sources: `make carried`"
    return None


# PyTorch compiles the tiny networks for a minute. Quick twins: test_gpu_bench.py, tests/cuda/test_bench.py.
@pytest.mark.slow
def test_a_first_day_from_a_bare_python_and_the_same_command_again(bare, tmp_path):
    if reason := missing():
        pytest.skip(reason)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/wheels").symlink_to(WHEELS)
    places = {"PYTHON": str(bare), "WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out")}
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_", "PIP_"))
    }

    def run():
        command = ["benchmarks/gpu/run.sh", "--dry"]
        return subprocess.run(command, cwd=ROOT, env=kept | places, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{len(PARTS)} parts finished, 0 did not; results in {tmp_path / 'out'}\n"
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows] == PARTS
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [
        "dry.json",
        "log.txt",
        "rows.jsonl",
    ]
    result = json.loads((tmp_path / "out/dry.json").read_text())
    assert result["device"] == "Soft H100"
    assert "memory_bytes" not in result["machine"]
    assert result["not_done"] == {}
    assert [row["way"] for row in result["loop"]] == ["traced", "compiled"]
    for row in result["loop"]:
        assert (row["replayed"], row["notices"], row["same_bits_again"]) == (True, [], True)
        assert row["max_abs_host_loop"] <= 1e-4

    again = run()
    assert again.returncode == 0
    assert [line for line in again.stderr.splitlines() if line.startswith("bench.py:")] == [
        f"bench.py: {name}: there already" for name in PARTS if not name.startswith("compile")
    ]
    assert len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == len(PARTS)
