#!/usr/bin/env bash
# Runs the test suite with several versions of torch, each in a virtual environment of its own.
#
#   tests/versions.sh                 the oldest supported version, one in the middle, and the newest
#   tests/versions.sh 2.8 newest      these
#
# Environments stay in $VERSIONS_DIR (default build/versions) and are used again. An environment takes 6 GB and some
# minutes to download. PYTEST_ARGS are added to pytest's. Prints one line per version at the end; exit status 1 if a
# suite failed.
set -uo pipefail
cd "$(dirname "$0")/.."

folder="${VERSIONS_DIR:-build/versions}"
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(2.6 2.10 newest)
mkdir -p "$folder"
summary="" failed=0

for version in "${versions[@]}"; do
    venv="$folder/torch-$version"
    wanted="torch"
    # The interpreter of triton 3.6 and older cannot run with NumPy 2.4.
    [ "$version" = newest ] || wanted="torch==$version.* numpy<2.4"
    if ! { [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"; } ||
        ! "$venv/bin/pip" install --quiet $wanted -e '.[test]'; then
        summary+="torch $version: not installed"$'\n'
        failed=1
        continue
    fi
    found=$("$venv/bin/python" -c '
import importlib.util, platform, torch
triton = __import__("triton").__version__ if importlib.util.find_spec("triton") else "none"
print(f"torch {torch.__version__}, triton {triton}, Python {platform.python_version()}")')
    echo "== $found"
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pytest -q ${PYTEST_ARGS:-} 2>&1 | tee "$folder/$version.log" | tail -n 40
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || failed=1
    summary+="$found: exit $status, $(tail -n 1 "$folder/$version.log")"$'\n'
done

printf '\n%s' "$summary"
exit "$failed"
