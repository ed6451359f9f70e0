"""Builds softcuda and PyCUDA on it: ``python build.py FOLDER``; what is there and still good is left alone.

``FOLDER/run COMMAND...`` then runs a command with softcuda in the place of the driver. Where it cannot be built
``FOLDER/missing`` says why, the command runs without it, and the tests that need it skip with that reason.
``--wheels WHEELS`` leaves a wheel of PyCUDA for this Python in that folder instead, for any machine with a GPU.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SOURCES = [HERE, HERE.parents[1] / "kernels" / "emulated", ROOT / "stage_rt" / "kernels"]
REQUIREMENTS = HERE / "requirements.txt"

RUN = """#!/bin/sh
# Made by tests/support/softcuda/build.py: a command with softcuda in the place of the driver.
here=$(cd "$(dirname "$0")" && pwd)
if [ ! -e "$here/missing" ]; then
  export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export PYTHONPATH="$here/site${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$@"
"""


class Missing(Exception):  # noqa: N818
    """What softcuda needs and this machine has not."""


def toolkit() -> Path:
    """The CUDA toolkit's folder; ``nvcc`` may be a script that starts one elsewhere, so it is asked itself."""
    places = [os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(places))
    if nvcc is None or shutil.which("g++") is None:
        raise Missing("softcuda needs nvcc's headers and g++, which are not here")
    told = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
    found = re.search(r"^#\$ TOP=(.+)$", told.stderr, re.MULTILINE)
    if found is None or not (folder := Path(found[1]).resolve() / "include" / "cuda.h").is_file():
        raise Missing("softcuda needs `cuda.h`, which is not in nvcc's toolkit")
    return folder.parents[1]


def digest(*files: Path) -> str:
    """One digest of several files, in their order."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def build_library(folder: Path, cuda: Path) -> None:
    """``libcuda.so.1``, and the name without a version that a linker looks for."""
    files = sorted(
        path for source in SOURCES for path in source.iterdir() if path.suffix in (".cpp", ".cu", ".h")
    )
    library, made_of = folder / "lib" / "libcuda.so.1", folder / "lib" / "made_of"
    if library.is_file() and made_of.is_file() and made_of.read_text() == digest(*files):
        return
    library.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-shared",
        "-fPIC",
        "-pthread",
    ]
    command += [f"-I{source}" for source in SOURCES] + [
        f"-isystem{cuda / 'include'}",
        "-Wl,-soname,libcuda.so.1",
    ]
    subprocess.run([*command, *map(str, sorted(HERE.glob("*.cpp"))), "-ldl", "-o", str(library)], check=True)
    (library.parent / "libcuda.so").unlink(missing_ok=True)
    (library.parent / "libcuda.so").symlink_to(library.name)
    made_of.write_text(digest(*files))


def pip(*arguments: object) -> None:
    """A quiet pip."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    if subprocess.run(command).returncode:
        raise Missing(f"PyCUDA cannot be built here: `pip {arguments[0]}` failed")


def build_wheel(folder: Path, wheels: Path, cuda: Path) -> None:
    """PyCUDA as a wheel. It is linked against softcuda, of which it keeps no more than the driver's own name."""
    work = folder / "pycuda"
    version = re.search(r"^pycuda==.*$", REQUIREMENTS.read_text(), re.MULTILINE)
    assert version is not None
    shutil.rmtree(work, ignore_errors=True)
    pip("download", "--no-deps", "--no-binary", "pycuda", "--dest", work, version[0])
    (archive,) = work.glob("pycuda-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    source = work / archive.name.removesuffix(".tar.gz")
    options = [
        "--no-cuda-enable-curand",
        f"--cuda-root={cuda}",
        f"--cudadrv-lib-dir={folder.resolve() / 'lib'}",
    ]
    subprocess.run([sys.executable, "configure.py", *options], cwd=source, check=True)
    pip("wheel", "--no-deps", "--wheel-dir", wheels, source)


def build_site(folder: Path, cuda: Path) -> None:
    """That wheel, which is kept, installed beside what it imports into ``FOLDER/site``."""
    site, wheels = folder / "site", folder / "wheels"
    made_of = site / "made_of"
    if made_of.is_file() and made_of.read_text() == digest(REQUIREMENTS) + sys.version:
        return
    build_wheel(folder, wheels, cuda)
    shutil.rmtree(site, ignore_errors=True)
    pip("install", "--no-deps", "--find-links", wheels, "--target", site, "--requirement", REQUIREMENTS)
    made_of.write_text(digest(REQUIREMENTS) + sys.version)


def main(folder: Path) -> None:
    """Build both, or note why that cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    missing, run = folder / "missing", folder / "run"
    missing.unlink(missing_ok=True)
    try:
        cuda = toolkit()
        build_library(folder, cuda)
        build_site(folder, cuda)
    except Missing as reason:
        missing.write_text(f"{reason}\n")
        print(f"the tests of the GPU's loop will be skipped: {reason}", file=sys.stderr)
    run.write_text(RUN)
    run.chmod(0o755)


def wheel(folder: Path, wheels: Path) -> None:
    """The wheel alone; ends the process where it cannot be built."""
    try:
        cuda = toolkit()
        build_library(folder, cuda)
        build_wheel(folder, wheels, cuda)
    except Missing as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder to build in")
    parser.add_argument("--wheels", type=Path, help="folder for a wheel of PyCUDA")
    options = parser.parse_args()
    if options.wheels:
        wheel(options.folder, options.wheels)
    else:
        main(options.folder)
