#!/usr/bin/env bash
# Fetches what run.sh needs for a machine that reaches no package index: benchmarks/gpu/carry.sh [PYTHON_VERSION]
# PYTHON_VERSION is that of the other machine, as 3.12 (default: this one's). Carry build/gpu/wheels there, at the same
# place in a checkout; it is about 20 MB. CUDA, its compiler and PyTorch have to be there already.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
version=${1:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
wheels=build/gpu/wheels
mkdir -p "$wheels"

platforms=()
for n in 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done

fetch() {
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --implementation cp --python-version "$version" --platform manylinux2014_x86_64 "${platforms[@]}" -d "$wheels" "$@"
}

# pydantic asks for one exact pydantic-core.
fetch pydantic
wheel=$(find "$wheels" -name 'pydantic-[0-9]*.whl' | sort -V | tail -n 1)
core=$("$python" - "$wheel" <<'PYTHON'
import re, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    print(re.search(r"Requires-Dist: pydantic[-_]core==([\w.]+)", wheel.read(name).decode())[1])
PYTHON
)
for package in "pydantic-core==$core" annotated-types typing-inspection typing-extensions typer rich jinja2 safetensors \
  diffusers huggingface-hub importlib-metadata zipp regex requests pytools platformdirs mako siphash24 cuda-bindings \
  cuda-pathfinder scikit-build-core packaging pathspec pytest pluggy iniconfig matplotlib; do
  fetch "$package" || echo "carry.sh: no wheel of $package for Python $version, left out" >&2
done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary=:all: \
  -d "$wheels" pycuda
du -sh "$wheels"
