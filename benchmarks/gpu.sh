#!/usr/bin/env bash
# What only a GPU can show, in three commands of less than ten minutes each:
#
#   benchmarks/gpu.sh phase1   builds with CUDA, compares every path with float64, measures the
#                              GPU's limits, then times operators, layer, loss, step, prediction, host
#   benchmarks/gpu.sh phase2   the tests marked cuda, those of the fused operators first
#   benchmarks/gpu.sh phase3   compute-sanitizer, other types and shapes, reading, whole commands
#
# Each phase replaces its part of benchmarks/results/DEVICE.json. With OUT, a folder, that file,
# log.txt and the tests' XML are written there too, after every step, so that a run that is cut off
# leaves what it has found. A step that fails or times out is recorded and the others still run; one
# that is stopped ends as by Ctrl-C, and pytest then writes what it has. SECONDS_IN_ALL (default:
# 560) shortens or lengthens all steps. The exit status is 1 if a step failed, 130 after Ctrl-C. The
# GPU's settings are left alone.
#
# It needs a GPU, nvcc and a Python with a CUDA build of torch, pytest and pytest-benchmark, but no
# network and no installation; pytest-xdist, where it is, runs eight tests at a time, and the whole
# commands need jsonargparse and numba. PYTHON names another Python than python3, COMMIT the commit
# if there is no repository. REHEARSE=1 runs the same steps on the CPU; only OUT keeps its results.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
readonly SECONDS_IN_ALL=${SECONDS_IN_ALL:-560} MEANT_FOR=560
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} REHEARSE=${REHEARSE:-} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
phase=${1:-}

if [[ ! $phase =~ ^phase[123]$ ]]; then
  sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" >&2
  exit 2
fi
if [[ ! $SECONDS_IN_ALL =~ ^[1-9][0-9]{0,5}$ ]]; then
  echo "gpu.sh: SECONDS_IN_ALL: expected a number of seconds, found $SECONDS_IN_ALL" >&2
  exit 2
fi
if [ -n "${OUT:-}" ] && ! mkdir -p "$OUT"; then
  exit 2
fi
if ! command -v "$python" >/dev/null; then
  echo "gpu.sh: $python is not on PATH; PYTHON names another" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! reason=$("$python" benchmarks/gpu.py check "$work" 2>&1); then
  echo "gpu.sh: $reason" >&2
  exit 1
fi
if [ -n "$REHEARSE" ]; then
  export PYSEG_CUDA=0 CUDA_VISIBLE_DEVICES=
  marked='not cuda'
else
  export PYSEG_CUDA=1
  marked=cuda
fi

left() { echo $((SECONDS_IN_ALL - SECONDS)); }

record() { # record NAME OUTCOME SECONDS
  printf '%s\t%s\t%d\n' "$1" "$2" "$3" >>"$work/steps.tsv"
  "$python" benchmarks/gpu.py report "$phase" "$work" >"$work/table"
}

# step NAME LIMIT COMMAND...: runs the command for at most LIMIT of the 560 seconds, or what is left;
# records outcome and time
step() {
  local name=$1 limit=$(($2 * SECONDS_IN_ALL / MEANT_FOR)) start=$SECONDS status outcome
  shift 2
  [ "$limit" -le "$(left)" ] || limit=$(left)
  if [ "$limit" -lt 10 ]; then
    record "$name" 'no time left' 0
    return 1
  fi
  printf '== %s\n' "$name" | tee -a "$work/log.txt"
  set -m # a process group of its own, in which Ctrl-C is not ignored
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$work/log" 2>&1 &
  running=$!
  set +m
  wait "$running"
  status=$?
  [ -z "$interrupted" ] || wait "$running" # the first one ended with the signal, not the step
  running=
  case $status in
    0) outcome=passed ;;
    124 | 137) outcome="stopped after $limit s" ;;
    *) outcome="failed with $status" ;;
  esac
  [[ -z $REHEARSE || $status != 5 ]] || outcome='left out: for a GPU alone' # pytest selected nothing
  [ -z "$interrupted" ] || outcome=interrupted
  cat "$work/log" >>"$work/log.txt"
  [[ $outcome = passed || $outcome = interrupted ]] || tail -n 60 "$work/log"
  printf '== %s: %s, %d s\n' "$name" "$outcome" $((SECONDS - start)) | tee -a "$work/log.txt"
  record "$name" "$outcome" $((SECONDS - start))
  if [ -n "$interrupted" ]; then
    cat "$work/table"
    exit 130
  fi
  return "$status"
}

