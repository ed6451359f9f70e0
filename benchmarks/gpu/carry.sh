#!/usr/bin/env bash
# Fetches and builds what run.sh needs for a machine that reaches no package index:
#
#   benchmarks/gpu/carry.sh [THERE]      PYTHON=python3.12 is a Python of the version that is there
#
# THERE is a file of what `python3 -m pip list --format=freeze` prints there; what it has is not carried. The processor
# there is of the kind that is here, x86-64 or AArch64, since some of the wheels are compiled here. PyTorch, CUDA,
# its compiler and a C++ compiler have to be there already. Carry build/gpu/wheels (WHEELS=...) to the same place there:
# 90 MB, or 15 where NumPy, SciPy and their like are there. Here it needs nvcc, and a package index for those wheels.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
wheels=${WHEELS:-build/gpu/wheels}
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
processor=$("$python" -c 'import sysconfig; print(sysconfig.get_platform().removeprefix("linux-"))')
pycuda="pycuda-*-$tag-*_$processor.whl"
export PIP_DISABLE_PIP_VERSION_CHECK=1
mkdir -p "$wheels"
# PyCUDA takes minutes to compile, so a wheel of it is kept.
find "$wheels" -name '*.whl' ! -name "$pycuda" -delete

if [[ -z $(find "$wheels" -name "$pycuda") ]]; then
  echo "carry.sh: building PyCUDA for $tag" >&2
  "$python" tests/support/softcuda/build.py "build/softcuda-$tag" --wheels "$wheels"
fi
echo "carry.sh: building stage-rt" >&2
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" .
benchmarks/gpu/source.sh >"$wheels/source"

echo "carry.sh: fetching the rest" >&2
platforms=(--platform "linux_$processor" --platform "manylinux2014_$processor")
for n in 17 24 26 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${n}_$processor"); done
"$python" -m pip download --quiet --only-binary=:all: "${platforms[@]}" --find-links "$wheels" --dest "$wheels" \
  --requirement benchmarks/gpu/needs.txt --requirement tests/support/softcuda/requirements.txt "$wheels"/stage_rt-*.whl
if [[ -n ${1:-} ]]; then
  "$python" benchmarks/gpu/missing.py "$wheels" "$1" | xargs --no-run-if-empty rm
fi
du -sh "$wheels" >&2
