#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: installs what it needs, checks the CUDA kernels and the loop, measures.
#
#   benchmarks/gpu/run.sh [--quick|--checks|--dry]     fifteen minutes, or ten; BUDGET=SECONDS, OUT=FOLDER, WORK=FOLDER, PYTHON=...
#
# --checks does the checks alone, in some minutes; without it the same command then goes on with what is measured.
# It wants Python 3.11 or newer with a CUDA build of PyTorch, nvcc and a C++ compiler. Python packages that are missing
# come from build/gpu/wheels, which carry.sh fills on another machine, or else from the package index, and are installed
# into build/gpu/venv and nowhere else. Results lie in OUT (build/gpu/results) after every part: gpu-<device>.json, which
# belongs into benchmarks/results, rows.jsonl and log.txt. The same command goes on where it was cut; on another machine
# once rows.jsonl has been put into build/gpu. --dry does all of it with tiny networks on softcuda and measures nothing.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

mode=full budget=900 checks=()
for argument in "$@"; do
  case $argument in
    --quick) mode=quick budget=600 ;;
    --checks) budget=540 checks=(--checks) ;;
    --dry) mode=dry budget=7200 ;;
    *) echo "usage: benchmarks/gpu/run.sh [--quick|--checks|--dry]" >&2 && exit 2 ;;
  esac
done
end=$((SECONDS + ${BUDGET:-$budget}))

root=$PWD
python=${PYTHON:-python3}
if [[ $mode = dry ]]; then work=${WORK:-$root/build/dry}; else work=${WORK:-$root/build/gpu}; fi
wheels=$work/wheels venv=$work/venv out=${OUT:-$work/results}
mkdir -p "$work" "$out"
export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 TORCHINDUCTOR_CACHE_DIR=$work/inductor
unset PYTHONPATH

say() { echo "run.sh: $*" >&2; }
fail() { say "$*" && exit 1; }
left() { echo $((end - SECONDS)); }
# limited SECONDS COMMAND...: ended after that, or when no time is left; a dry run waits for a busy machine
limited() {
  local seconds=$1
  shift
  [[ $mode = dry ]] && seconds=$(left)
  timeout --kill-after=5 "$((seconds < $(left) ? seconds : $(left)))" "$@"
}
# a dry run is content with any
has_torch() { [[ $mode = dry ]] || "$1" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed: PYTHON=python3.12"
nvcc=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v nvcc) || fail "nvcc is needed: set CUDA_HOME"
# Of what runs it, not of what is called nvcc: that may be a script elsewhere.
cuda=$("$nvcc" --dryrun -E -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
[[ -n $cuda ]] && cuda=$(cd "$cuda" && pwd) || fail "\`$nvcc --dryrun\` names no toolkit"
if [[ $mode = dry ]]; then
  export LD_LIBRARY_PATH=$root/build/softcuda/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  [[ -e $root/build/softcuda/lib/libcuda.so.1 ]] || fail "--dry runs on softcuda: \`make softcuda\`"
else
  has_torch "$python" || fail "a CUDA build of PyTorch is needed: PYTHON=... names a Python that has one"
fi

say "installing what is missing into $venv"
"$python" -m venv --without-pip --clear "$venv" && "$python" benchmarks/gpu/outside.py "$venv" || fail "no venv could be made"
has_torch "$venv/bin/python" || fail "PyTorch is where a venv cannot see it: install it into the site-packages of PYTHON=..."
installer=("$python" -m pip --python "$venv/bin/python" install --quiet --no-warn-script-location)
from=()
[[ -d $wheels ]] && from=(--no-index --find-links "$wheels")
source=$(benchmarks/gpu/source.sh) || fail "the sources could not be read"
if [[ -d $wheels ]]; then
  [[ -f $wheels/source && $(<"$wheels/source") = "$source" ]] ||
    fail "the wheels in $wheels are of other sources: make them again with carry.sh"
  own=$(find "$wheels/" -name 'stage_rt-*.whl')
else
  say "building the kernels and stage-rt"
  rm -rf "$work/own" && limited 200 "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/own" . >&2
  own=$(find "$work/own/" -name 'stage_rt-*.whl')
fi
[[ -n $own ]] || fail "stage-rt could not be built"
limited 200 "${installer[@]}" "${from[@]}" --requirement benchmarks/gpu/needs.txt "$own" >&2 ||
  fail "the packages of needs.txt could not be installed"
# Pip takes one of the same version for the same, wherever it lies.
limited 60 "${installer[@]}" --no-deps --force-reinstall "$own" >&2 || fail "stage-rt could not be installed"
python=$venv/bin/python

if ! "$python" -c 'import pycuda.driver' 2>/dev/null; then
  if [[ ! -d $wheels ]]; then
    say "building PyCUDA"
    CUDA_HOME=$cuda limited 200 "$python" tests/support/softcuda/build.py "$work/softcuda" --wheels "$work/pycuda" >&2
    from=(--find-links "$work/pycuda")
  fi
  limited 100 "${installer[@]}" "${from[@]}" --requirement tests/support/softcuda/requirements.txt >&2 ||
    say "PyCUDA could not be installed: what needs it will fail"
fi

say "compiling the kernels' check"
driver=$work/step_driver
if [[ $mode = dry ]]; then
  limited 100 c++ -std=c++17 -O1 -ffp-contract=off -Itests/kernels/emulated -Istage_rt/kernels -Ibenchmarks/gpu \
    tests/kernels/emulated/driver.cpp -o "$driver" || fail "the kernels do not compile"
else
  limited 100 "$nvcc" -std=c++17 -O3 -fmad=false -lineinfo -arch=native -Istage_rt/kernels \
    benchmarks/gpu/step_driver.cu -o "$driver" || fail "the kernels do not compile"
fi
sanitizer=$(PATH=$PATH:$cuda/bin command -v compute-sanitizer) && sanitizer=(--sanitizer "$sanitizer") || sanitizer=()
[[ $mode = dry ]] && sanitizer=()

exec timeout --kill-after=10 "$(($(left) + 30))" "$python" benchmarks/gpu/bench.py --work "$work" --out "$out" --mode "$mode" \
  --budget "$(left)" --source "$source" --driver "$driver" "${sanitizer[@]}" "${checks[@]}"
