"""Instructions of the compiled step, counted by callgrind: a slower kernel shows on any machine, however busy."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stage_rt import kernels

SOURCE = Path(__file__).with_name("one_step.cpp")
ELEMENTS = 4 * 32 * 32
MOST = {0: 52, 1: 36}
"""Instructions an element of the state, with a background draw of its own and with one for all channels. GCC 12 makes
41.3 and 27.7 of it for a CPU with AVX2, which is what valgrind shows the loader of any newer one too."""
ONCE = 10_000
"""Instructions of a call whatever the batch: finding its symbols, and two small arrays."""


def _has_avx2():
    cpus = Path("/proc/cpuinfo")
    return cpus.is_file() and " avx2 " in cpus.read_text()


pytestmark = [
    pytest.mark.skipif(
        shutil.which("valgrind") is None, reason="no callgrind here: `apt-get install valgrind`"
    ),
    pytest.mark.skipif(not _has_avx2(), reason="counted for a CPU with AVX2, which this one is not"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler to call the kernel with"),
]


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """``count(batch, shared)``: the instructions of one call, and of nothing around it."""
    folder = tmp_path_factory.mktemp("callgrind")
    library = next(path for place in kernels.__path__ if (path := Path(place) / kernels.LIBRARY).is_file())
    program = folder / "one_step"
    subprocess.run(
        [
            *("c++", "-std=c++17", "-I", kernels.reference.__file__.rpartition("/")[0], SOURCE, library),
            *(f"-Wl,-rpath,{library.parent}", "-o", program),
        ],
        check=True,
    )

    def count(batch, shared):
        counted = folder / f"{batch}.{shared}"
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--toggle-collect=stage_step"),
                *(f"--callgrind-out-file={counted}", program, str(batch), str(shared)),
            ],
            check=True,
            capture_output=True,
        )
        return int(re.search(r"^totals: (\d+)$", counted.read_text(), re.MULTILINE)[1])

    return count


@pytest.mark.parametrize("shared", [0, 1])
def test_a_step_takes_no_more_instructions_an_element_than_it_did(one_step, shared):
    few, many = one_step(1, shared), one_step(8, shared)
    each = (many - few) / 7
    assert 0 < few - each < ONCE
    assert each / ELEMENTS < MOST[shared]


def test_noise_of_one_channel_is_drawn_once(one_step):
    """Four channels of background are a draw, of five normal numbers in place of eight."""
    assert one_step(8, 1) / one_step(8, 0) == pytest.approx(5 / 8, abs=0.1)