interrupt() { # ends the step that runs, and with it the phase
  interrupted=yes
  [ -z "$running" ] || kill -INT -- "-$running" 2>/dev/null
}
running='' interrupted=''
trap interrupt INT TERM HUP

has() { "$python" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' "$@"; }

# Warnings of torch, Inductor's about TF32 say, are no failures here: those of pyseg fail on a CPU.
run_pytest() { # run_pytest NAME LIMIT OPTIONS...
  step "$1" "$2" "$python" -m pytest -q -W default -p no:cacheprovider "${@:3}"
}

bench() { # bench NAME LIMIT FILE EXPRESSION: the benchmarks of a file that pytest's -k selects
  run_pytest "benchmarks: $1" "$2" "benchmarks/$3" -k "$4" \
    --benchmark-json "$work/benchmark-${1// /-}.json"
}

tests() { # tests NAME LIMIT OPTIONS...
  local -a parallel=()
  ! has xdist || parallel=(-n 8)
  # Modules that need a missing package cannot be collected; the others run.
  run_pytest "tests: $1" "$2" "${parallel[@]}" -m "$marked" --continue-on-collection-errors \
    --junitxml "$work/tests-$1.xml" "${@:3}"
}

sanitize() { # sanitize TOOL
  if [ -n "$REHEARSE" ]; then
    record "$1" 'left out: no GPU' 0
  else # without torch's cache every tensor is a separate allocation, whose bounds are checked
    step "$1" 80 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$1" --error-exitcode 9 "$python" benchmarks/gpu.py exercise
  fi
}

commands() { # what a user runs
  if has jsonargparse numba; then
    step 'commands' 100 bash -euc '
      "$0" -m pyseg.train --run "$1/run" --pretrain.steps 200 --finetune.steps 200
      "$0" -m pyseg.evaluate --run "$1/run"
      "$0" -m pyseg.predict --run "$1/run" --out "$1/submission.csv"' "$python" "$work"
  else
    record 'commands' 'left out: no jsonargparse or numba' 0
  fi
}

plain_shapes='not K136 and not audio and not netvlad'
step build 240 "$python" -m pyseg._build || exit 1
case $phase in
  phase1)
    step exercise 120 "$python" benchmarks/gpu.py exercise
    step limits 60 "$python" benchmarks/gpu.py limits "$work/limits.json"
    bench 'operators' 130 bench_vlad.py "aggregate and bfloat16 and $plain_shapes"
    bench 'layer' 60 bench_vlad.py 'layer and bfloat16 and not audio and not rows'
    bench 'loss' 40 bench_rated_bce.py '1024 and 3862 and not memory'
    run_pytest graphs 60 -m "$marked" tests/training/test_graph.py tests/test_copies.py
    bench 'step' 100 bench_step.py 'bfloat16'
    bench 'predict' 60 bench_predict.py predict
    bench 'host' 60 bench_host.py 'step or counts'
    ;;
  phase2)
    tests operators 280 tests/ops/test_vlad.py tests/ops/test_assignment.py \
      tests/ops/test_rated_bce.py tests/ops/test_frames.py tests/ops/test_gru.py tests/nn
    tests all 560 tests --deselect tests/ops --deselect tests/nn
    ;;
  phase3)
    for tool in memcheck racecheck synccheck initcheck; do sanitize "$tool"; done
    bench 'float32' 60 bench_vlad.py "aggregate and float32 and $plain_shapes"
    bench 'reading' 60 bench_input.py 'training'
    commands
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 bench 'tf32' 60 bench_vlad.py "aggregate and float32 and $plain_shapes"
    bench 'NetVLAD' 60 bench_vlad.py 'aggregate and bfloat16 and netvlad'
    bench 'K=136' 60 bench_vlad.py 'aggregate and bfloat16 and K136'
    bench 'float16' 60 bench_vlad.py "aggregate and float16 and not bfloat16 and $plain_shapes"
    bench 'audio' 60 bench_vlad.py 'aggregate and bfloat16 and audio'
    ;;
esac
cat "$work/table"
! grep -Pqv '\t(passed|left out: [^\t]*)\t' "$work/steps.tsv"
