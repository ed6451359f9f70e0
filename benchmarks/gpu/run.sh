#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: builds what it needs, checks the CUDA kernels and the loop, measures.
#
#   benchmarks/gpu/run.sh [--quick]      about nine minutes on an H100, or three; BUDGET=SECONDS overrides that
#
# It wants Python 3.11 or newer with a CUDA build of PyTorch (PYTHON=... chooses one), nvcc and a C++ compiler. Python
# packages that are missing come from build/gpu/wheels, which carry.sh fills on another machine, or else from the package
# index; they are installed into build/gpu/site and nowhere else. What cannot be done is left out and said so. Writes
# benchmarks/results/gpu-<device>.json and .png.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

quick=()
budget=480
for argument in "$@"; do
  case $argument in
    --quick) quick=(--quick) budget=165 ;;
    *) echo "usage: benchmarks/gpu/run.sh [--quick]" >&2 && exit 2 ;;
  esac
done
end=$((SECONDS + ${BUDGET:-$budget}))

python=${PYTHON:-python3}
work=$PWD/build/gpu
site=$work/site wheels=$work/wheels out=$work/out
rm -rf "$site" "$out"
mkdir -p "$site" "$out"
export PYTHONPATH=$site PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=$work/inductor PIP_DISABLE_PIP_VERSION_CHECK=1
checks=$out/checks.txt

say() { echo "run.sh: $*" >&2; }
fail() { say "$*" && exit 1; }
check() { # check NAME COMMAND...: runs it, and notes whether it passed
  local name=$1 log
  shift
  log=$out/${name// /-}.log
  if "$@" >"$log" 2>&1; then
    echo "$name: pass" >>"$checks" && say "$name: pass"
  else
    echo "$name: FAIL" >>"$checks" && say "$name: FAIL, the end of $log:" && tail -n 15 "$log" >&2
  fi
}
skip() { echo "$1: skipped, $2" >>"$checks" && say "$1: skipped, $2"; }
have() { "$python" -P -c "import $1" >/dev/null 2>&1; }
install() { # install REQUIREMENT...: from the carried wheels if there are any, else from the index
  local from=()
  [[ -d $wheels ]] && from=(--no-index --find-links "$wheels")
  "$python" -m pip install --quiet --no-deps --upgrade --target "$site" "${from[@]}" "$@"
}
need() { have "$1" || install "${2:-$1}" || say "\`$2\` could not be installed"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed: PYTHON=python3.12"
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
  fail "PyTorch finds no GPU here: run this where \`nvidia-smi\` shows one"
nvcc=$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2>/dev/null) || fail "nvcc is needed: set CUDA_HOME"
cuda=$(dirname "$(dirname "$(readlink -f "$nvcc")")")

pycuda() { # PyCUDA is built from source, against the driver's library, which needs a name without a version
  local library source=$work/pycuda
  rm -rf "$source" && mkdir -p "$source" "$work/lib" || return
  library=$(ldconfig -p 2>/dev/null | awk '/libcuda\.so\.1 / { print $NF; exit }')
  [[ -n $library ]] || library=$(find /usr/lib /usr/lib64 /usr/local -name 'libcuda.so.1' 2>/dev/null | head -n 1)
  [[ -n $library ]] || { say "no libcuda.so.1 was found" && return 1; }
  ln -sf "$library" "$work/lib/libcuda.so"
  if [[ ! -d $wheels ]]; then
    "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary=:all: -d "$source" pycuda || return
  fi
  tar -xzf "$(find "$source" "$wheels" -name 'pycuda-*.tar.gz' 2>/dev/null | head -n 1)" -C "$source" || return
  cd "$source"/pycuda-*/ || return
  "$python" configure.py --no-cuda-enable-curand --cuda-root="$cuda" --cudadrv-lib-dir="$work/lib" || return
  "$python" -m pip install --quiet --no-deps --no-build-isolation --target "$site" .
}

say "installing what is missing"
for pair in pydantic_core:pydantic-core annotated_types:annotated-types typing_inspection:typing-inspection pydantic \
  typer rich jinja2 safetensors PIL:pillow regex requests importlib_metadata:importlib-metadata \
  huggingface_hub:huggingface-hub diffusers pytools platformdirs mako siphash24 cuda.bindings:cuda-bindings pytest \
  matplotlib; do
  need "${pair%%:*}" "${pair##*:}"
done
"$python" -c 'import scikit_build_core as s, sys; sys.exit(tuple(map(int, s.__version__.split(".")[:2])) < (1, 1))' \
  2>/dev/null || install 'scikit-build-core>=1.1'
if ! have pycuda.driver; then
  say "building PyCUDA beside the rest"
  (pycuda) >"$out/pycuda.log" 2>&1 &
  building=$!
fi
say "building the kernels and stage-rt"
"$python" -m pip install --quiet --no-deps --no-build-isolation --upgrade --target "$site" . >"$out/install.log" 2>&1 ||
  { tail -n 20 "$out/install.log" >&2 && fail "stage-rt could not be built"; }
say "compiling the networks beside the checks"
"$python" benchmarks/gpu/bench.py --compile --out "$out" --budget $((end - SECONDS)) "${quick[@]}" \
  >"$out/compile.log" 2>&1 &
compiling=$!
driver=$work/step_driver
"$nvcc" -std=c++17 -O3 -fmad=false -lineinfo -arch=native -Istage_rt/kernels benchmarks/gpu/step_driver.cu -o "$driver" ||
  fail "the kernels do not compile"

check "kernels against NumPy" "$python" benchmarks/gpu/check_step.py "$driver" --json "$out/kernels.json"
sanitizer=$(command -v compute-sanitizer || ls "$cuda/bin/compute-sanitizer" /usr/local/cuda/bin/compute-sanitizer \
  2>/dev/null | head -n 1)
for tool in memcheck racecheck; do
  if [[ -n $sanitizer ]]; then
    check "compute-sanitizer $tool" "$python" benchmarks/gpu/check_step.py "$driver" \
      --under "$sanitizer" --tool "$tool" --error-exitcode 9
  else
    skip "compute-sanitizer $tool" "it is not installed"
  fi
done

if [[ -n ${building:-} ]] && ! wait "$building"; then
  tail -n 15 "$out/pycuda.log" >&2
  skip "loop on the GPU" "PyCUDA could not be built"
else
  check "loop on the GPU" "$python" -P -m pytest -q -p no:cacheprovider -W default -m gpu \
    tests/cuda/test_gpu.py
fi

say "waiting for the networks to be compiled"
wait "$compiling" || tail -n 15 "$out/compile.log" >&2
"$python" benchmarks/gpu/bench.py --out "$out" --budget $((end - SECONDS)) "${quick[@]}" || say "the benchmark failed"
"$python" benchmarks/gpu/collect.py "$out" benchmarks/results || fail "there are no results to collect"
! grep -q FAIL "$checks"
