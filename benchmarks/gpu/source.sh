#!/usr/bin/env bash
# Prints one digest of everything that is built, checked and measured, so that results and wheels of other sources are told apart.
set -euo pipefail
cd "$(dirname "$0")/../.."
find CMakeLists.txt pyproject.toml stage_rt training export engines benchmarks/quality benchmarks/gpu \
  tests/conftest.py tests/cuda tests/kernels tests/support -type f \
  ! -name '*.so' ! -name '*.fatbin' ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-16
