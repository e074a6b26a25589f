#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than nine minutes: build, GPU tests, machine code of the Triton
# kernels, benchmarks. Needs torch, triton and pytest but no network. A step that fails or takes too long is recorded
# and the rest goes on; the exit status is 1 then.
#
#   bench/gpu.sh            results and the log go to $OUT, or bench/results
#   PYTHON=python3.12 bench/gpu.sh
#
# Python packages that are missing here are taken from wheels in .whl/, if that folder exists.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${OUT:-bench/results}
python=${PYTHON:-python3}
total=${TOTAL_SECONDS:-525}
mkdir -p "$out"
log=$out/gpu.log
: >"$log"
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

step() { # name, seconds, command...
    local name=$1 seconds began=$SECONDS status
    seconds=$(limit "$2")
    shift 2
    if ((seconds < 5)); then
        summary+=("$(printf '%-12s %4d s  %s' "$name" 0 'LEFT OUT: no time left')")
        failed=1
        return
    fi
    printf '\n===== %s\n' "$name" | tee -a "$log"
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    record "$name" "$status" $((SECONDS - began))
}

if compgen -G '.whl/*.whl' >/dev/null; then
    step wheels 60 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$work/site" .whl/*.whl
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
step build 150 "$python" -m pip install -q --no-build-isolation --no-deps -e .
step backends 30 "$python" -c 'import torch, ief_kernels as k; print(k.explain(None, torch.device("cuda"), torch.bfloat16))'

# Compiling for other chips uses cores only, so it runs beside the tests, which are not timed.
static_began=$SECONDS
timeout --kill-after=5 "$(limit 170)" "$python" -m bench --static --out "$out" >"$work/static.log" 2>&1 &
static=$!
step tests 170 "$python" -m pytest tests/gpu -q -o addopts= -p no:cacheprovider
printf '\n===== static\n' | tee -a "$log"
wait "$static"
status=$?
tee -a "$log" <"$work/static.log"
record static "$status" $((SECONDS - static_began))

step bench 260 "$python" -m bench --device cuda --seconds 170 --out "$out"
# Needs what iefvad needs beside torch: wheels of safetensors, scikit-learn, jsonargparse, huggingface_hub, av, opencv.
step bench-train 120 "$python" -m bench train --device cuda --ways plain reference fused fused-bfloat16 --out "$out"
step bench-fill 60 "$python" -m bench train --device cuda --fill 0.52 --no-memory --ways plain fused fused-bfloat16 --out "$out"
step bench-cpu 60 "$python" -m bench --device cpu --quick --out "$out"

{
    printf '\n===== summary (%d s in all)\n' "$SECONDS"
    printf '%s\n' "${summary[@]}"
} | tee -a "$log"
exit "$failed"
