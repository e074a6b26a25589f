#!/usr/bin/env bash
# The C++ extension under the address, undefined-behaviour and thread sanitizers of GCC, one after the other.
#
#   tests/sanitizers.sh [address|undefined|thread ...]     all three without arguments
#
# Each build goes into a folder of its own (SANITIZE_FOLDER, otherwise a temporary one), so the usual extension stays as it
# is. Then the operators' tests on the CPU run with it, and CASES cases (default 400) of the harness's group `kernels`.
# Prints the number of cases and of reports per sanitizer, and ends with status 1 where there is a report or a failure.
# PYTHON is the interpreter to use. It needs g++ with its sanitizer libraries, and torch.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
cases=${CASES:-400}
folder=${SANITIZE_FOLDER:-$(mktemp -d)}
[[ -n ${SANITIZE_FOLDER:-} ]] || trap 'rm -rf "$folder"' EXIT
tests=(test_event_synthesis test_kalman_scan test_low_rank_fusion test_precision_fusion test_refinement test_not_finite
       test_arguments test_native_elements test_types_and_devices)
# What is built with a compiler at run time, or starts processes, shows nothing here and takes long.
skip="compile or opcheck or gradcheck or subprocess or traces"

files=("${tests[@]/%/.py}")
files=("${files[@]/#/tests/kernels/}")

library() { "${CXX:-g++}" -print-file-name="lib$1.so"; }

failed=0
for name in "${@:-address undefined thread}"; do for name in $name; do
    place=$folder/$name
    mkdir -p "$place"
    echo "== $name: building"
    IEF_KERNELS_SANITIZE=$name IEF_KERNELS_SKIP_CUDA=1 "$python" setup.py --quiet build_ext --build-lib "$place" \
        --build-temp "$place/temporary" > "$place/build.log" 2>&1 || { tail -20 "$place/build.log"; exit 1; }
    # The package beside the extension: links to the sources, so that nothing else is loaded.
    for item in ief_kernels/*; do
        [[ $item == *.so || $item == */__pycache__ ]] || ln -sfn "$PWD/$item" "$place/$item"
    done
    for item in iefvad tests bench pyproject.toml; do ln -sfn "$PWD/$item" "$place/$item"; done
    reports=$place/reports
    rm -rf "$reports"; mkdir "$reports"
    environment=(PYTHONPATH="$place" PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=2)
    log=log_path=$reports/report
    case $name in
        # Python and torch keep memory until they end, so leaks say nothing.
        address) environment+=(LD_PRELOAD="$(library asan) $(library stdc++)"
                               ASAN_OPTIONS="detect_leaks=0:halt_on_error=0:allocator_may_return_null=1:$log") ;;
        undefined) environment+=(LD_PRELOAD="$(library ubsan)" UBSAN_OPTIONS="print_stacktrace=1:$log") ;;
        thread) environment+=(LD_PRELOAD="$(library tsan) $(library stdc++)"
                              TSAN_OPTIONS="halt_on_error=0:ignore_noninstrumented_modules=1:report_signal_unsafe=0:suppressions=$PWD/tests/sanitizers.supp:$log") ;;
    esac
    run() { (cd "$place" && env "${environment[@]}" setarch -R "$python" "$@"); }
    run -c "import ief_kernels._native as n; assert n.available() and n.extension().__file__.startswith('$place'), n.extension()"
    run -m pytest -q -n0 -p no:cacheprovider --rootdir "$place" -k "not ($skip)" \
        "${files[@]}" > "$place/tests.log" 2>&1 || failed=1
    run -m tests.fuzz --group kernels --cases "$cases" --minutes 10 > "$place/cases.log" 2>&1 || failed=1
    found=$(cat "$reports"/* 2>/dev/null | grep -cE "ERROR: AddressSanitizer|runtime error:|WARNING: ThreadSanitizer" || true)
    [[ $found == 0 ]] || failed=1
    echo "== $name: tests: $(tail -1 "$place/tests.log"); cases: $(grep -E "^\|? *kernels" "$place/cases.log" | tail -1); reports: $found"
    [[ $found == 0 ]] || cat "$reports"/* | head -60
done; done
exit "$failed"
