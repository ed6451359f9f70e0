"""The CUDA kernels as compiled, not run: code for every GPU, every kernel in it, no register spilled."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from stage_rt import kernels

ARCHITECTURES = {75, 80, 86, 87, 89, 90, 100, 110, 120}
KERNELS = {
    *(
        f"stage_{name}_{dtype}"
        for name in ("step", "gather", "contrast")
        for dtype in ("fp32", "fp16", "bf16")
    ),
    "stage_advance",
}
PTX, ELF = 1, 2


def find(name):
    return next((path for folder in kernels.__path__ if (path := Path(folder) / name).is_file()), None)


def entries(data):
    """(kind, architecture, code) of each part of a fatbin: a header, then parts with headers of their own."""
    magic, _, header, size = struct.unpack_from("<IHHQ", data)
    assert magic == 0xBA55ED50
    at, end = header, header + size
    while at < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        (architecture,) = struct.unpack_from("<I", data, at + 28)
        yield kind, architecture, data[at + header : at + header + size]
        at += header + size


@pytest.fixture(scope="module")
def parts():
    path = find("step_cuda.fatbin")
    if path is None:
        pytest.skip("the CUDA kernels were not built: no nvcc at install time")
    return list(entries(path.read_bytes()))


def listed():
    """Of ``ARCHITECTURES`` what the compiler here knows: CUDA 12 has no Thor by that name."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return ARCHITECTURES
    told = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return ARCHITECTURES & {int(number) for number in re.findall(r"sm_(\d+)\b", told)}


def test_machine_code_for_every_gpu_holds_every_kernel(parts):
    code = {architecture: code for kind, architecture, code in parts if kind == ELF}
    assert code.keys() == listed()
    for architecture, elf in code.items():
        names = {name.decode() for name in re.findall(rb"\.text\.(stage_\w+)", elf)}
        assert names == KERNELS, architecture


def test_ptx_of_the_oldest_gpu_is_there_for_those_between_and_of_the_newest_for_later_ones(parts):
    assert {architecture for kind, architecture, _ in parts if kind == PTX} == {
        min(ARCHITECTURES),
        max(ARCHITECTURES),
    }


@pytest.mark.parametrize("architecture", [min(ARCHITECTURES), max(ARCHITECTURES)])
def test_no_register_is_spilled(architecture, tmp_path):
    nvcc = shutil.which("nvcc")
    source = find("step_cuda.cu")
    if nvcc is None or source is None:
        pytest.skip("needs nvcc and the kernels' source")
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        "-fmad=false",
        "-Xptxas",
        "-v",
        "-cubin",
        f"-arch=sm_{architecture}",
    ]
    command += [str(source), "-o", str(tmp_path / "step.cubin")]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(frames) == len(KERNELS)
    assert set(frames) == {("0", "0", "0")}
