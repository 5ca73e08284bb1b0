#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds in place with CUDA, runs the tests marked
# `cuda`, compute-sanitizer and the benchmarks, and writes benchmarks/results/DEVICE.json.
#
#   benchmarks/gpu.sh
#
# It needs a GPU, nvcc and a Python with a CUDA build of torch, pytest and pytest-benchmark, but no
# network and no installation. PYTHON names another Python than python3, COMMIT the commit if there
# is no repository. A step that fails or times out is recorded and the others still run; the exit
# status is 1 if one failed. It ends within SECONDS_IN_ALL seconds and leaves the GPU's settings
# alone.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
readonly SECONDS_IN_ALL=${SECONDS_IN_ALL:-560}
readonly REPORT_SECONDS=20 # kept for the report
export PYTHONPATH=$PWD PYSEG_CUDA=1
python=${PYTHON:-python3}

if ! command -v "$python" >/dev/null; then
  echo "gpu.sh: $python is not on PATH; PYTHON names another" >&2
  exit 1
fi
if ! reason=$("$python" benchmarks/gpu.py check 2>&1); then
  echo "gpu.sh: $reason" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

left() { echo $((SECONDS_IN_ALL - REPORT_SECONDS - SECONDS)); }

# step NAME LIMIT COMMAND...: runs the command for at most LIMIT seconds, records outcome and time
step() {
  local name=$1 limit=$2 start=$SECONDS status outcome
  shift 2
  [ "$limit" -le "$(left)" ] || limit=$(left)
  if [ "$limit" -lt 10 ]; then
    printf '%s\tno time left\t0\n' "$name" >>"$work/steps.tsv"
    return 1
  fi
  printf '== %s\n' "$name"
  timeout --kill-after=5 "$limit" "$@" >"$work/log" 2>&1
  status=$?
  case $status in
    0) outcome=passed ;;
    124 | 137) outcome="stopped after $limit s" ;;
    *) outcome="failed with $status" ;;
  esac
  [ "$outcome" = passed ] || tail -n 60 "$work/log"
  printf '== %s: %s, %d s\n' "$name" "$outcome" $((SECONDS - start))
  printf '%s\t%s\t%d\n' "$name" "$outcome" $((SECONDS - start)) >>"$work/steps.tsv"
  return "$status"
}

sanitize() { # sanitize TOOL
  # Without torch's cache every tensor is a separate allocation, whose bounds are checked.
  step "$1" 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$1" --error-exitcode 9 "$python" benchmarks/gpu.py exercise
}

bench() { # bench NAME EXPRESSION [FILE]: the benchmarks of a file that pytest's -k selects
  step "benchmarks: $1" "$(left)" "$python" -m pytest "benchmarks/${3:-bench_vlad.py}" -q \
    -p no:cacheprovider -k "$2" --benchmark-json "$work/benchmark-${1// /-}.json"
}

if step build 200 "$python" -m pyseg._build; then
  step tests 170 "$python" -m pytest tests/ops tests/nn -q -m cuda -p no:cacheprovider \
    --junitxml "$work/tests.xml"
  step limits 60 "$python" benchmarks/gpu.py limits "$work/limits.json"
  bench bfloat16 'aggregate and bfloat16 and not K136 and not audio and not netvlad'
  sanitize memcheck
  sanitize racecheck
  bench float32 'aggregate and float32 and not K136 and not audio and not netvlad'
  TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 \
    bench tf32 'aggregate and float32 and not K136 and not audio and not netvlad'
  bench 'bfloat16 layer' 'layer and bfloat16 and not audio and not rows'
  bench 'rated loss' '1024 and 3862 and not memory' bench_rated_bce.py
  bench 'bfloat16 NetVLAD' 'aggregate and bfloat16 and netvlad'
  bench 'bfloat16 K=136' 'aggregate and bfloat16 and K136'
  bench float16 'aggregate and float16 and not bfloat16 and not K136 and not audio and not netvlad'
  bench 'bfloat16 audio' 'aggregate and bfloat16 and audio'
fi
"$python" benchmarks/gpu.py report "$work"
