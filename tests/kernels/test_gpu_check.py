"""The check that `benchmarks/gpu/run.sh` does on a GPU, run on the emulated kernels under AddressSanitizer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stage_rt import kernels

HERE = Path(__file__).parent
GPU = HERE.parents[1] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shutil.which("c++")
    source = next((path for f in kernels.__path__ if (path := Path(f) / "step_cuda.cu").is_file()), None)
    if compiler is None or source is None:
        pytest.skip("needs a C++ compiler and the kernels' source")
    program = tmp_path_factory.mktemp("driver") / "step_driver"
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=all", f"-I{HERE / 'emulated'}", f"-I{source.parent}", f"-I{GPU}"]
    subprocess.run([*command, str(HERE / "emulated/driver.cpp"), "-o", str(program)], check=True)
    return program


def check(*arguments):
    return subprocess.run(
        [sys.executable, str(GPU / "check_step.py"), *map(str, arguments)], capture_output=True, text=True
    )


def test_the_check_passes_on_the_kernels_as_they_are(driver, tmp_path):
    done = check(driver, "--json", tmp_path / "kernels.json")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "kernels.json").read_text())
    assert len(results) == 15
    assert all(result["passed"] and result["equals_cpu_library"] for result in results)
    assert all(result["max_abs_numpy"] <= 1e-5 for result in results)


def test_the_check_fails_on_wrong_results_and_on_a_program_that_fails(driver, tmp_path):
    spoiled = tmp_path / "spoiled"
    spoiled.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\nfrom pathlib import Path\n"
        f"subprocess.run([{str(driver)!r}, *sys.argv[1:]], check=True)\n"
        "path = Path(sys.argv[2])\ndata = bytearray(path.read_bytes())\ndata[2] ^= 0x40\npath.write_bytes(data)\n"
    )
    spoiled.chmod(0o755)
    done = check(spoiled)
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    done = check(driver, "--under", sys.executable, "-c", "import sys; sys.exit('found 3 errors')")
    assert done.returncode == 1
    assert "found 3 errors" in done.stderr
