#!/usr/bin/env bash
# Installs the package in the ways people do, each into a virtual environment of its own, and runs the main job there
# from an empty folder.
#
#   tests/installs.sh                    all but lowest
#   tests/installs.sh sdist wheel        these
#
#   sdist         a wheel is built from the sdist, in a build environment of its own
#   wheel         a wheel is built from the checkout; auditwheel and others may repair it later
#   no-compiler   the sdist again, without a compiler, with a broken one, and with one that is too old
#   cpu           everything with the CPU build of torch, from its index: says how much disk that takes
#   lowest        the oldest version of every dependency that pyproject.toml allows, and some of the tests
#
# Environments go to a temporary folder, or stay in $INSTALLS_DIR. sdist, wheel and no-compiler take the dependencies
# from the environment of $PYTHON (default python3), if torch is there; so they download nothing but what builds. The
# other two download gigabytes. Prints one line per case at the end; exit status 1 if one failed.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python="${PYTHON:-python3}"
cases=("$@")
[ ${#cases[@]} -gt 0 ] || cases=(sdist wheel no-compiler cpu)
if [ -n "${INSTALLS_DIR:-}" ]; then
    mkdir -p "$INSTALLS_DIR" && work=$(cd "$INSTALLS_DIR" && pwd)
else
    work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
fi
export IEFVAD_CACHE="${IEFVAD_CACHE:-$work/cache}"
summary="" failed=0

# A new environment. "borrow": it sees the packages of $python behind its own, but nothing of this checkout.
environment() { # NAME [borrow]
    rm -rf "${work:?}/$1"
    "$python" -m venv "$work/$1" || return
    if [ "${2:-}" = borrow ] && "$python" -c 'import torch' 2>/dev/null; then
        "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
            >"$("$work/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
        no_deps=--no-deps
    else
        no_deps=
    fi
}

# The sdist of this checkout, made once.
sdist() {
    [ -n "${made:-}" ] && return
    rm -rf "$work/dist"
    "$python" - "$root" "$work/dist" <<'PYTHON' || return
import os, sys
from setuptools import build_meta
os.chdir(sys.argv[1])
os.makedirs(sys.argv[2], exist_ok=True)
print(build_meta.build_sdist(sys.argv[2]))
PYTHON
    made=$(ls "$work"/dist/*.tar.gz)
}

# The main job with one seed, run with the installed package from an empty folder; then the package must be the
# installed one, with the kernels that $2 says.
main_job() { # NAME native|reference
    local bin="$work/$1/bin" here="$work/$1-run"
    rm -rf "$here" && mkdir -p "$here" && cd "$here" || return
    "$bin/python" -I -c 'import bench' 2>/dev/null && { echo "bench is installed as a package of its own"; cd "$root"; return 1; }
    "$bin/python" -I - "$2" "$work/$1" <<'PYTHON' &&
import sys, iefvad, ief_kernels
assert iefvad.__file__.startswith(sys.argv[2]) and ief_kernels.__file__.startswith(sys.argv[2]), iefvad.__file__
found = ief_kernels.explain("kalman_scan").splitlines()
assert found[0].endswith(f"auto takes {sys.argv[1]}"), found
PYTHON
        "$bin/python" -I -m iefvad.train --fused --seeds 0 --epochs "${EPOCHS:-2}" --out run &&
        test -s run/report.html && "$bin/iefvad" doctor >doctor.txt && "$bin/iefvad" export run --to torch-export --out model.pt2
    local status=$?
    cd "$root"
    return $status
}

case_sdist() {
    sdist && environment sdist borrow &&
        "$work/sdist/bin/pip" install --quiet $no_deps --verbose "$made" && main_job sdist native
}

case_wheel() {
    rm -rf "$work/wheels"
    environment wheel borrow && "$work/wheel/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/wheels" "$root" &&
        "$work/wheel/bin/pip" install --quiet $no_deps "$work"/wheels/*.whl && main_job wheel native
}

case_no-compiler() {
    local compiler
    sdist && environment no-compiler borrow && mkdir -p "$work/compilers" || return
    printf '#!/bin/sh\nexit 1\n' >"$work/compilers/broken"
    printf '#!/bin/sh\nfor word; do case "$word" in -std=c++17) exit 1 ;; esac; done\nexec c++ "$@"\n' >"$work/compilers/old"
    chmod +x "$work"/compilers/*
    for compiler in no-such-compiler "$work/compilers/broken" "$work/compilers/old"; do
        CXX=$compiler "$work/no-compiler/bin/pip" install --quiet --force-reinstall $no_deps "$made" || return
        "$work/no-compiler/bin/python" -I -m ief_kernels.doctor >"$work/doctor" || return
        grep 'ief_kernels._C  ' "$work/doctor"
        grep -q "the C++ extension is not built (.*compile.*\|.*cannot build.*)" "$work/doctor" || return
    done
    main_job no-compiler reference
}

case_cpu() {
    environment cpu &&
        "$work/cpu/bin/pip" install --quiet torch torchvision --index-url https://download.pytorch.org/whl/cpu &&
        "$work/cpu/bin/pip" install --quiet "$root" && main_job cpu native && du -sh "$work/cpu"
}

case_lowest() {
    local source
    environment lowest && "$python" - "$root/pyproject.toml" >"$work/lowest.txt" <<'PYTHON' || return
import re, sys
text = open(sys.argv[1], encoding="utf-8").read()
listed = text.partition("\ndependencies = [")[2].partition("\n]")[0]
for requirement in re.findall(r'"([^"]+)"', listed):
    name, bound, condition = re.fullmatch(r"([^<>=;]+)>=([\d.]+)[^;]*(;.*)?", requirement).groups()
    print(f"{name}=={bound}{condition or ''}")
PYTHON
    # The tests run in the unpacked sdist: pytest imports the package beside them, so it must be built for this Python.
    sdist && tar -xzf "$made" -C "$work/lowest" && source=$(ls -d "$work"/lowest/iefvad-*) &&
        "$work/lowest/bin/pip" install --quiet -r "$work/lowest.txt" pytest pytest-timeout pytest-xdist hypothesis pybind11 \
            'setuptools>=77' && "$work/lowest/bin/pip" install --quiet --no-deps --no-build-isolation -e "$source" &&
        main_job lowest native && cd "$source" || return
    "$work/lowest/bin/python" -m pytest -q ${PYTEST_ARGS:-} tests/test_api.py tests/test_video.py tests/video tests/model \
        tests/checkpoints tests/features tests/report tests/cli/test_cli.py tests/cli/test_messages.py tests/kernels/test_kalman_scan.py
    local status=$?
    cd "$root"
    return $status
}

for name in "${cases[@]}"; do
    if ! declare -F "case_$name" >/dev/null; then
        summary+="FAIL $name: there is no such case"$'\n' failed=1
        continue
    fi
    start=$SECONDS
    if "case_$name" >"$work/$name.log" 2>&1; then
        summary+="PASS $name ($((SECONDS - start)) s)"$'\n'
    else
        failed=1
        summary+="FAIL $name ($((SECONDS - start)) s)"$'\n'
        tail -n 40 "$work/$name.log"
    fi
    [ "$name" != cpu ] || tail -n 1 "$work/$name.log"
    [ -n "${INSTALLS_DIR:-}" ] || rm -rf "${work:?}/$name"
done

printf '%s' "$summary"
exit "$failed"
