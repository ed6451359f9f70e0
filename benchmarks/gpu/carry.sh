#!/usr/bin/env bash
# Fetches and builds what run.sh needs for a machine that reaches no package index:
#
#   benchmarks/gpu/carry.sh [THERE]      PYTHON=python3.12 is a Python of the version that is there
#
# THERE is a file of what `python3 -m pip list --format=freeze` prints there; what it has is not carried. PyTorch, CUDA,
# its compiler and a C++ compiler have to be there already. Carry build/gpu/wheels (WHEELS=...) to the same place there:
# 90 MB, or 15 where NumPy, SciPy and their like are there. Here it needs nvcc, and a package index for those wheels.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
wheels=${WHEELS:-build/gpu/wheels}
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
export PIP_DISABLE_PIP_VERSION_CHECK=1
mkdir -p "$wheels"
# PyCUDA takes minutes to compile, so a wheel of it is kept.
find "$wheels" -name '*.whl' ! -name "pycuda-*-$tag-*" -delete

if [[ -z $(find "$wheels" -name "pycuda-*-$tag-*") ]]; then
  echo "carry.sh: building PyCUDA for $tag" >&2
  "$python" tests/support/softcuda/build.py "build/softcuda-$tag" --wheels "$wheels"
fi
echo "carry.sh: building stage-rt" >&2
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" .
benchmarks/gpu/source.sh >"$wheels/source"

echo "carry.sh: fetching the rest" >&2
platforms=(--platform linux_x86_64 --platform manylinux2014_x86_64)
for n in 17 24 26 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
"$python" -m pip download --quiet --only-binary=:all: "${platforms[@]}" --find-links "$wheels" --dest "$wheels" \
  --requirement benchmarks/gpu/needs.txt --requirement tests/support/softcuda/requirements.txt "$wheels"/stage_rt-*.whl
if [[ -n ${1:-} ]]; then
  "$python" benchmarks/gpu/missing.py "$wheels" "$1" | xargs --no-run-if-empty rm
fi
du -sh "$wheels" >&2
