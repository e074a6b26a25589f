#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than nine minutes: build, every kernel against float64 (selftest),
# compilation on all cores (warmup), GPU tests, machine code of the Triton kernels, benchmarks. Needs torch, triton and
# pytest but no network. A step that fails or takes too long is recorded and the rest goes on; the exit status is 1 then.
#
#   bench/gpu.sh            results and the log go to $OUT, or bench/results
#   bench/gpu.sh --dry-run  prints the plan, and counts what the first steps compile; needs no GPU
#   PYTHON=python3.12 bench/gpu.sh
#   STEPS='build selftest tests' BENCH_SECONDS=60 bench/gpu.sh    some of the steps, or a shorter benchmark
#   TESTS=tests/gpu/test_network.py BENCH='--op refine' TRAIN='--clips 1500' bench/gpu.sh    arguments of these steps
#
# Python packages that are missing here are taken from wheels in .whl/, if that folder exists.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${OUT:-bench/results}
python=${PYTHON:-python3}
total=${TOTAL_SECONDS:-525}
steps=${STEPS:-all}
bench_seconds=${BENCH_SECONDS:-150}
read -ra tested <<<"${TESTS:-tests/gpu --ignore tests/gpu/test_selftest.py}"
read -ra bench_arguments <<<"${BENCH:-}"
read -ra train_arguments <<<"${TRAIN:-}"
dry=0
case ${1:-} in
'') ;;
--dry-run) dry=1 ;;
*)
    printf 'usage: bench/gpu.sh [--dry-run]\n' >&2
    exit 2
    ;;
esac
planned=0
log=/dev/null
if ((!dry)); then
    mkdir -p "$out"
    log=$out/gpu.log
    : >"$log"
fi
summary=()
failed=0
export PYTHONUNBUFFERED=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

record() { # name, exit status, seconds
    local verdict=ok
    case $2 in
    0) ;;
    124 | 137) verdict="TOOK TOO LONG" failed=1 ;;
    *) verdict="FAILED (exit status $2)" failed=1 ;;
    esac
    summary+=("$(printf '%-12s %4d s  %s' "$1" "$3" "$verdict")")
}

limit() { # the seconds asked for, or what is left
    local left=$((total - SECONDS))
    echo $(($1 < left ? $1 : left))
}

wanted() { # name of a step
    [[ $steps == all || " $steps " == *" $1 "* ]]
}

step() { # name, seconds expected, most seconds, command...
    local name=$1 expected=$2 seconds began=$SECONDS status
    wanted "$name" || return 0
    if ((dry)); then
        planned=$((planned + expected))
        printf '%-12s about %3d s, at most %3d s: %s\n' "$name" "$expected" "$3" "${*:4}"
        return
    fi
    seconds=$(limit "$3")
    shift 3
    if ((seconds < 5)); then
        summary+=("$(printf '%-12s %4d s  %s' "$name" 0 'LEFT OUT: no time left')")
        failed=1
        return
    fi
    printf '\n===== %s\n' "$name" | tee -a "$log"
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    if [[ $name == bench-cpu ]] && ((status == 3)); then status=0; fi # a busy machine: figures without a verdict
    record "$name" "$status" $((SECONDS - began))
}

if compgen -G '.whl/*.whl' >/dev/null; then
    step wheels 15 60 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$work/site" .whl/*.whl
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
step build 60 120 "$python" -m pip install -q --no-build-isolation --no-deps -e .
step doctor 10 30 "$python" -m ief_kernels.doctor
# A wrong kernel makes all that follows worthless, so this comes first. It also compiles on all cores.
step selftest 45 120 "$python" -m ief_kernels.selftest --device cuda
step warmup 35 75 "$python" -m ief_kernels.warmup

# Compiling for other chips uses cores only, so it runs beside the tests, which are not timed.
workers=()
if "$python" -c 'import xdist' 2>/dev/null; then
    workers=(-n 4 --dist loadfile)
fi
tests=("$python" -m pytest "${tested[@]}" -q -o addopts= -p no:cacheprovider)
static_began=$SECONDS
if ((!dry)) && wanted static; then
    timeout --kill-after=5 "$(limit 170)" "$python" -m bench --static --out "$out" >"$work/static.log" 2>&1 &
    static=$!
fi
step tests 60 120 "${tests[@]}" "${workers[@]}"
if ((!dry)) && wanted static; then
    printf '\n===== static\n' | tee -a "$log"
    wait "$static"
    status=$?
    tee -a "$log" <"$work/static.log"
    record static "$status" $((SECONDS - static_began))
fi

step bench $((bench_seconds + 10)) $((bench_seconds + 50)) "$python" -m bench --device cuda --seconds "$bench_seconds" --out "$out" \
    "${bench_arguments[@]}"
# Needs what iefvad needs beside torch: wheels of safetensors, scikit-learn, jsonargparse, huggingface_hub, av, opencv.
step bench-train 60 100 "$python" -m bench train --device cuda --ways plain reference fused fused-bfloat16 --out "$out" \
    "${train_arguments[@]}"
step bench-fill 30 60 "$python" -m bench train --device cuda --fill 0.52 --no-memory --ways plain fused fused-bfloat16 --out "$out" \
    "${train_arguments[@]}"
step bench-cpu 40 60 "$python" -m bench --device cpu --quick --out "$out"

if ((dry)); then
    printf 'about %d s in all; what does not fit into %d s is cut off or left out\n\n' "$planned" "$total"
    "$python" -m bench.gpu_plan
    exit
fi

{
    printf '\n===== summary (%d s in all)\n' "$SECONDS"
    printf '%s\n' "${summary[@]}"
} | tee -a "$log"
exit "$failed"
